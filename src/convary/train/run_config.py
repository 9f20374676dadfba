# SPDX-License-Identifier: Apache-2.0
"""What the configs of all runs have in common: what makes two runs the same one, and the command that starts one."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any, ClassVar


class RunConfig:
    """Base of the dataclasses that the command line makes its flags of.

    Attributes:
        command_name: The words after ``convary``.
        shown: Fields that ``command`` always spells out; the others only where they are not the default.
        places: Fields that say where and how often, not what: a resumed run may change them.
    """

    command_name: ClassVar[tuple[str, ...]]
    shown: ClassVar[tuple[str, ...]] = ("out",)
    places: ClassVar[tuple[str, ...]] = ("out", "root", "save_every", "jobs", "watch")

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON can hold them."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    def identity(self) -> dict[str, Any]:
        """The fields that decide the result: two runs with the same identity are the same run."""
        return {name: value for name, value in self.to_dict().items() if name not in self.places}

    def command(self) -> str:
        """The command line that gives this config."""
        words = ["convary", *self.command_name]
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value == field.default and field.name not in self.shown:
                continue
            flag = field.name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
        return shlex.join(words)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
