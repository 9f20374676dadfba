# SPDX-License-Identifier: Apache-2.0
"""The table of exported files: its smallest line is right and is timed."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "exported.py"


@pytest.mark.slow
def test_the_smallest_line():
    pytest.importorskip("onnxruntime")
    words = "--models mobilenet_v2_tiny --methods condconv --size 32 --seconds 0.2 --runtimes onnxruntime".split()
    command = [sys.executable, str(SCRIPT), *words, "onnxruntime alone"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    head, _, *rows, machine = told
    assert [row.split("|")[3].strip() for row in rows] == ["eager torch", "onnxruntime", "onnxruntime alone"]
    assert all(row.count("|") == head.count("|") for row in rows) and "WRONG" not in "".join(rows)
    assert machine.startswith("load ")
