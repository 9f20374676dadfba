# SPDX-License-Identifier: Apache-2.0
"""``fit`` and ``compare`` on two processes of one launcher, over gloo on the CPU."""

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from convary.systems import SYSTEMS
from convary.train import read_checkpoint
from convary.train.checkpoint import SYSTEM
from convary.train.fit import fit
from tests.train.process_worker import UNREAD, StraightConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package"),
]
ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("process_worker.py")
PROCESSES = 2


def start(*command: str) -> list[int]:
    """Run a command as a launcher would; the exit codes by rank."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    usual = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    started = []
    for rank in range(PROCESSES):
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
        group |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        env = usual | {name: str(value) for name, value in group.items()}
        started.append(subprocess.Popen([sys.executable, *command], env=env, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    codes = [process.returncode for process in started]
    assert set(codes) <= {0, 130}, "\n".join(errors)
    return codes


def line(*folders: Path, stop: int = 0) -> list[int]:
    return start(str(WORKER), str(stop), *map(str, folders))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "checkpoint.pt", format=SYSTEM)["model"]


def test_two_processes_learn_what_one_learns_and_where_one_is_interrupted_all_stop_and_go_on_together(tmp_path):
    """What one cannot read stops all too, and all say the same."""
    fit(StraightConfig(out=tmp_path / "one", cpu=True))
    whole, unread, broken = (tmp_path / name for name in ("whole", "unread", "broken"))
    assert line(whole, unread, broken, stop=5) == [130, 130]
    torch.testing.assert_close(weights(tmp_path / "one"), weights(whole))
    assert read_checkpoint(broken / "checkpoint.pt", format=SYSTEM)["step"] == 5
    told = "item.jpg is broken; step 4 of 12 is saved: the same command resumes"
    assert [(unread / f"error{rank}.txt").read_text() for rank in (1, 0)] == [told, f"process 1: {told}"]
    assert read_checkpoint(unread / "checkpoint.pt", format=SYSTEM)["step"] == UNREAD - 1
    (unread / "mended").touch()
    assert line(unread, broken) == [0, 0]
    for name, want in weights(whole).items():
        assert torch.equal(weights(broken)[name], want) and torch.equal(weights(unread)[name], want)


@pytest.mark.parametrize(
    "options",
    [
        {"methods": ("static", "dyconv")},
        {"methods": ("dyconv",), "compile": True},
        {"methods": ("odconv",), "shard": True},
    ],
)
def test_compare_on_two_processes(make, options):
    config = make(epochs=1, **options)
    assert start("-m", "convary", *shlex.split(config.command())[1:]) == [0, 0]
    results = json.loads((config.out / "results.json").read_text())
    assert [entry["name"] for entry in results["methods"]] == list(options["methods"])
    assert (config.out / "report.html").is_file()


NAMES = [name for name in SYSTEMS if not name.endswith("-published")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with each system's run and what went wrong. One start of two processes serves all."""
    folder = tmp_path_factory.mktemp("systems")
    assert start(str(WORKER.with_name("system_worker.py")), str(folder), *NAMES) == [0, 0]
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_every_system_on_two_processes(name, trained):
    """Each parameter gets its gradient in every step, which DDP insists on."""
    for rank in range(PROCESSES):
        wrong = json.loads((trained / f"rank{rank}.json").read_text())[name]
        assert not wrong, wrong
    assert json.loads((trained / name / "results.json").read_text())["scores"]
