# SPDX-License-Identifier: Apache-2.0
"""Annealing: values, state, warnings, and what bad values get."""

import copy
import functools
import gc
import itertools
import math
import pickle
import warnings

import pytest
import torch
from torch import nn

import convary as cv


def model() -> nn.Module:
    return nn.Sequential(cv.DyConv2d(2, 2, 1), cv.ODConv2d(2, 2, 1), cv.CondConv2d(2, 2, 1))


@pytest.mark.parametrize(("shape", "half"), [("linear", 15.5), ("cosine", 15.5)])
def test_descends_and_stays(shape, half):
    net = model()
    annealing = cv.anneal(net, start=30.0, stop=1.0, steps=100, shape=shape)
    seen = [annealing.temperature]
    for _ in range(130):
        annealing.step()
        seen.append(annealing.temperature)
    assert seen[0] == 30.0 and seen[50] == pytest.approx(half) and seen[100:] == [1.0] * 31
    assert all(a >= b for a, b in itertools.pairwise(seen))
    quarter = 22.75 if shape == "linear" else 1 + 29 * (1 + math.cos(math.pi / 4)) / 2
    assert seen[25] == pytest.approx(quarter)
    assert float(net[0].router.temperature) == float(net[1].router.temperature) == 1.0


def test_the_temperature_is_what_the_softmax_sees():
    layer = cv.DyConv2d(3, 3, 1, experts=3)
    x = torch.randn(2, 3, 4, 4)
    cold = layer.coefficients(x).kernel
    cv.set_temperature(layer, 5.0)
    hot = layer.coefficients(x).kernel
    torch.testing.assert_close(hot, (cold.log() / 5).softmax(-1))
    torch.testing.assert_close(hot.sum(1), torch.ones(2))


def test_state_continues():
    net, other = model(), model()
    a, b = cv.anneal(net, steps=10), cv.anneal(other, steps=99, start=5.0)
    for _ in range(4):
        a.step()
    b.load_state_dict(a.state_dict())
    other.load_state_dict(net.state_dict())
    for _ in range(3):
        a.step()
        b.step()
        assert a.temperature == b.temperature
    assert a.state_dict() == b.state_dict()
    assert torch.equal(net[1].router.temperature, other[1].router.temperature)
    with pytest.raises(cv.CheckpointError, match="last_step"):
        a.load_state_dict({"start": 1})


def test_is_saved_with_the_model():
    net, other = model(), model()
    cv.set_temperature(net, 12.5)
    other.load_state_dict(net.state_dict())
    assert float(other[0].router.temperature) == 12.5


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_impossible_temperatures(value):
    for make in (
        lambda: cv.DyConv(temperature=value), lambda: cv.ODConv(temperature=value),
        lambda: cv.anneal(model(), start=value, steps=3),
        lambda: cv.set_temperature(model(), value), lambda: cv.MixedLinear(3, 3, temperature=value),
    ):  # fmt: skip
        with pytest.raises(cv.ConfigError, match="temperature must be a finite number above 0"):
            make()


def test_a_model_without_temperature():
    with pytest.raises(cv.ConfigError, match="no router with a temperature"):
        cv.anneal(nn.Sequential(cv.CondConv2d(2, 2, 1)), steps=5)
    with pytest.raises(cv.ConfigError, match="shape must be one of"):
        cv.anneal(model(), steps=5, shape="steps")
    with pytest.raises(cv.ConfigError, match="at least 0"):
        cv.anneal(model(), steps=-5)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_impossible_temperatures_in_checkpoints(value):
    net = model()
    state = net.state_dict() | {"1.router.temperature": torch.tensor(value)}
    with pytest.raises(cv.ConfigError, match="temperature must be a finite number above 0"):
        net.load_state_dict(state)
    annealing = cv.anneal(net, steps=3)
    with pytest.raises(cv.ConfigError, match="temperature must be"):
        annealing.load_state_dict(annealing.state_dict() | {"start": value})
    with pytest.raises(cv.CheckpointError, match="shape must be one of"):
        annealing.load_state_dict(annealing.state_dict() | {"shape": "steps"})


def test_evaluating_hot_warns_once():
    net, saved = model(), model()
    cv.set_temperature(net, 30.0)
    with pytest.warns(cv.TemperatureWarning, match="temperature 30, above the final 1") as seen:
        net.eval()
    assert len(seen) == 1  # for two hot routers
    cv.set_temperature(saved, 1.0)
    with pytest.warns(cv.TemperatureWarning):
        saved.eval().load_state_dict(net.state_dict())
    net.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.eval()
        model().eval()  # at its final temperature from the start


