# SPDX-License-Identifier: Apache-2.0
"""What ``convary COMMAND --help`` prints, in plain text: flags in groups, with their types and defaults in words."""

from __future__ import annotations

import dataclasses
import inspect
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import docstring_parser
from tyro.conf import Positional

KINDS = {int: "INT", float: "FLOAT", str: "NAME", Path: "PATH"}
_COLUMN, _WIDEST = 24, 100  # where the texts begin, and the line's end where the terminal is wider
_POSITIONAL = typing.get_args(Positional[int])[1:]


@dataclass(frozen=True)
class Flag:
    """One line of the help.

    Attributes:
        words: What the user types.
        text: What it does, and its default.
        group: The title above it.
        positional: Whether it has no name on the command line.
    """

    words: str
    text: str
    group: str
    positional: bool


def help_text(flags: type, prog: str, default: Any = None) -> str:
    """The help of a command.

    Args:
        flags: The dataclass whose fields are its flags; fields whose metadata have ``flat`` are dataclasses themselves.
        prog: What the user types before the flags.
        default: An instance that gives the defaults.
    """
    found = list(_flags(flags, default))
    groups: dict[str, list[Flag]] = {}
    for flag in sorted(found, key=lambda flag: not flag.positional):
        groups.setdefault("" if flag.positional else flag.group, []).append(flag)
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    usage = " ".join([f"usage: {prog}", *(flag.words for flag in groups.get("", [])), "[FLAGS]"])
    said = docstring_parser.parse_from_object(_parts(flags)[0])
    about = [
        textwrap.fill(part, width) for part in (said.short_description, *_paragraphs(said.long_description)) if part
    ]
    blocks = [usage, *about]
    for title, members in groups.items():
        blocks.append("\n".join([*([f"{title}:"] if title else []), *(_line(flag, width) for flag in members)]))
    return "\n\n".join(blocks)


def _paragraphs(text: str | None) -> list[str]:
    return [" ".join(part.split()) for part in (text or "").split("\n\n")]


def _line(flag: Flag, width: int) -> str:
    margin = " " * _COLUMN
    text = textwrap.fill(
        flag.text,
        width,
        initial_indent=margin,
        subsequent_indent=margin,
        break_on_hyphens=False,
        break_long_words=False,
    )
    words = f"  {flag.words}"
    return f"{words:<{_COLUMN}}{text.lstrip()}" if len(words) < _COLUMN - 1 else f"{words}\n{text}"


def _parts(flags: Any) -> list[Any]:
    """The dataclasses that a command's flags are fields of."""
    return [field.metadata["flat"] for field in dataclasses.fields(flags) if "flat" in field.metadata] or [flags]


def _flags(flags: Any, default: Any) -> Iterator[Flag]:
    for kind in _parts(flags):
        hints, said = typing.get_type_hints(kind, include_extras=True), _said(kind)
        for field in dataclasses.fields(kind):
            owner = next(base for base in kind.__mro__ if field.name in inspect.get_annotations(base))
            group = vars(owner).get("group") or (f"options of {kind.title}" if hasattr(kind, "title") else "flags")
            value = getattr(default, field.name) if default is not None else _default(field)
            text = " ".join(f"{said.get(field.name, '')} {_told(value)}".split())
            yield _flag(field.name, hints[field.name], value, text, group)


def _said(kind: type) -> dict[str, str]:
    """What the docstrings of a dataclass and of its bases say of each field."""
    found: dict[str, str] = {}
    for base in kind.__mro__:
        if dataclasses.is_dataclass(base):
            for entry in docstring_parser.parse_from_object(base).params:
                found.setdefault(entry.arg_name, entry.description or "")
    return found


def _default(field: dataclasses.Field) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _told(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "(required)"
    if value is None or value is False or value == ():
        return ""
    if value is True:
        return "(default: on)"
    return f"(default: {' '.join(map(str, value)) if isinstance(value, tuple) else value})"


def _flag(name: str, hint: Any, value: Any, text: str, group: str) -> Flag:
    is_annotated = typing.get_origin(hint) is typing.Annotated
    plain, *extras = typing.get_args(hint) if is_annotated else (hint,)
    given = next((extra.metavar for extra in extras if getattr(extra, "metavar", None)), None)
    is_positional = any(extra in _POSITIONAL for extra in extras)
    kind = given or metavar(plain)
    if is_positional:
        return Flag(f"[{kind}]" if value is None or value == () else kind, text, group, True)
    flag = f"--{name.replace('_', '-')}"
    if plain is bool:
        return Flag(f"{flag}, --no-{flag[2:]}" if value else flag, text, group, False)
    return Flag(f"{flag} {kind}", text, group, False)


def metavar(hint: Any) -> str:
    """A type as people read it.

    >>> metavar(tuple[int, int, int]), metavar(tuple[float, ...]), metavar(Path | None), metavar(Literal["a", "b"])
    ('INT INT INT', 'FLOAT ...', 'PATH', 'a|b')
    """
    kind, args = typing.get_origin(hint), typing.get_args(hint)
    if kind in (types.UnionType, typing.Union):
        return "|".join(metavar(arg) for arg in args if arg is not type(None))
    if kind is Literal:
        return "|".join(map(str, args))
    if kind is tuple:
        return f"{metavar(args[0])} ..." if args[-1] is Ellipsis else " ".join(map(metavar, args))
    return KINDS.get(hint, "NAME")
