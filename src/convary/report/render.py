# SPDX-License-Identifier: Apache-2.0
"""Templates to HTML: escaping on, the looks of the networks at hand, styles and script inside."""

from __future__ import annotations

from typing import Any

from convary.report.style import Look, css_variables


def render(template: str, look: dict[str, Look], **content: Any) -> str:
    """A page.

    Args:
        template: Its file.
        look: By the names of the networks.
        content: What the template wants.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("convary.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["look"] = look
    return environment.get_template(template).render(css_variables=css_variables(), **content)
