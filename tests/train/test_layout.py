# SPDX-License-Identifier: Apache-2.0
"""Compiled trainings, norms over processes, and what a launcher may not ask for."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import convary as cv
from convary.errors import ConfigError
from convary.models import build
from convary.train import compare, processes
from convary.train.layout import not_compiled, synchronised
from tests.processes import python


def processes_of(number: int, device: str) -> SimpleNamespace:
    return SimpleNamespace(num_processes=number, device=torch.device(device))


def dynamic() -> nn.Module:
    return cv.convert(build("convnet_nano", 3), cv.ODConv(), cv.where.all() & ~cv.where.first(), upcycle=False)


def test_norms_of_routers_and_network_are_synchronised():
    net, before = dynamic(), dynamic()
    found = synchronised(net, processes_of(2, "cuda"))
    norms = [module for module in found.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > sum(isinstance(module, nn.BatchNorm2d) for module in build("convnet_nano", 3).modules())
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert found.state_dict().keys() == before.state_dict().keys()


def test_alone_norms_stay_and_on_a_cpu_they_are_refused():
    net = dynamic()
    assert synchronised(net, processes_of(1, "cpu")) is net
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in net.modules())
    with pytest.raises(ConfigError, match="leave out --sync-norms"):
        synchronised(net, processes_of(2, "cpu"))


@pytest.mark.slow
def test_compiled_it_learns_the_same_to_rounding(make_for, tmp_path):
    usual = {"methods": ("dyconv",), "epochs": 1, "measure_seconds": 0}
    torch._dynamo.utils.counters.clear()
    plain, whole = (compare(make_for(tmp_path / str(on), **usual, compile=on)) for on in (False, True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    one, other = (found["methods"][0]["seeds"][0]["curve"][-1] for found in (plain, whole))
    assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)


def test_only_errors_of_the_compiler_are_told_as_such():
    import torch._dynamo.exc

    told = not_compiled(torch._dynamo.exc.TorchDynamoException("\nno compiler\nand more"))
    assert str(told) == "torch.compile can't compile this network here: no compiler; leave out --compile"
    assert not_compiled(RuntimeError("shapes")) is None


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("ACCELERATE_USE_FSDP", "true", "compare and reproduce have --shard"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "compare and reproduce have --shard"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "compare and reproduce have --shard"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "--accumulate"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "--compile"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "--precision bf16"),
    ],
)
def test_what_a_launcher_asks_for_is_not_ignored(monkeypatch, name, value, instead):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=instead):
        processes.start(cpu=True)


def test_what_a_launcher_always_sets_is_nothing():
    code = "from convary.train import processes; print(processes.start(cpu=True, precision='bf16').mixed_precision)"
    usual = {"ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_USE_FSDP": "false", "ACCELERATE_MIXED_PRECISION": "bf16"}
    assert python(code, **usual, ACCELERATE_GRADIENT_ACCUMULATION_STEPS="1") == "bf16"
