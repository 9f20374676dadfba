# SPDX-License-Identifier: Apache-2.0
"""What a comparison trains beside each other: the static network, static networks of other widths, and the methods."""

from __future__ import annotations

import ast
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convary.errors import ConfigError, nearest
from convary.methods import METHODS, MethodConfig
from convary.models import COMPARATORS, Comparator
from convary.models.registry import split_width

STATIC = "static"
KNOWN = {config.name: config for config in (*METHODS, *COMPARATORS)}
# What a static network can have as much of as another arm, in words; of those that are measured, with how many images.
AXES = {"macs": "MACs", "params": "parameters", "latency": "latency", "latency16": "latency of 16 images"}
TIMED = {"latency": 1, "latency16": 16}
INITS = ("paper", "neutral", "upcycle")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the networks that are compared.

    Attributes:
        name: ``"static"``, a method's name, alone or with options (``"odconv:experts=2,init=neutral"``),
            ``"static@1.25"`` (a width) or ``"static@macs:odconv"`` (as expensive, by one of ``AXES``).
        method: The config of the method, or of the comparator; None for a static network.
        init: How it starts, where its name says so; else None.
        width: Of a static network, relative to the others; None where another arm's cost decides it.
        axis: Of ``AXES``: in what it is as expensive as ``like``.
        like: The name of another arm.
    """

    name: str
    method: MethodConfig | None = None
    init: str | None = None
    width: float | None = 1.0
    axis: str = ""
    like: str = ""

    @property
    def is_static(self) -> bool:
        """Whether it is the network that the others are compared with."""
        return self.name == STATIC

    @property
    def title(self) -> str:
        """For people."""
        if self.method is not None:
            _, _, options = self.name.partition(":")
            return f"{self.method.title} ({options.replace(',', ', ')})" if options else self.method.title
        if self.like:
            return f"static, {AXES[self.axis]} of {read_arm(self.like).title}"
        return STATIC if self.is_static else f"static, {self.width:g} times as wide"

    @property
    def is_dynamic(self) -> bool:
        """Whether its kernels depend on the input."""
        return self.method is not None and not isinstance(self.method, Comparator)

    @property
    def folder(self) -> str:
        """Its name as that of a folder, on every system."""
        return self.name.replace(":", "-")  # Windows' names have no colon


def checkpoint_path(out: Path, arm: Arm | str, seed: int) -> Path:
    """Where the checkpoint of an arm and a seed lies."""
    return out / (arm if isinstance(arm, str) else arm.folder) / f"seed-{seed}" / "checkpoint.pt"


def read_arm(text: str) -> Arm:
    """An arm by its name.

    Args:
        text: The name.

    Raises:
        ConfigError: there is no such arm, or the method does not take the options.
    """
    kind, colon, rest = text.partition(":")
    if kind in KNOWN:
        options = _options(text, rest, KNOWN[kind]) if colon else {}
        init = options.pop("init", None)
        if init not in (None, *INITS):
            raise ConfigError(f"init of {text!r} must be one of {', '.join(INITS)}; got {init!r}")
        return Arm(name=text, method=_method(kind, options), init=init)
    if text == STATIC:
        return Arm(name=text)
    kind, at, width = kind.partition("@")
    if kind == STATIC and colon:
        if width not in AXES or rest.partition(":")[0] not in KNOWN:
            hint = "" if rest in KNOWN else nearest(rest, KNOWN)
            raise ConfigError(
                f"a static network, which has no options, is static, static@1.25, or as expensive as a method, written "
                f"static@macs:odconv, with {', '.join(list(AXES)[:-1])} or {list(AXES)[-1]}; got {text!r}{hint}"
            )
        return Arm(name=text, width=None, axis=width, like=rest)
    if kind == STATIC and at:
        return Arm(name=text, width=split_width(text)[1])
    known = (STATIC, *KNOWN)
    raise ConfigError(f"unknown method {text!r}{nearest(text, known)}; known: {', '.join(known)}")


def _method(kind: str, options: dict[str, Any]) -> MethodConfig:
    """A method with options; what is wrong with them comes with the command that explains them, where there is one."""
    try:
        return KNOWN[kind].from_options(options)
    except ConfigError as error:
        if issubclass(KNOWN[kind], Comparator):
            raise
        raise ConfigError(f"{error}; its options: convary plan --method {kind} --help") from error


def _options(arm: str, text: str, config: type[MethodConfig]) -> dict[str, Any]:
    """Those of ``METHOD:OPTION=VALUE,OPTION=VALUE``; a tuple of words is written ``kernel+filter``."""
    tuples = {field.name: field.default for field in dataclasses.fields(config) if isinstance(field.default, tuple)}
    words = {name for name, default in tuples.items() if all(isinstance(value, str) for value in default)}
    options: dict[str, Any] = {}
    for entry in text.split(","):
        name, equals, value = entry.partition("=")
        if not (name and equals):
            raise ConfigError(
                f"options are written METHOD:OPTION=VALUE,OPTION=VALUE as in odconv:experts=2; got {arm!r}"
            )
        options[name] = tuple(value.split("+")) if name in words else _value(value)
    return options


def _value(text: str) -> Any:
    """A number, a bool, None; anything else is a string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
