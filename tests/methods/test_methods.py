# SPDX-License-Identifier: Apache-2.0
"""What is particular to each method, beside the contract and the golden vectors."""

import dataclasses
import inspect
import math

import pytest
import torch
from scripts import signatures
from torch import nn
from torch._subclasses import FakeTensorMode

import convary as cv
from convary import METHODS
from convary.methods.config import BankConfig
from convary.ops import reference


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_every_expert_has_the_scale_of_a_static_kernel():
    """d-li14's flat initialisation is 11 times too small: fan-in must be that of one kernel."""
    for make, want in (
        (cv.CondConv2d, math.sqrt(2 / (9 * 128))), (cv.DyConv2d, math.sqrt(2 / (9 * 64))),
        (cv.ODConv2d, math.sqrt(2 / (9 * 128))), (cv.DyNetConv2d, math.sqrt(2 / (9 * 128))),
    ):  # fmt: skip
        layer = make(64, 128, 3)
        for kernel in layer.weight:
            assert kernel.std().item() == pytest.approx(want, rel=0.02)
        assert layer.bias.abs().max() == 0


@pytest.mark.parametrize("config", METHODS, ids=lambda c: c.name)
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((4, 6, 3), {"groups": 3}, "groups must divide"),
        ((4, 6, 3), {"groups": 0}, "must be ints above 0"),
        ((4, 6, (3, 3, 3)), {}, "kernel_size must be an int or 2 ints"),
        ((4, 6, 0), {}, "kernel_size"),
        ((4, 6, 3.0), {}, "kernel_size"),
        ((0, 6, 3), {}, "groups must be ints above 0; got in_channels=0"),
        ((4, 6.0, 3), {}, "groups must be ints above 0; got in_channels=4, out_channels=6.0"),
        ((4, 6, 3), {"padding": -1}, "padding"),
        ((4, 6, 3), {"padding": "samee"}, "'same' or 'valid'"),
        ((4, 6, 3), {"padding_mode": "wrap"}, "padding_mode must be one of"),
        ((4, 6, 3), {"expert": 4}, "has no option 'expert'"),
    ],
)
def test_bad_arguments(config, arguments, options, message):
    with pytest.raises(cv.ConfigError, match=message):
        config.layers[2](*arguments, **options)


@pytest.mark.parametrize("config", METHODS, ids=lambda c: c.name)
def test_a_layer_shows_its_options_to_help_and_completion(config):
    for layer in config.layers.values():
        shown = inspect.signature(layer).parameters
        assert list(shown)[:3] == ["in_channels", "out_channels", "kernel_size"] and "options" not in shown
        assert {field.name: shown[field.name].default for field in dataclasses.fields(config)} == {
            field.name: field.default for field in dataclasses.fields(config)
        }

    class Own(layer):
        def __init__(self, width, **options):
            super().__init__(width, width, 3, **options)

    assert list(inspect.signature(Own).parameters)[:2] == ["width", dataclasses.fields(config)[0].name]


@pytest.mark.parametrize("file", signatures.files(), ids=lambda file: file.stem)
def test_type_checkers_are_told_the_options_of_the_config(file):
    text = file.read_text(encoding="utf-8")
    told = [text.find(signatures.block(layer)) for layer in signatures.files()[file]]
    assert -1 not in told and told == sorted(told), "run python scripts/signatures.py"


@pytest.mark.parametrize("config", [c for c in METHODS if issubclass(c, BankConfig)], ids=lambda c: c.name)
def test_a_bank_of_any_number_of_kernels_is_planned_at_once(config):
    plan = cv.plan(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), config(experts=10**9), cv.where.all())
    assert plan.rows[0].params_after > 200 * 10**9


