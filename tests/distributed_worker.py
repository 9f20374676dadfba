# SPDX-License-Identifier: Apache-2.0
"""One of two processes of tests/test_distributed.py: trains every method with DDP and FSDP2 over gloo on the CPU.

Both compute what a single process would get, the mean of the gradients of the two batches, and compare.
"""

import copy
import datetime
import json
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import convary as cv
from convary.nn import DynamicLayer, Router
from tests.nets import dynamic_net

WORLD = 2


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()


def wanted_gradients(model: nn.Module, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    alone = copy.deepcopy(model)
    for batch in batches:
        (loss(alone, batch) / len(batches)).backward()
    return {name: p.grad for name, p in alone.named_parameters()}


def train_ddp(model: nn.Module, batches: list[torch.Tensor], rank: int) -> None:
    replica = DistributedDataParallel(copy.deepcopy(model))
    tempered = [m for m in replica.modules() if isinstance(m, Router) and m.temperature is not None]
    warm = tempered[0].first_temperature / 4 if tempered else 0.0
    if tempered and rank == 0:
        cv.set_temperature(replica, warm)  # DDP sends buffers out: the others follow
        cv.set_temperature(model, warm)
    elif tempered:
        cv.set_temperature(model, warm)
    loss(replica, batches[rank]).backward()
    for name, want in wanted_gradients(model, batches).items():
        torch.testing.assert_close(replica.module.get_parameter(name).grad, want, rtol=1e-4, atol=1e-5)
    assert all(float(router.temperature) == warm for router in tempered)


def train_fsdp(model: nn.Module, batches: list[torch.Tensor], rank: int) -> None:
    want = wanted_gradients(model, batches)
    mesh = init_device_mesh("cpu", (WORLD,))
    sharded = copy.deepcopy(model)
    weights = [m.weight for m in model.modules() if isinstance(m, DynamicLayer)]
    if len(set(weights)) == len(weights):  # blocks that share weights (KernelWarehouse) are one group with the whole
        for block in sharded.features:
            fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    optimizer = torch.optim.SGD(sharded.parameters(), lr=0.1)
    loss(sharded, batches[rank]).backward()
    for name, p in sharded.named_parameters():
        torch.testing.assert_close(p.grad.full_tensor(), want[name], rtol=1e-4, atol=1e-5)
    optimizer.step()
    for name, p in sharded.named_parameters():
        stepped = model.get_parameter(name) - 0.1 * want[name]
        torch.testing.assert_close(p.full_tensor(), stepped.detach(), rtol=1e-4, atol=1e-5)


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=WORLD,
        timeout=datetime.timedelta(seconds=120),
    )  # fmt: skip
    configs = {config.name: config() for config in cv.METHODS} | {"condconv-block": cv.CondConv(router="block")}
    outcome = {}
    for name, config in configs.items():
        for how in (train_ddp, train_fsdp):
            torch.manual_seed(0)
            model = dynamic_net(config).train()
            batches = [torch.randn(4, 3, 16, 16) for _ in range(WORLD)]
            try:
                how(model, batches, rank)
                outcome[f"{name}/{how.__name__}"] = ""
            except Exception:
                outcome[f"{name}/{how.__name__}"] = traceback.format_exc()
            dist.barrier()
    (folder / f"rank{rank}.json").write_text(json.dumps(outcome))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
