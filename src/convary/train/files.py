# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all, and the folder of a run."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convary.errors import ConfigError, ConvaryError

RUN_FILE = "run.json"
TEMPORARY = ".part"


def write_whole(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` at once: whoever reads it, and whenever power fails, it is old or new.

    Raises:
        ConvaryError: the folder is read-only, the disk is full, ...; ``path`` is what it was before.
    """
    part = path.with_name(path.name + TEMPORARY)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """``value`` as JSON, written whole."""
    write_whole(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConvaryError(
            f"cannot write {path}: {error.strerror or error}; free some space or make the folder writable, "
            "or choose another folder with --out"
        ) from error


def claim_folder(out: Path, identity: dict[str, Any], started: str) -> str:
    """Make ``out`` the folder of this run, or find that it already is.

    Args:
        out: The folder; made where it does not exist.
        identity: What decides the run's result.
        started: The time, kept where the folder is new.

    Returns:
        When the run was first started.

    Raises:
        ConfigError: the folder belongs to another run, or holds other files.
        ConvaryError: the folder cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; choose another folder with --out")
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
    record = out / RUN_FILE
    if record.exists():
        return _same_run(record, identity)
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name != RUN_FILE + TEMPORARY)
    if foreign:
        raise ConfigError(
            f"{out} is not empty (it has {foreign[0]}) and not the folder of a run; choose another one with --out"
        )
    write_json(record, {"schema": 1, "started": started, "config": identity})
    return started


def _same_run(record: Path, identity: dict[str, Any]) -> str:
    try:
        content = json.loads(record.read_text())
        before, started = dict(content["config"]), str(content["started"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{record} is not the record of a run; choose another folder with --out") from error
    names = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
    if names:
        differences = ", ".join(f"{name} {before.get(name)!r} there and {identity.get(name)!r} here" for name in names)
        raise ConfigError(
            f"{record.parent} is the folder of another run: {differences}; choose another folder with --out, "
            "or delete this one"
        )
    return started
