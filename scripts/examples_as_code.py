# SPDX-License-Identifier: Apache-2.0
"""An extension of griffe, which reads docstrings for the site: examples become sections of code.

A doctest that stands on its own in a docstring would be taken for Markdown, where ``>>>`` is three quotations.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

_ALONE = re.compile(r"(?:^>>> .*(?:\n(?!\s*$).*)*(?:\n\s*\n(?=>>> ))?)+", re.MULTILINE)


class ExamplesAsCode(griffe.Extension):
    """Gives every doctest outside of a section its own."""

    def on_object(self, *, obj: Any, **options: Any) -> None:
        """Called for each module, class and function that griffe has read."""
        if obj.docstring:
            obj.docstring.value = sectioned(obj.docstring.value)


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
