# SPDX-License-Identifier: Apache-2.0
"""Methods that make their kernels: a large batch is served a few samples at a time, and nothing else differs."""

import math

import pytest
import torch

from convary.nn import AssembledConv, assembled
from tests.variants import CONVS, VARIANTS, excite

SERVED = [config for config in VARIANTS if issubclass(config.layers[2], AssembledConv)]


def gradients(layer, x):
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("config", SERVED, ids=lambda config: config.name)
@pytest.mark.parametrize(("geometry", "few"), [({"padding": 1}, 2), ({"groups": 2, "stride": 2, "bias": False}, 1)])
def test_a_few_samples_at_a_time_give_what_all_at_once_give(config, geometry, few, monkeypatch):
    torch.manual_seed(0)
    layer = excite(config.build(CONVS[2](4, 6, 3, **geometry))).double().eval()
    x = torch.randn(5, 4, 7, 6, dtype=torch.float64)  # five are no multiple of two
    want = gradients(layer, x)
    calls = []
    monkeypatch.setattr(assembled, "_AT_ONCE", few * math.prod(layer.kernel_shape) * 8 + 7)
    real = type(layer).kernels

    def kernels(self, coeffs):
        made = real(self, coeffs)
        calls.append(len(made))
        return made

    monkeypatch.setattr(type(layer), "kernels", kernels)
    got = gradients(layer, x)
    if config.name != "dcd":  # which makes no kernels
        assert sum(calls) == 5 and max(calls) == few
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_channels_last_batch_stays_so(monkeypatch):
    layer = SERVED[-1].build(CONVS[2](4, 6, 3, padding=1)).eval()
    x = torch.randn(5, 4, 7, 6).contiguous(memory_format=torch.channels_last)
    want = layer(x)
    monkeypatch.setattr(assembled, "_AT_ONCE", 1)
    got = layer(x)
    assert got.stride() == want.stride() and got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("config", [config for config in SERVED if config == type(config)()], ids=lambda c: c.name)
def test_transforms_autocast_and_other_batches_see_no_difference(config, monkeypatch):
    torch.manual_seed(0)
    layer = excite(config.build(CONVS[2](4, 6, 3, padding=1))).double().eval()
    x, t = torch.randn(2, 3, 4, 7, 6, dtype=torch.float64)

    def total(z):
        return layer(z).square().sum()

    def seen():
        with torch.autocast("cpu", torch.bfloat16):
            half = layer(x)
        jvp, grad = torch.func.jvp, torch.func.grad
        many = torch.func.vmap(layer)(torch.stack([x, t]))
        made = (
            jvp(layer, (x,), (t,))[1],
            grad(total)(x),
            jvp(grad(total), (x,), (t,))[1],
            many,
            layer(x[:0]),
            layer(x[:1]),
        )
        return [value.detach() for value in made], half.detach()

    want, want_half = seen()
    monkeypatch.setattr(assembled, "_AT_ONCE", 1)
    got, got_half = seen()
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    assert got_half.dtype == want_half.dtype
    torch.testing.assert_close(got_half, want_half, rtol=2e-2, atol=2e-2 * float(want_half.abs().max()))
