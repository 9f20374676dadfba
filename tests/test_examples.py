# SPDX-License-Identifier: Apache-2.0
"""Every example runs, on few images, and says what it should."""

import json
import os
import runpy
import shutil
import socket
import subprocess
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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None or os.name == "nt", reason="a script for bash")
def test_slurm_starts_a_process_for_each_gpu(tmp_path):
    """With Slurm's commands and torchrun stood in for, on two processes of a CPU."""
    commands = {
        "srun": 'exec "$@"',
        "scontrol": "echo localhost; echo other",
        "torchrun": f'echo "$@" >> "{tmp_path}/torchrun"; exec "{sys.executable}" -m torch.distributed.run "$@"',
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    job = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": "7"}
    paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path), "PORT": port}
    words = ("--methods", "static", "--model", "convnet_nano", "--epochs", "1", "--limit-train", "320", "--cpu")
    words += ("--measure-seconds", "0", "--out", str(tmp_path / "run"))
    command = ["bash", str(EXAMPLES / "slurm.sh"), "compare", *words]
    done = subprocess.run(command, env=os.environ | job | paths, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "--nproc-per-node 2" in (tmp_path / "torchrun").read_text()
    assert f"--rdzv-endpoint localhost:{port}" in (tmp_path / "torchrun").read_text()
    assert json.loads((tmp_path / "run" / "results.json").read_text())["methods"][0]["name"] == "static"
