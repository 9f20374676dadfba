# SPDX-License-Identifier: Apache-2.0
"""A hook of mkdocs: the changelog as a page, each section of the API page as one of its own, pictures that open."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
API = "api.md"


def sections() -> tuple[str, dict[str, tuple[str, str]]]:
    """What stands above the sections of the API page, and by its page each section's title and text."""
    above, *rest = re.split(r"^## ", (ROOT / "docs" / API).read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {}
    for section in rest:
        title, _, text = section.partition("\n")
        found[f"api/{title.lower().replace(' ', '-')}.md"] = (title, f"# {title}\n{text}")
    return above, found


def on_config(config: Any) -> Any:
    """Put the pages of the API into the contents, below the page that lists them."""
    pages = [{title: path} for path, (title, _) in sections()[1].items()]
    config["nav"] = [{"API": [API, *pages]} if entry == {"API": API} else entry for entry in config["nav"]]
    return config


def _names(text: str) -> list[str]:
    """Links to the entries of a section."""
    names = re.findall(r"^::: (\S+)", text, re.MULTILINE)
    return [f"[`{name.removeprefix('convary.')}`][{name}]" for name in names]


def on_files(files: Files, config: Any) -> Files:
    """Add the pages; the changelog's links to the documentation are relative to ``docs`` there."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "changelog.md", content=text))
    above, found = sections()
    for path, (_, text) in found.items():
        files.append(File.generated(config, path, content=text))
    rows = [f"- [{title}]({path}): {', '.join(_names(text))}" for path, (title, text) in found.items()]
    files.remove(files.get_file_from_path(API))  # type: ignore[arg-type]  (it is there)
    files.append(File.generated(config, API, content="\n".join([above, *rows, ""])))
    return files


def on_page_content(html: str, **context: Any) -> str:
    """A click, or a key, on a picture that stands alone opens it: on a phone it is larger than the page."""
    return re.sub(r'<p>(<img [^>]*?src="([^"]+)"[^>]*>)</p>', r'<p><a class="picture" href="\2">\1</a></p>', html)
