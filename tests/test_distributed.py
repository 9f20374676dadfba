# SPDX-License-Identifier: Apache-2.0
"""DDP and FSDP2 over two gloo processes give the gradients of one process, for every method."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from convary import METHODS

pytestmark = [
    pytest.mark.slow,  # two processes; tests/test_gradients.py has one
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package"),
]
WORKER = Path(__file__).with_name("distributed_worker.py")
CONFIGS = [*METHODS, "condconv-block"]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: getattr(c, "name", c))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> list[dict[str, str]]:
    """By rank: an empty text or a traceback for each method and way. One start of two processes serves all tests."""
    folder = tmp_path_factory.mktemp("distributed")
    root = WORKER.parent.parent
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}"}
    workers = [
        subprocess.Popen([sys.executable, str(WORKER), str(rank), str(folder)], env=env, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=300)[1].decode() for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), "\n".join(errors)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.support("DDP")
@every_config
def test_ddp(config, outcomes):
    for outcome in outcomes:
        assert not outcome[f"{getattr(config, 'name', config)}/train_ddp"]


@every_config
def test_fully_shard(config, outcomes):
    for outcome in outcomes:
        assert not outcome[f"{getattr(config, 'name', config)}/train_fsdp"]
