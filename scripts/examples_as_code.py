# SPDX-License-Identifier: Apache-2.0
"""An extension of griffe, which reads docstrings for the site: examples become code, layers get their options.

A doctest that stands on its own in a docstring would be taken for Markdown, where ``>>>`` is three quotations. What a
layer of a method takes is made when its class is, which griffe, that only reads, does not see.
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from typing import Any

import griffe
import torch

from convary.methods import MethodConfig

_ALONE = re.compile(r"(?:^>>> .*(?:\n(?!\s*$).*)*(?:\n\s*\n(?=>>> ))?)+", re.MULTILINE)


class ExamplesAsCode(griffe.Extension):
    """Gives every doctest outside of a section its own."""

    def on_object(self, *, obj: Any, **options: Any) -> None:
        """Called for each module, class and function that griffe has read."""
        if obj.docstring:
            obj.docstring.value = sectioned(obj.docstring.value)
            if obj.is_class and obj.path.startswith("convary.methods.") and not obj.name.startswith("_"):
                kind = getattr(importlib.import_module(obj.module.path), obj.name)
                if getattr(kind, "config_type", None) is not None:
                    obj.docstring.value = layer_docstring(kind, obj.docstring.value)
                elif issubclass(kind, MethodConfig):
                    summary, _, rest = obj.docstring.value.partition("\n")
                    obj.docstring.value = f"{summary}\n\n{call(kind)}\n{rest}"


def call(kind: type) -> str:
    """A call with all that a class takes, as code."""
    known: dict[bool, list[str]] = {False: [], True: []}
    for parameter in inspect.signature(kind).parameters.values():
        known[parameter.kind is parameter.KEYWORD_ONLY].append(str(parameter.replace(annotation=parameter.empty)))
    options = ["*", *known[True]] if known[True] else []
    return f"```python\n{kind.__name__}({', '.join(known[False] + options)})\n```"


def layer_docstring(kind: type, docstring: str) -> str:
    """The docstring of a dynamic layer with what it takes, and with an example that has just been run.

    Args:
        kind: Its class.
        docstring: As it is written.
    """
    config = kind.config_type.__name__
    summary, _, rest = docstring.partition("\n")
    told = f"{summary}\n\n{call(kind)}\n\nWhat the options mean: [`{config}`][convary.{config}].\n{rest}"
    return told if "Examples:" in told else f"{told}\n\n{example(kind)}"


def example(kind: type) -> str:
    """A section with a call of a convolution of any rank, and the shape that it gives."""
    size = (8,) * kind.rank
    shape = tuple(kind(8, 16, 3, padding=1)(torch.randn(2, 8, *size)).shape)
    sizes = ", ".join(map(str, (2, 8, *size)))
    return (
        f"Examples:\n    >>> layer = {kind.__name__}(8, 16, 3, padding=1)\n"
        f"    >>> layer(torch.randn({sizes})).shape\n    torch.Size({list(shape)})\n"
    )


def sectioned(docstring: str) -> str:
    r"""The docstring with its doctests under ``Examples:``.

    >>> print(sectioned("Adds.\n\n>>> 1 + 1\n2"))
    Adds.
    <BLANKLINE>
    Examples:
        >>> 1 + 1
        2
    """
    return _ALONE.sub(lambda found: f"Examples:\n{textwrap.indent(found[0], '    ')}", docstring)
