# SPDX-License-Identifier: Apache-2.0
"""Published trainings: what they set, what overrides them, what they do to a network."""

import dataclasses
import os
import shlex
import signal

import pytest
import torch
from torch import nn

import convary as cv
from convary._cli.parse import parse
from convary.errors import ConfigError
from convary.models import build
from convary.papers import TABLES, Published, Row, Source, Table
from convary.train import CompareConfig, Progress, compare, evaluate, load_model
from convary.train.arms import checkpoint_path, read_arm
from convary.train.classification import learning_rate, make_optimizer
from convary.train.dropout import drop_features
from convary.train.recipes import RECIPES
from convary.train.reproduce import arm_name, obstacle, plan, train


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_every_recipe_makes_a_config(recipe):
    config = CompareConfig.from_recipe(recipe.name)
    assert {name: getattr(config, name) for name in recipe.options()} == recipe.options()
    assert config.training() == recipe.name
    assert shlex.split(config.command()).count("--recipe") == 1 and "--epochs" in config.command()
    assert set(recipe.recalled) <= {field.name for field in dataclasses.fields(recipe)}
    assert recipe.source


def test_the_resnets_of_odconv_train_as_their_readme_says():
    config = CompareConfig.from_recipe("odconv-resnet")
    assert (config.epochs, config.batch_size, config.lr, config.milestones) == (100, 256, (0.1,), (30, 60, 90))
    assert (config.weight_decay, config.dropout, config.anneal_epochs) == (1e-4, 0.2, 10)
    assert (config.optimizer, config.nesterov, config.clip, config.decay) == ("sgd", False, None, "all")
    assert config.annealing_epochs(read_arm("odconv")) == 10 and config.annealing_epochs(read_arm("static")) is None


def test_a_command_line_overrides_the_recipe_and_says_so():
    config = CompareConfig.from_recipe("odconv-resnet", epochs=30, milestones=(10, 20), crops=False, lr=0.2)
    assert config.training() == (
        "odconv-resnet; epochs 30 instead of 100; milestones 10 20 instead of 30 60 90; crops False instead of "
        "True; lr 0.2 instead of 0.1"
    )
    words = shlex.split(config.command())[2:]
    assert words[words.index("--milestones") + 1 :][:2] == ["10", "20"] and "--dropout" not in words
    again = parse(CompareConfig, words, "convary compare", default=CompareConfig.from_recipe("odconv-resnet"))
    assert again == config


def test_a_run_from_before_there_were_recipes_is_still_the_same_run():
    usual = CompareConfig()
    assert not set(CompareConfig.later) & set(usual.identity()) and set(CompareConfig.later) < set(usual.to_dict())
    changed = dataclasses.replace(usual, dropout=0.1, nesterov=False)
    assert set(changed.identity()) - set(usual.identity()) == {"dropout", "nesterov"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "odconv-resnt"}, "did you mean 'odconv-resnet'"),
        ({"milestones": (20, 10)}, "rising order"),
        ({"milestones": (0,)}, "rising order"),
        ({"dropout": 1.0}, "below 1"),
        ({"decay": "all", "init": "upcycle"}, "start anew"),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(ConfigError, match=message):
        CompareConfig(**options)


def test_kernelwarehouse_trains_as_its_configs_say():
    config = CompareConfig.from_recipe("kernelwarehouse-convnext")
    assert (config.mixup, config.cutmix, config.erasing, config.rand_augment) == (
        0.8,
        1.0,
        0.25,
        "rand-m9-mstd0.5-inc1",
    )
    assert (config.crops, config.interpolation, config.stochastic_depth, config.ema) == (True, "bicubic", 0.3, 0.9999)
    assert CompareConfig.from_recipe("kernelwarehouse-resnet-quarter").mixup == 0


def test_a_factor_falls_again_and_again_after_the_warm_up():
    rates = [learning_rate(step, 100, 1.0, 0.1, (), (0.5, 8)) for step in (4, 9, 15, 16, 24)]
    assert rates == pytest.approx([0.5, 0.5, 0.5, 0.25, 0.125])


def test_steps_fall_tenfold_and_a_warm_up_stays():
    assert learning_rate(0, 100, 1.0, 0.1, (50,)) == 0.1
    assert learning_rate(49, 100, 1.0, 0.1, (50,)) == 1.0
    assert learning_rate(50, 100, 1.0, 0.1, (50,)) == pytest.approx(0.1)