@pytest.mark.parametrize("config", [c for c in METHODS if issubclass(c, BankConfig)], ids=lambda c: c.name)
def test_a_bank_has_at_least_one_kernel(config):
    with pytest.raises(cv.ConfigError, match="experts must be at least 1"):
        config(experts=0)
    with pytest.raises(cv.ConfigError, match="did you mean 'experts'"):
        config.layers[2](4, 6, 3, expert=4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cv.ODConv(attentions=("spatial",)), "attentions are some of"),
        (lambda: cv.ODConv(attentions=()), "at least one axis"),
        (lambda: cv.ODConv(attentions=None), "attentions must be a tuple"),
        (lambda: cv.ODConv(reduction="16"), "reduction must be a number"),
        (lambda: cv.ODConv(min_hidden=1.5), "min_hidden must be an int"),
        (lambda: cv.DyConv(temperature=None), "temperature must be a number"),
        (lambda: cv.DyNet(reduction=True), "reduction must be an int or None"),
        (lambda: cv.MixedLinear(3, 3, reduction=0), "reduction must be at least 1"),
        (lambda: cv.ODConv(attentions=("tap", "tap")), "none twice"),
        (lambda: cv.ODConv(sharing="both"), "sharing must be one of 'shared', 'per_kernel'"),
        (lambda: cv.ODConv(reduction=0), "reduction must be"),
        (lambda: cv.KernelWarehouse(cell_ratio=0), "cell_ratio must be"),
        (lambda: cv.KernelWarehouse(out_ratio=0.4), "out_ratio must be 1, 1/2"),
        (lambda: cv.KernelWarehouse(in_ratio=2), "in_ratio must be 1, 1/2"),
        (lambda: cv.KernelWarehouse(sharing="stages"), "did you mean 'stage'"),
        (lambda: cv.ODConv(expert=4), "ODConv has no option 'expert'.*did you mean 'experts'"),
        (lambda: cv.KernelWarehouse(temperature=30.0), "goes from 1 .* to 0 .*; got 30"),
        (lambda: cv.anneal(cv.KernelWarehouse2d(4, 4, 1), start=30.0, steps=9), "anneal it with start=1.0, stop=0.0"),
        (lambda: cv.DCD(squeeze=0), "squeeze must be"),
        (lambda: cv.DCD(latent="basik"), "did you mean 'basic'"),
        (lambda: cv.WeightNet(splits=0), "splits must be"),
        (lambda: cv.WeightNet(expansion=3), "splits must divide expansion; got expansion=3, splits=2"),
        (lambda: cv.CGC(interaction=0), "interaction must be"),
        (lambda: cv.CGC().build(nn.Linear(3, 3)), "no dynamic form of a linear layer"),
        (lambda: cv.DyConv(reduction=-4), "reduction must be"),
        (lambda: cv.DyConv(extra_hidden=-1), "extra_hidden"),
        (lambda: cv.DyConv(hidden_bias="yes"), "hidden_bias must be True or False"),
        (lambda: cv.CondConv(activation="softmx"), "did you mean 'softmax'"),
        (lambda: cv.method("odcnov"), "no method 'odcnov'.*did you mean 'odconv'"),
        (lambda: cv.method("odconv", exprts=2), "did you mean 'experts'"),
        (lambda: cv.config_from_json("{}"), "a method config is JSON like"),
        (lambda: cv.config_from_json("nonsense"), "a method config is JSON like"),
        (lambda: cv.config_from_json('{"method": "odconv", "version": 99, "new": 1}'), "version 99.*update convary"),
        (lambda: cv.config_from_json('{"method": 5, "version": 1}'), "no method '5'"),
        (lambda: cv.ODConv().build(nn.Linear(3, 3)), "no dynamic form of a linear layer"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(cv.ConfigError, match=message):
        make()


def test_wrong_input_shapes():
    layer = cv.ODConv2d(4, 6, 3)
    for shape in ((2, 5, 6, 6), (2, 4, 6), (4,)):
        with pytest.raises(cv.ShapeError, match=r"\(B, 4, \*S\) with 2 spatial axes"):
            layer(torch.randn(*shape))


def test_batch_norm_of_the_router_is_torchs_from_two_samples_on():
    ours, torchs = cv.nn.VectorBatchNorm(5), nn.BatchNorm1d(5)
    for batch in (2, 7):
        x = torch.randn(batch, 5)
        assert torch.equal(ours(x), torchs(x))
    before = ours.running_mean.clone()
    y = ours(torch.randn(1, 5))
    assert y.isfinite().all() and torch.equal(ours.running_mean, before)
    assert ours.state_dict().keys() == torchs.state_dict().keys()


def test_the_reference_is_torchs_convolution():
    for rank, conv in ((1, nn.functional.conv1d), (2, nn.functional.conv2d), (3, nn.functional.conv3d)):
        x, w = (
            torch.randn(1, 4, *(7,) * rank, dtype=torch.float64),
            torch.randn(1, 6, 2, *(3,) * rank, dtype=torch.float64),
        )
        geometry = {"stride": (2,) * rank, "padding": (1,) * rank, "dilation": (2,) * rank, "groups": 2}
        torch.testing.assert_close(reference.sample_conv(x, w, **geometry), conv(x, w[0], **geometry))


@pytest.mark.parametrize("config", [c() for c in METHODS], ids=lambda c: c.name)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_layer_can_be_built_and_run_with_fake_tensors(config, rank):
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
    with FakeTensorMode():
        layer = config.build(conv(4, 6, 3))
        y = layer(torch.randn(2, 4, *(8,) * rank))
        y.sum().backward()
        assert y.shape == (2, 6, *(6,) * rank)
        assert layer.eval()(torch.randn(2, 4, *(8,) * rank)).shape == y.shape
