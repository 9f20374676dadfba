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
        positional: Fields that the command line gives without a flag.
    """

    command_name: ClassVar[tuple[str, ...]]
    shown: ClassVar[tuple[str, ...]] = ("out",)
    places: ClassVar[tuple[str, ...]] = ("out", "root", "save_every", "jobs", "watch")
    positional: ClassVar[tuple[str, ...]] = ()

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
            value, flag = getattr(self, field.name), f"--{field.name.replace('_', '-')}"
            if value == self.usual(field) and field.name not in self.shown:
                continue
            if isinstance(value, bool):
                words.append(flag if value else f"--no-{flag[2:]}")
            else:
                flags = [] if field.name in self.positional else [flag]
                words += [*flags, *map(str, value if isinstance(value, tuple) else (value,))]
        return shlex.join(words)

    def usual(self, field: dataclasses.Field) -> Any:
        """What the command line gives a field that is not spelled out."""
        return field.default


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