def dropped(model: nn.Module, x: torch.Tensor) -> bool:
    """Whether two passes give other scores, while nothing but dropout trains."""
    model.eval()
    assert torch.equal(model(x), model(x))
    for module in model.modules():
        module.training = isinstance(module, (nn.Dropout, nn.Linear, cv.MixedLinear))
    return not torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v2", "resnet20", "torchvision:resnet18"])
@pytest.mark.parametrize("p", [0.5, 0.0])
def test_features_are_dropped_before_the_classifier_while_training(name, p):
    model = build(name, 10)
    names = [name for name, _ in model.named_parameters()]
    drop_features(model, p)
    assert [name for name, _ in model.named_parameters()] == names
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [p] * ("mobilenet" in name)
    assert dropped(model, torch.randn(4, 3, 32, 32)) == (p > 0)


def test_features_are_dropped_before_a_dynamic_classifier():
    model = cv.convert(build("resnet20", 10), cv.CondConv(experts=2), upcycle=False)
    drop_features(model, 0.5)
    assert [name for name, m in model.named_modules() if m._forward_pre_hooks] == ["fc"]
    assert isinstance(model.fc, cv.MixedLinear) and dropped(model, torch.randn(4, 3, 32, 32))


def test_a_network_without_a_linear_layer_has_no_features_to_drop():
    with pytest.raises(ConfigError, match="no linear layer"):
        drop_features(nn.Sequential(nn.Conv2d(1, 1, 1)), 0.1)


@pytest.mark.parametrize("decay", ["kernels", "weights", "all"])
def test_what_decays(decay):
    model = cv.convert(build("resnet20", 10), cv.DyConv(), upcycle=False)
    config = CompareConfig(optimizer="sgd", weight_decay=0.1, decay=decay, nesterov=False)
    optimizer = make_optimizer(model, config, 0.1, "paper")
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    everything = {name for name, _ in model.named_parameters()}
    routers = {name for name in everything if ".router." in name and name.endswith("weight")}
    assert routers and (routers <= names) == (decay != "kernels")
    assert (names == everything) == (decay == "all")
    assert ("fc.bias" in names) == (decay == "all")
    assert not optimizer.param_groups[0]["nesterov"]


class StopAt(Progress):
    """Presses Ctrl-C at a step."""

    def on_step(self, run, step):
        if step.step == 13:
            os.kill(os.getpid(), signal.SIGINT)


def test_dropout_and_steps_resume_bit_for_bit(make, tmp_path):
    options = {"model": "resnet20@0.25", "dropout": 0.5, "milestones": (1,), "decay": "all", "nesterov": False}
    whole = compare(make(out=tmp_path / "whole", **options))
    with pytest.raises(KeyboardInterrupt):
        compare(make(out=tmp_path / "cut", **options), StopAt())
    resumed = compare(make(out=tmp_path / "cut", **options))
    curves = [results["methods"][0]["seeds"][0]["curve"] for results in (whole, resumed)]
    for curve in curves:
        for point in curve:
            point["seconds"] = point["cpu_seconds"] = 0
    assert curves[0] == curves[1]
    assert [point["lr"] for point in curves[0]] == [pytest.approx(0.1), pytest.approx(0.01)]
    usual = compare(make(out=tmp_path / "usual", model="resnet20@0.25"))
    assert usual["methods"][0]["seeds"][0]["curve"][0]["train_loss"] != curves[0][0]["train_loss"]


TRAINED = [(table, row) for table in TABLES for row in table.rows if not obstacle(row) and row.method]


@pytest.mark.parametrize(("table", "row"), TRAINED, ids=lambda v: v.name)
def test_compare_trains_the_method_of_the_row(table, row):
    assert read_arm(arm_name(row.method)).method == row.method


def test_rows_of_one_network_and_recipe_are_one_comparison(tmp_path):
    table = next(table for table in TABLES if table.name == "odconv-resnet")
    planned = plan([table], tmp_path, data="fashion-mnist-mini", epochs=12)
    assert [group.config.methods for group in planned.groups] == [
        ("static", "odconv:experts=1", "odconv"), ("static", "odconv:experts=1", "odconv"),
        ("static", "odconv:experts=1", "odconv:experts=2"),
    ]  # fmt: skip
    assert len({group.config.out for group in planned.groups}) == 3 and not planned.left_out
    assert all(group.config.epochs == 12 and group.config.crops for group in planned.groups)


def test_rows_that_cannot_be_trained_are_named(tmp_path):
    by_name = {table.name: table for table in TABLES}
    with pytest.raises(ConfigError, match=r"fcn: a segmenter, whose layers the paper does not list"):
        plan([by_name["dynet-cityscapes"]], tmp_path)
    mobile = by_name["kernelwarehouse-mobilenetv2"]
    assert plan([mobile], tmp_path).left_out[mobile.name, "mobilenetv2-1.0-1/2x"].startswith("three conversions")


