# SPDX-License-Identifier: Apache-2.0
"""Failures that were found with real programs and public bug reports, kept as the scripts that showed them.

Each exits 0 where the behaviour that its first line asks for is there, and says on one line what it saw.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).with_name("field_runner.py")
SCRIPTS = sorted((Path(__file__).parent / "field").glob("*/*.py"))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Of every script its exit code and what it said. One process starts them all: torch takes seconds to import."""
    folder = tmp_path_factory.mktemp("field")
    env = {**os.environ, "TMPDIR": str(folder), "YOLO_CONFIG_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, RUNNER, folder, *SCRIPTS]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_script(script, outcomes):
    code, said = outcomes[str(script)]
    assert code == 0, f"{script.read_text().splitlines()[0]}\n{said[-3000:]}"


def test_all_scripts_are_there():
    assert len(SCRIPTS) >= 26
