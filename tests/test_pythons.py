# SPDX-License-Identifier: Apache-2.0
"""The Pythons that convary says it supports: stated alike everywhere, and each file is written for the oldest."""

import ast
import re
from importlib.metadata import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
OLDEST = (3, 10)


def test_stated_alike():
    about = metadata("convary")
    said = [
        line.rpartition(" ")[2] for line in about.get_all("Classifier") or () if re.search(r"Python :: 3\.\d", line)
    ]
    assert about["Requires-Python"] == f">={said[0]}" == ">={}.{}".format(*OLDEST)
    assert said == [f"3.{minor}" for minor in range(OLDEST[1], 15)]
    if (workflow := ROOT / ".github" / "workflows" / "wheels.yml").exists():  # the sdist has none
        (tried,) = re.findall(r"python: (\[.*\])", workflow.read_text(encoding="utf-8"))
        assert ast.literal_eval(tried) == said


def test_written_for_the_oldest():
    """Its grammar; library calls that came later are found only by running on it, as the workflow does."""
    folders = ("src", "tests", "scripts", "examples", "benchmarks", "studies")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 300
    for file in files:
        ast.parse(file.read_text(encoding="utf-8"), str(file), feature_version=OLDEST)
