# SPDX-License-Identifier: Apache-2.0
"""Every example runs, on few images, and says what it should."""

import runpy
import sys
from pathlib import Path

import pytest

from convary import METHODS
from tests.nets import all_but_one_slow

EXAMPLES = Path(__file__).parent.parent / "examples"
FEW = ["--epochs", "1", "--images", "640"]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run an example in an empty folder; what it printed."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_run_here():
    text = "".join(path.read_text() for path in (Path(__file__), *Path(__file__).parent.glob("examples/*.py")))
    assert all(path.stem in text for path in EXAMPLES.glob("*.py"))


@all_but_one_slow()
def test_plain_loop(config, run):
    out = run("train.py", "--method", config.name, *FEW)
    assert "epoch 1: loss" in out and "top-1:" in out and "features" in out


def test_accelerate(run):
    pytest.importorskip("accelerate")
    assert "step 10, temperature 1\n" in run("accelerate_train.py", *FEW)


def test_lightning(run):
    pytest.importorskip("lightning")
    assert "step 10, temperature 1\n" in run("lightning_train.py", *FEW)


@pytest.mark.parametrize("config", METHODS, ids=lambda c: c.name)
def test_a_detector_measures_its_strides(config, run):
    out = run("detector.py", "--method", config.name)
    assert out.count("strides [4, 8, 16]") == 2
