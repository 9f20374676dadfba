# SPDX-License-Identifier: Apache-2.0
"""What the configs of all runs have in common: what makes two runs the same one, and the command that starts one."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from convary.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self


MOST_THREADS = 1024  # OpenMP ends the process where it has no memory for its threads
Kind = Literal["tensorboard", "wandb"]  # of trackers, see train.log


def check_threads(threads: int | None, name: str = "threads") -> None:
    """Raise ConfigError unless there can be so many threads; None is torch's own choice."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise ConfigError(f"{name} must be from 1 to {MOST_THREADS}; got {threads}")


class RunConfig:
    """Base of the dataclasses that the command line makes its flags of.

    Attributes:
        command_name: The words after ``convary``.
        shown: Fields that ``command`` always spells out; the others only where they are not the default.
        places: Fields that say where and how often, not what: a resumed run may change them.
        positional: Fields that the command line gives without a flag.
        out: Folder of what is written.
        log: Trackers that get the points of the curves as they come, beside ``OUT/log.csv``; see ``train.log``.
    """

    out: Path
    log: tuple[Kind, ...]

    command_name: ClassVar[tuple[str, ...]]
    shown: ClassVar[tuple[str, ...]] = ("out",)
    places: ClassVar[tuple[str, ...]] = ("out", "root", "save_every", "jobs", "watch", "log")
    positional: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON can hold them."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The config of what ``to_dict`` gave; fields that are not there have their defaults."""
        hints = get_type_hints(cls)
        return cls(**{name: _typed(value, hints[name]) for name, value in values.items()})

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


def _typed(value: Any, hint: Any) -> Any:
    """What ``_plain`` made of a value of this type."""
    args = [arg for arg in get_args(hint) if arg is not type(None)]
    if value is None or get_origin(hint) is Literal:
        return value
    if get_origin(hint) in (Union, UnionType):
        return _typed(value, args[0])
    if get_origin(hint) is tuple:
        return tuple(_typed(part, args[0]) for part in value)  # of parts that are alike
    return Path(value) if hint is Path else value


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
