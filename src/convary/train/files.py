# SPDX-License-Identifier: Apache-2.0
"""The folder of a run."""

from __future__ import annotations

import datetime
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from convary.errors import ConfigError
from convary.files import TEMPORARY, write_json, writing

RUN_FILE = "run.json"


def now() -> str:
    """The time, for the record."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def claim_folder(
    out: Path,
    identity: dict[str, Any],
    started: str,
    origin: dict[str, str] | None = None,
    free: Collection[str] = (),
) -> str:
    """Make ``out`` the folder of this run, or find that it already is.

    Args:
        out: The folder; made where it does not exist.
        identity: What decides the run's result.
        started: The time, kept where the folder is new.
        origin: What must not have changed since, though no option says it, such as the code; None asks nothing.
        free: Fields that may differ, should an older record have them.

    Returns:
        When the run was first started.

    Raises:
        ConfigError: the folder belongs to another run, or holds other files.
        ConvaryError: the folder cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; choose another folder with --out")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    record = out / RUN_FILE
    if record.exists():
        return _same_run(record, identity, origin or {}, free)
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name != RUN_FILE + TEMPORARY)
    if foreign:
        raise ConfigError(
            f"{out} is not empty (it has {foreign[0]}) and not the folder of a run; choose another one with --out"
        )
    write_json(record, {"schema": 1, "started": started, "config": identity, "origin": origin or {}})
    return started


def refuse_another_run(out: Path, identity: dict[str, Any], free: Collection[str] = ()) -> None:
    """Raise ConfigError where ``out`` is the folder of a run with other settings; see :func:`claim_folder`."""
    if (out / RUN_FILE).exists():
        _same_run(out / RUN_FILE, identity, {}, free)


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    return " ".join(map(str, value)) if isinstance(value, list) else repr(value)


def _same_run(record: Path, identity: dict[str, Any], origin: dict[str, str], free: Collection[str]) -> str:
    try:
        content = json.loads(record.read_text())
        before, started = dict(content["config"]), str(content["started"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{record} is not the record of a run; choose another folder with --out") from error
    names = [name for name in {**before, **identity} if before.get(name) != identity.get(name) and name not in free]
    if names:
        told = (f"{name} {_shown(before.get(name))} there and {_shown(identity.get(name))} here" for name in names)
        differences = ", ".join(told)
        raise ConfigError(
            f"{record.parent} is the folder of another run: {differences}; give the settings that it was begun with, "
            "choose another folder with --out, or delete this one"
        )
    for name, value in content.get("origin", {}).items():
        if origin.get(name, value) != value:
            raise ConfigError(
                f"{record.parent} was begun with other {name} ({value} there, {origin[name]} here), and what it trains "
                "now can't be compared with it; go on with what it was begun with, or choose another --out"
            )
    return started
