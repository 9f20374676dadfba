# SPDX-License-Identifier: Apache-2.0
"""Commands whose ``--method`` decides which further flags there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tyro.conf import OmitArgPrefixes

from convary._cli.parse import parse

if TYPE_CHECKING:
    from convary.methods import MethodConfig

Flags = TypeVar("Flags")


def parse_with_method(flags: type[Flags], argv: Sequence[str], prog: str) -> tuple[Flags, MethodConfig]:
    """The command's own flags, and the config of the method that they name.

    Raises:
        ConfigError: see ``parse``; or there is no such method.
        SystemExit: with code 0, after --help.
    """
    name = method_name(argv)
    if name is None:
        parse(flags, argv, prog)  # shows the help, or says that --method is missing
        raise SystemExit(0)
    from convary.methods import method

    both = parse(_with_options(flags, type(method(name))), argv, prog)
    return both.own, both.config


def method_name(argv: Sequence[str]) -> str | None:
    """What ``--method`` names among the arguments, or None."""
    return flag_value("--method", argv)


def flag_value(flag: str, argv: Sequence[str]) -> str | None:
    """What follows a flag among the arguments, or None."""
    for word, following in zip(argv, [*argv, None][1:], strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def _with_options(flags: Any, config: Any) -> Any:
    """The command's flags and those of one method's config, side by side."""
    return dataclasses.make_dataclass(
        f"{flags.__name__}WithOptions",
        [
            ("own", OmitArgPrefixes[flags], dataclasses.field(metadata={"flat": flags})),
            ("config", OmitArgPrefixes[config], dataclasses.field(metadata={"flat": config})),
        ],
    )
