# SPDX-License-Identifier: Apache-2.0
"""Flags out of a dataclass, by tyro; what is wrong with them comes back as one line instead of a panel."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import tyro

from convary._cli.help import REGISTRY, examples
from convary._cli.usage import help_text
from convary.errors import ConfigError, nearest

Flags = TypeVar("Flags")


def parse(flags: type[Flags], argv: Sequence[str], prog: str, *, default: Flags | None = None) -> Flags:
    """An instance of the dataclass ``flags`` from a command line.

    Args:
        flags: the dataclass; its fields are the flags, its defaults theirs.
        argv: the arguments after the command.
        prog: what the user typed before them, as in ``"convary compare"``.
        default: gives the flags that are not there; without one the dataclass's defaults do.

    Raises:
        ConfigError: an unknown flag (with the nearest name), a missing or an impossible value.
        SystemExit: with code 0, after --help.
    """
    if wants_help(argv):
        print("\n\n".join(filter(None, (help_text(flags, prog, default), examples(prog)))))
        raise SystemExit(0)
    _check_names(flags, argv, prog)
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            more: dict[str, Any] = {} if default is None else {"default": default}
            return tyro.cli(flags, args=list(argv), prog=prog, registry=REGISTRY, **more)
    except SystemExit as stop:
        message = _number_wanted(_one_line(told.getvalue()))
        see = "" if "--help" in message else f"; see {prog} --help"
        raise ConfigError(f"{message}{see}") from stop


def wants_help(argv: Sequence[str]) -> bool:
    """Whether the arguments ask for the help, which needs no extras."""
    return not {"-h", "--help"}.isdisjoint(argv)


def _check_names(flags: Any, argv: Iterable[str], prog: str) -> None:
    known = [f"--{name.replace('_', '-')}" for name in _names(flags)]
    known += [f"--no-{name[2:]}" for name in known] + ["--help"]
    for word in argv:
        name = word.partition("=")[0].replace("_", "-")
        if word.startswith("--") and name not in known:
            raise ConfigError(f"no flag {name}{nearest(name, known) or f'; see {prog} --help'}")


def _names(flags: Any) -> Iterable[str]:
    for field in dataclasses.fields(flags):
        inner = field.metadata.get("flat")
        yield from _names(inner) if inner else [field.name]


_PYTHONS = {
    ": invalid literal for int() with base 10: ": "a whole number",
    ": could not convert string to float: ": "a number",
}


def _number_wanted(message: str) -> str:
    """What a flag of numbers wants, in place of what tyro or Python says of it.

    >>> _number_wanted("--lr: Could not find valid parse for arguments: ['0.1', 'fast']")
    "--lr wants numbers; got '0.1 fast'"
    >>> _number_wanted("--epochs: invalid literal for int() with base 10: '1.5'")
    "--epochs wants a whole number; got '1.5'"
    >>> _number_wanted("--warmup: could not convert string to float: 'long'")
    "--warmup wants a number; got 'long'"
    """
    for said, wanted in _PYTHONS.items():
        message = message.replace(said, f" wants {wanted}; got ")
    found = re.fullmatch(r"(--[\w-]+): Could not find valid parse for arguments: (\[.*\])", message)
    return message if found is None else f"{found[1]} wants numbers; got {' '.join(ast.literal_eval(found[2]))!r}"


def _one_line(panel: str) -> str:
    """The message of a tyro panel: what stands between its title and its rule."""
    body: list[str] = []
    for line in panel.strip().splitlines()[1:]:
        text = line.strip("│╭╮╰╯")
        if re.fullmatch("[─-]+", text.strip()):  # of dashes where the output has no other line
            if body:
                break
            continue
        if not text.startswith(" " * 8):  # deeper down stands the help of a missing flag
            body.append(text)
    message = re.sub(r"\s+", " ", " ".join(body)).strip(" .")
    message = re.sub(r"^Error parsing (--[\w-]+: )?(\S+: )?", r"\1", message)  # a class's own check needs no preamble
    return message or "the arguments cannot be read"