def test_rows_without_a_recipe_of_their_own_are_trained_by_another_one(tmp_path):
    table = next(table for table in TABLES if table.name == "dyconv-imagenet").select(
        ("mobilenetv2-0.5-4x", "resnet10")
    )
    unread = dataclasses.replace(table.rows[0], name="unread", recipe=None, untrained="not read")
    table = dataclasses.replace(table, rows=(*table.rows, unread))
    planned = plan([table], tmp_path)
    assert planned.left_out[table.name, "unread"] == "not read; --recipe NAME trains it by another paper's"
    planned = plan([table], tmp_path, "odconv-mobilenetv2")
    assert [group.config.recipe for group in planned.groups] == ["dyconv-mobilenetv2-0.5", "odconv-mobilenetv2"]
    assert list(planned.left_out) == [(table.name, "resnet10")]
    with pytest.raises(ConfigError, match="did you mean 'odconv-resnet'"):
        plan([table], tmp_path, "odconv-resnt")


def test_constant_temperatures_stay_where_they_are(make):
    options = {"model": "resnet20@0.25", "methods": ("dyconv:temperature=5",), "epochs": 1}
    [method] = compare(make(anneal_epochs=0, **options))["methods"]
    assert [point["temperature"] for point in method["seeds"][0]["curve"]] == [5]


def test_condconvs_efficientnets_train_as_the_released_flags_say(tmp_path):
    table = next(table for table in TABLES if table.name == "condconv-efficientnet")
    groups = {group.config.recipe: group.config for group in plan([table], tmp_path, data="folder:images").groups}
    assert {name: config.image_size for name, config in groups.items()} == {
        "condconv-efficientnet-static": 224, "condconv-efficientnet": 224, "condconv-efficientnet-b1": 240
    }  # fmt: skip
    config = groups["condconv-efficientnet"]
    assert (config.epochs, config.batch_size, config.exponential, config.warmup) == (350, 2048, (0.97, 2.4), 5 / 350)
    assert config.lr == (pytest.approx(0.016 * 2048 / 256),)
    optimizer = make_optimizer(build("resnet20@0.25", 10), config, config.lr[0], "paper")
    group = optimizer.param_groups[0]
    assert (group["alpha"], group["momentum"], group["eps"], group["weight_decay"]) == (0.9, 0.9, 1e-3, 1e-5)
    assert "--exponential 0.97 2.4" not in config.command() and config.training() == config.recipe


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"exponential": (0.97, 2.4), "milestones": (3,)}, "both say how lr falls"),
        ({"exponential": (1.1, 2.4)}, "a factor up to 1"),
        ({"classifier_bias": False, "weights": "pretrained"}, "leave out --no-classifier-bias"),
    ],
)
def test_options_that_do_not_go_together(given, message):
    with pytest.raises(ConfigError, match=message):
        CompareConfig(**given)


def test_a_classifier_without_a_bias_is_trained_and_read_again(make):
    config = make(model="resnet20@0.25", methods=("static", "condconv"), epochs=1, classifier_bias=False)
    compare(config)
    for arm in config.arms().values():
        path = checkpoint_path(config.out, arm, 0)
        assert load_model(path).fc.bias is None and 0 <= evaluate(path).top1 <= 100


def test_training_rows_gives_what_was_reached(make, tmp_path):
    row = Row(name="small", title="small", network="convnet_nano", where="all & ~first", recipe="odconv-resnet")
    rows = (row, dataclasses.replace(row, name="small-1x", method=cv.ODConv(experts=1), published=Published(top1="9")))
    table = Table(name="t", title="t", source=Source(paper="p", place="q", url="https://x"), rows=rows)
    given = {name: getattr(make(), name) for name in ("data", "image_size", "threads", "cpu", "measure_seconds")}
    given |= {"epochs": 2, "batch_size": 8, "anneal_epochs": 1}
    planned = plan([table], tmp_path, **given)
    reached = train(planned.groups)
    assert set(reached) == {("t", "small"), ("t", "small-1x")}
    for found in reached.values():
        assert 0 <= found["top1"] <= 100 and found["std"] is None
        assert found["training"].startswith("odconv-resnet; epochs 2 instead of 100; batch_size 8 instead of 256")
    results = compare(planned.groups[0].config)  # is only read
    assert results["run"]["recipe"] == "odconv-resnet" and results["run"]["training"] == found["training"]
    assert train(plan([table], tmp_path, **given).groups) == reached
