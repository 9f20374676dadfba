# SPDX-License-Identifier: Apache-2.0
"""Write the table of methods and tools into docs/guides/deploy.md, every cell from the tests that are marked for it.

    python scripts/support_table.py

A test marked ``@pytest.mark.support("int8")`` and parametrised by ``config`` speaks for the cell of that method and
column; a cell says yes where there is such a test and all of them passed, no where one was skipped, or met a limit
that it expects and says so with ``record_property("support", "no")``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from convary import METHODS

PAGE = Path(__file__).parent.parent / "docs" / "guides" / "deploy.md"
BEGIN, END = "<!-- support: begin -->", "<!-- support: end -->"
COLUMNS = (
    "compile", "export", "onnxruntime", "autocast", "DDP", "int8", "trace",
    "TorchScript ONNX", "OpenVINO", "OpenCV", "Core ML", "ncnn",
)  # fmt: skip
LIMIT = ("support", "no")


class Recorder:
    """A pytest plugin: which cell a test speaks for, and what it said."""

    def __init__(self) -> None:
        self.cells: dict[str, tuple[str, str]] = {}
        self.passed: dict[tuple[str, str], bool] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note the cell of every marked test."""
        for item in items:
            config = getattr(item, "callspec", None) and item.callspec.params.get("config")
            for mark in item.iter_markers("support"):
                self.cells[item.nodeid] = (getattr(config, "name", str(config)), mark.args[0])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A cell holds while nothing failed, was skipped or met a known limit, and at least one test ran."""
        cell = self.cells.get(report.nodeid)
        if cell is not None and (report.when == "call" or report.failed or report.skipped):
            self.passed[cell] = self.passed.get(cell, True) and report.passed and LIMIT not in report.user_properties


def table(passed: dict[tuple[str, str], bool]) -> str:
    """Markdown: a row per method, a column per tool."""
    lines = ["| method | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    words = {True: "yes", False: "no", None: "untested"}
    for config in METHODS:
        cells = [words[passed.get((config.name, column))] for column in COLUMNS]
        lines.append(f"| {config.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the marked tests and write the table; 1 where a test failed or a cell has none."""
    recorder = Recorder()
    failed = pytest.main(["-q", "-m", "support", "-p", "no:cacheprovider", "tests"], plugins=[recorder])
    made = table(recorder.passed)
    head, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}")
    print(made)
    return int(bool(failed) or "untested" in made.split())


if __name__ == "__main__":
    sys.exit(main())
