# SPDX-License-Identifier: Apache-2.0
"""mypy and pyright see convary's types in a program that uses an installed one; see typed_program.py."""

import json
import re
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import convary as cv

PROGRAM = Path(__file__).parent / "typed_program.py"


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """A Python in which convary and torch are installed, whatever way they came here (an editable convary hides)."""
    home = tmp_path_factory.mktemp("client")
    venv.create(home, with_pip=False)
    found = next(path for path in (home / "bin/python", home / "Scripts/python.exe") if path.exists())
    (packages,) = {*home.glob("lib/python*/site-packages"), *home.glob("Lib/site-packages")}
    places = [Path(module.__file__).parent.parent for module in (cv, torch)]
    (packages / "installed.pth").write_text("\n".join(map(str, places)), encoding="utf-8")
    return found


def mypy(python: Path, tmp_path: Path) -> dict[int, str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "--cache-dir", tmp_path]
    done = subprocess.run([*command, PROGRAM], capture_output=True, text=True, cwd=tmp_path)
    return {
        int(line): text for line, text in re.findall(r"^\S*typed_program\.py:(\d+): error: (.*)", done.stdout, re.M)
    }


def pyright(python: Path, tmp_path: Path) -> dict[int, str]:
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", python]
    (tmp_path / "program.py").write_text(PROGRAM.read_text(encoding="utf-8"), encoding="utf-8")
    done = subprocess.run([*command, "program.py"], capture_output=True, text=True, cwd=tmp_path)
    found = json.loads(done.stdout)["generalDiagnostics"]
    return {e["range"]["start"]["line"] + 1: e["message"] for e in found if e["severity"] == "error"}


@pytest.mark.slow
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_right_uses_pass_and_wrong_ones_are_found(checker: Callable, python, tmp_path):
    if find_spec(checker.__name__) is None:
        pytest.skip(f"needs {checker.__name__}")
    lines = PROGRAM.read_text(encoding="utf-8").splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    found = checker(python, tmp_path)
    assert {number: text for number, text in found.items() if number not in wrong} == {}
    assert [lines[number - 1].strip() for number in sorted(wrong - set(found))] == []
