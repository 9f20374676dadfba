# SPDX-License-Identifier: Apache-2.0
"""Failures that were found with real programs and public bug reports, kept as the scripts that showed them.

Each exits 0 where the behaviour that its first line asks for is there, and says on one line what it saw.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parent / "field").glob("*/*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_script(script, tmp_path):
    env = {**os.environ, "TMPDIR": str(tmp_path), "YOLO_CONFIG_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{script.read_text().splitlines()[0]}\n{done.stdout}\n{done.stderr[-3000:]}"


def test_all_scripts_are_there():
    assert len(SCRIPTS) >= 26