def test_methods_with_ranges_of_their_own_are_annealed_together():
    model = nn.Sequential(cv.DyConv2d(4, 4, 3), cv.KernelWarehouse().build(nn.Conv2d(4, 4, 3)))
    annealing = cv.anneal(model, steps=2)

    def temperatures():
        return [float(layer.router.temperature) for layer in model]

    seen = [temperatures()]
    for _ in range(2):
        annealing.step()
        seen.append(temperatures())
    assert seen == [[30.0, 1.0], [15.5, 0.5], [1.0, 0.0]] and annealing.temperature == 1.0
    again = cv.anneal(model, steps=2)
    again.load_state_dict(annealing.state_dict())
    assert temperatures() == [1.0, 0.0]


def averagers():
    """The usual moving averages, by name: a function from a model to its average and what updates it."""
    timm = pytest.importorskip("timm.utils")
    swa = torch.optim.swa_utils

    def torchs(**options):
        def make(net):
            average = swa.AveragedModel(net, **options)
            return average.module, average.update_parameters

        return make

    def timms(kind, **options):
        def make(net):
            average = kind(net, decay=0.9998, **options)
            return average.ema if kind is timm.ModelEma else average.module, average.update

        return make

    ema = swa.get_ema_multi_avg_fn(0.9998)
    return {
        "AveragedModel": torchs(multi_avg_fn=ema),
        "AveragedModel(use_buffers)": torchs(multi_avg_fn=ema, use_buffers=True),
        "AveragedModel(avg_fn)": torchs(avg_fn=swa.get_ema_avg_fn(0.9998), use_buffers=True),
        "ModelEma": timms(timm.ModelEma),
        "ModelEmaV2": timms(timm.ModelEmaV2),
        "ModelEmaV3": timms(timm.ModelEmaV3),
        "ModelEmaV3(device)": timms(timm.ModelEmaV3, device="cpu", foreach=False),
        "ModelEmaV3(no buffers)": timms(timm.ModelEmaV3, exclude_buffers=True),
    }


@pytest.mark.parametrize("first", ["average", "annealing"])
def test_moving_averages_have_the_live_temperature(first):
    for name, make in averagers().items():
        net = nn.Sequential(*model(), cv.KernelWarehouse().build(nn.Conv2d(2, 2, 3)))
        average, update = make(net)
        annealing = cv.anneal(net, steps=5)
        for _ in range(9):
            acts = (annealing.step, functools.partial(update, net))
            for act in acts if first == "annealing" else acts[::-1]:
                act()
        live = [float(net[i].router.temperature) for i in (0, 1, 3)]
        kept = [float(average[i].router.temperature) for i in (0, 1, 3)]
        assert live == [1.0, 1.0, 0.0] and kept == pytest.approx(live, abs=1e-6), name


def test_an_average_that_begins_late():
    net = model()
    annealing = cv.anneal(net, steps=3)
    annealing.step()
    average, update = averagers()["AveragedModel(use_buffers)"](net)
    annealing.step(), annealing.step()
    update(net), update(net)
    average[0].router.temperature.fill_(7.0)  # as an average would
    annealing.step()
    assert float(average[0].router.temperature) == 1.0


def test_other_copies_keep_the_temperature_that_they_have():
    net = model()
    annealing = cv.anneal(net, steps=10)
    snapshot, moved, loaded = (copy.deepcopy(net) for _ in range(3))
    annealing.step()
    moved.double()
    loaded.load_state_dict(net.state_dict())
    own = copy.deepcopy(net)
    cv.anneal(own, start=9.0, steps=10)
    own[0].router.temperature.add_(0.0)  # as DistributedDataParallel writes its buffers
    cv.set_temperature(again := copy.deepcopy(snapshot), 3.0)
    for _ in range(4):
        annealing.step()
    found = [float(other[0].router.temperature) for other in (net, snapshot, moved, loaded, own, again)]
    assert found == pytest.approx([15.5, 30.0, 30.0, 27.1, 9.0, 3.0])


def test_copies_do_not_keep_each_other_alive():
    net = model()
    kin = net[0].router.kin
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        del copied
    gc.collect()
    assert not list(kin.copies)
    orphan = copy.deepcopy(net)
    del net
    gc.collect()
    cv.anneal(orphan, steps=2).step()
    assert float(orphan[0].router.temperature) == 15.5
