# SPDX-License-Identifier: Apache-2.0
"""Write the lists of methods into the documentation, from ``METHODS``: the index, the site's contents, the API page.

    python scripts/method_lists.py

What stands between the marks ``methods: begin`` and ``methods: end`` is replaced.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import convary
from convary import METHODS

ROOT = Path(__file__).parent.parent


def index() -> str:
    """Of docs/index.md: a link per method."""
    links = [f"[{config.title}](methods/{config.name}.md)" for config in METHODS]
    return textwrap.fill(f"- Methods: {', '.join(links)}.", 120, subsequent_indent="  ", break_long_words=False) + "\n"


def contents() -> str:
    """Of mkdocs.yml: a page per method."""
    return "".join(f"      - {config.title}: methods/{config.name}.md\n" for config in METHODS)


def api() -> str:
    """Of docs/api.md: each config, then its layers."""
    names = [name for config in METHODS for name in (config.__name__, *_layers(config))]
    return "".join(f"\n::: convary.{name}\n" for name in names)


def _layers(config: type) -> list[str]:
    """The public layers of a method: those that its module defines and ``convary`` exports."""
    module = sys.modules[config.__module__]
    found = [name for name in convary.__all__ if name != config.__name__ and isinstance(getattr(convary, name), type)]
    return sorted(name for name in found if getattr(convary, name).__module__ == module.__name__)


PAGES: dict[str, Callable[[], str]] = {"docs/index.md": index, "mkdocs.yml": contents, "docs/api.md": api}
_MARKED = re.compile(r"(methods: begin[^\n]*\n)(.*?)([^\n]*methods: end)", re.DOTALL)


def written(page: str) -> str:
    """What a page should be."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return _MARKED.sub(lambda match: match[1] + PAGES[page]() + match[3], text)


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(written(page), encoding="utf-8")
