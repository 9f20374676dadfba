# SPDX-License-Identifier: Apache-2.0
"""``convary compare --shard`` (FSDP2) over two gloo processes on the CPU learns what DDP and one process learn."""

import json
import shutil
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from torch import nn

import convary as cv
from convary.errors import ConfigError
from convary.models import build
from convary.train import CompareConfig, Progress, evaluate, processes, read_checkpoint
from convary.train.arms import checkpoint_path
from tests.train.line import StopAt
from tests.train.shard_worker import run, without_norms
from tests.train.test_processes import start

sharding = pytest.importorskip("convary.train.sharding", reason="this torch has no distributed package")
WORKER = Path(__file__).with_name("shard_worker.py")
BROKEN = 5  # the step of ten at which Ctrl-C is pressed, in the first arm
NORMLESS = {"where": "all", "methods": ("kernelwarehouse:norm=layer", "condconv:experts=3", "dyconv", "static")}
ALL = {
    **NORMLESS, "methods": ("kernelwarehouse:norm=layer", "dyconv"), "optimizer": "adamw", "lr": 0.01, "ema": 0.8,
    "accumulate": 2, "clip": 0.5,
}  # fmt: skip
NORMED = {
    "model": "resnet20",
    "methods": ("odconv:experts=2", "kernelwarehouse"),
    "batch_size": 40,
    "lr": 0.01,
    "save_every": 0,
}
PARTS = ("model", "trained")


def several(test):
    """Marks a test that looks at what two processes made."""
    return pytest.mark.slow(pytest.mark.long(test))


class Made(NamedTuple):
    """A comparison: how, and the step at which one process hears Ctrl-C."""

    config: CompareConfig
    stop: int

    @property
    def normless(self) -> bool:
        return self.config.model != "resnet20"

    def contents(self) -> dict[str, dict]:
        """Of the checkpoints, by arm."""
        arms = self.config.arms()
        return {name: read_checkpoint(checkpoint_path(self.config.out, arm, 0)) for name, arm in arms.items()}


def launch(folder: Path, made: Iterable[Made]) -> None:
    """Make comparisons on two processes."""
    plan = [{"config": one.config.to_dict(), "stop": one.stop, "normless": one.normless} for one in made]
    (folder / "plan.json").write_text(json.dumps(plan))
    assert start(str(WORKER), str(folder)) == [0, 0]


SETS = {"": NORMLESS, " all": ALL, " normed": NORMED}


@pytest.fixture(scope="module")
def runs(make_for, tmp_path_factory):
    """Checkpoints by run and arm. Three starts of two processes serve all: anew, resumed, and in bf16."""
    folder, found = tmp_path_factory.mktemp("shard"), {}

    def made(name, options, stop=0, **more):
        usual = {"measure_seconds": 0, "epochs": 1}
        found[name] = Made(make_for(folder / name, **usual | options | more), stop)
        return found[name]

    def copied(name, how, **more):
        shutil.copytree(folder / name, folder / f"{name}-{how}")
        return made(f"{name}-{how}", ALL, **more)

    run(made("one", NORMLESS).config, Progress(), True)
    with pytest.raises(KeyboardInterrupt):
        run(made("broken one", ALL, BROKEN).config, StopAt(BROKEN), True)
    both = {"ddp": {}, "shard": {"shard": True}}
    anew = [made(f"{how}{name}", options, **more) for how, more in both.items() for name, options in SETS.items()]
    launch(folder, [*anew, *(made(f"broken {how}", ALL, BROKEN, **more) for how, more in both.items())])
    resumed = [copied(name, "shard", shard=True) for name in ("broken one", "broken ddp", "broken shard")]
    launch(folder, [*resumed, copied("broken shard", "ddp")])
    run(copied("broken shard", "one").config, Progress(), True)
    launch(folder, [made(f"{how} bf16", NORMLESS, precision="bf16", **more) for how, more in both.items()])
    contents = {name: one.contents() for name, one in found.items() if not one.stop}
    shares = [json.loads((folder / f"shares{rank}.json").read_text()) for rank in range(2)]
    return contents | {"shares": shares, "out": {name: one.config.out for name, one in found.items()}}


def assert_close(one, other, **tolerance):
    assert one.keys() == other.keys()
    for arm, content in one.items():
        for part in PARTS if "trained" in content else PARTS[:1]:
            assert content[part].keys() == other[arm][part].keys()
            for name, want in content[part].items():
                torch.testing.assert_close(
                    other[arm][part][name], want, **tolerance, msg=lambda m, at=(arm, name): f"{at}: {m}"
                )


@several
@pytest.mark.parametrize("how", ["ddp", "shard"])
def test_two_processes_learn_what_one_learns(how, runs):
    assert_close(runs["one"], runs[how])


@several
def test_with_batch_norms_it_learns_what_ddp_learns(runs):
    assert_close(runs["ddp normed"], runs["shard normed"], rtol=1e-4, atol=1e-4)


