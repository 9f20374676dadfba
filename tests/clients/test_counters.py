# SPDX-License-Identifier: Apache-2.0
"""Counters of others agree with ``cv.summary`` on what dynamic layers add."""

import pytest
import torch
from torch import nn

import convary as cv
from convary import METHODS

X = torch.zeros(1, 3, 16, 16)
CONFIGS = [config() for config in METHODS] + [cv.Involution(kernel_size=3, group_channels=8)]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)


def static():
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)  # biases count for some of them
    features = [nn.Conv2d(3, 16, 3), nn.ReLU(), conv, nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(16, 10, bias=False)).eval()


def dynamic(config):
    where = cv.where.all() & ~cv.where.first()
    return cv.convert(static(), config, where, upcycle=False).eval()


def added(config, count):
    """What a counter says that conversion adds."""
    return count(dynamic(config)) - count(static())


def want(config):
    return added(config, lambda net: cv.summary(net, X).macs)


@every_config
def test_thop(config):
    thop = pytest.importorskip("thop")

    def count(net):
        return thop.profile(net, inputs=(X,), custom_ops=cv.integrations.counters.thop(), verbose=False)[0]

    assert added(config, count) == want(config)


@every_config
def test_ptflops(config):
    ptflops = pytest.importorskip("ptflops")

    def count(net):
        return ptflops.get_model_complexity_info(
            net, tuple(X.shape[1:]), as_strings=False, print_per_layer_stat=False, backend="pytorch",
            custom_modules_hooks=cv.integrations.counters.ptflops(),
            backend_specific_config={"count_functional": False},
        )[0]  # fmt: skip

    assert added(config, count) == want(config)


@every_config
def test_torchinfo(config):
    torchinfo = pytest.importorskip("torchinfo")
    cv.integrations.counters.attend()

    def count(net):
        return torchinfo.summary(net, input_data=X, verbose=0).total_mult_adds

    assert added(config, count) == want(config)
    assert (
        torchinfo.summary(dynamic(config), input_data=X, verbose=0).total_params
        == cv.summary(dynamic(config), X).params
    )


@pytest.mark.parametrize("config", [c() for c in METHODS], ids=lambda c: c.name)
def test_torchsummary_and_captum_see_tensors(config, capsys):
    torchsummary, attr = pytest.importorskip("torchsummary"), pytest.importorskip("captum.attr")
    net = dynamic(config)
    shapes = {t.ndim for t in net[2].router(torch.rand(2, 16, 14, 14))}
    if len(shapes) == 1:  # torchsummary multiplies the sizes of a tuple by np.prod, which takes no ragged ones
        torchsummary.summary(net, tuple(X.shape[1:]), device="cpu")
        assert type(net[2]).__name__ in capsys.readouterr().out
    seen = attr.LayerActivation(net, net[2].router).attribute(torch.rand(2, 3, 16, 16))
    assert all(isinstance(t, torch.Tensor) for t in (seen if isinstance(seen, tuple) else (seen,)))
