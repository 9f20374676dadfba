# SPDX-License-Identifier: Apache-2.0
"""Write the tutorial as a notebook, from its page: every block of Python and every command becomes a cell.

    python scripts/notebook.py

Change the page, never the notebook.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE, NOTEBOOK = ROOT / "docs" / "tutorial.md", ROOT / "examples" / "tutorial.ipynb"
SETUP = """\
import os, sys, tempfile

sys.path.append(os.path.abspath(".."))  # the checkout, which has the examples
os.chdir(tempfile.mkdtemp())  # what this notebook writes goes there
"""
_BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)


def cells(page: str) -> list[dict[str, Any]]:
    """The cells of a page: the text and the blocks by turns, after a cell that finds the examples."""
    found = [_cell("code", SETUP)]
    words = _BLOCK.split(_links(page))  # text, language, code, text, language, code, ..., text
    for index in range(0, len(words), 3):
        text, *block = words[index : index + 3]
        if text.strip():
            found.append(_cell("markdown", text))
        if block:
            language, code = block
            found.append(_cell("code", code if language == "python" else _command(code)))
    for index, cell in enumerate(found):
        cell["id"] = f"cell-{index}"
    return found


def _links(page: str) -> str:
    """Links to pages beside the tutorial, as seen from the notebook's folder."""
    return re.sub(r"\]\((?!http)", "](../docs/", page)


def _command(line: str) -> str:
    """The same program as that of the notebook, whatever the shell finds."""
    return "!{sys.executable} -m " + line


def _cell(kind: str, text: str) -> dict[str, Any]:
    code = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "metadata": {}, **code, "source": text.strip().splitlines(keepends=True)}


def written() -> str:
    """What the notebook should be."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {
        "cells": cells(PAGE.read_text(encoding="utf-8")),
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(written(), encoding="utf-8")