@several
def test_in_bf16_it_learns_what_ddp_learns(runs):
    assert_close(runs["ddp bf16"], runs["shard bf16"])
    name = "6.weight"
    assert not torch.allclose(
        runs["shard bf16"]["static"]["model"][name], runs["one"]["static"]["model"][name], atol=1e-4
    )


@several
def test_interrupted_and_resumed_in_shares_it_ends_the_same_bit_for_bit(runs):
    for arm, want in runs["shard all"].items():
        content = runs["broken shard-shard"][arm]
        assert all(torch.equal(value, content[part][name]) for part in PARTS for name, value in want[part].items())
        for number, state in want["optimizer"]["state"].items():
            found = content["optimizer"]["state"][number]
            assert all(torch.equal(value, found[name]) for name, value in state.items())


@several
def test_each_process_has_its_share(runs):
    (first, whole), (second, _) = runs["shares"]
    assert first + second == whole
    assert max(first, second) < 0.6 * whole


@several
@pytest.mark.parametrize("how", ["shard normed", "shard all", "ddp normed"])
def test_what_both_processes_scored_is_the_network_that_is_kept(how, runs):
    for arm, content in runs[how].items():
        [path] = runs["out"][how].glob(f"{arm.split(':')[0]}*/seed-0/checkpoint.pt")
        scores = content["curve"][-1]["scores"]
        kept = score_of(path, how)
        assert kept.top1 == scores["top1"] and kept.loss == pytest.approx(scores["loss"], rel=1e-5)


def score_of(path, how):
    with mock.patch("convary.models.architecture.build", without_norms) if how == "shard all" else nullcontext():
        return evaluate(path)


@several
def test_averages_accumulation_and_clipping_are_those_of_ddp(runs):
    assert_close(runs["ddp all"], runs["shard all"], rtol=1e-3, atol=2e-4)


@several
@pytest.mark.parametrize("how", ["broken one-shard", "broken ddp-shard", "broken shard-ddp", "broken shard-one"])
def test_either_resumes_what_the_other_began(how, runs):
    """Adam divides by small gradients, whose rounding it makes large."""
    assert_close(runs["shard all"], runs[how], rtol=1e-3, atol=2e-4)


@several
@pytest.mark.parametrize("name", SETS)
def test_checkpoints_are_those_of_a_training_without_shares(name, runs):
    for arm, want in runs[f"ddp{name}"].items():
        found = runs[f"shard{name}"][arm]
        assert list(found) == list(want)
        assert found["optimizer"]["param_groups"] == want["optimizer"]["param_groups"]
        for one, other in (
            (want["model"], found["model"]),
            *zip(*(c["optimizer"]["state"].values() for c in (want, found)), strict=True),
        ):
            assert {n: form(v) for n, v in one.items()} == {n: form(v) for n, v in other.items()}
        assert storages(found["model"]) == storages(want["model"]), "a shared weight is one"


def form(tensor):
    return type(tensor), tensor.dtype, tensor.shape, tensor.stride(), tensor.device


def storages(state):
    return len({tensor.untyped_storage().data_ptr() for tensor in state.values()})


def test_blocks_that_share_a_weight_are_no_group_of_their_own():
    net = build("resnet20", 3)
    assert len(sharding.blocks(net)) == 9
    assert len(sharding.blocks(cv.convert(net, cv.KernelWarehouse(), upcycle=False))) == 1
    inner = nn.Sequential(build("resnet20", 3))
    assert all(type(block).__name__ == "BasicBlock" for block in sharding.blocks(inner))


def test_one_process_has_nothing_to_share():
    with pytest.raises(ConfigError, match="got 1 process.*torchrun.*leave out --shard"):
        processes.start(cpu=True, shard=True)


@pytest.mark.parametrize("options", [{"compile": True}, {"channels_last": True}, {"precision": "fp16"}])
def test_what_shares_do_not_go_with(options):
    [name] = options
    with pytest.raises(ConfigError, match=f"shard trains .*{name}"):
        CompareConfig(shard=True, **options)


@pytest.mark.parametrize(
    ("shape", "told"), [((), "is a single number"), ((4, 3), r"lies in memory with strides \(1, 4\)")]
)
def test_parameters_that_torch_cannot_share_out(shape, told):
    net = nn.Linear(3, 4)
    net.odd = nn.Parameter(torch.zeros(shape[::-1]).T if shape else torch.zeros(()))
    with pytest.raises(ConfigError, match=f"odd {told}.*leave out --shard"):
        sharding.Sharded(net, SimpleNamespace(device=torch.device("cpu"), num_processes=2))


def test_it_does_not_decide_the_result():
    assert CompareConfig(shard=True).identity() == CompareConfig().identity()
    assert "--shard" in CompareConfig(shard=True).command()
