# SPDX-License-Identifier: Apache-2.0
"""nn.recompute: the same training, without kernels between the forward and the backward pass."""

from __future__ import annotations

import json
import sys
import weakref

import pytest
import torch
from torch import nn

from convary import ops
from convary.nn import recompute
from tests.processes import python

WINDOW = {"kernel_size": 3, "padding": 1}


class Generator(nn.Sequential):
    """Kernels of one group from x, with all that could tell one run from two: a norm's statistics, and chance."""

    def __init__(self):
        super().__init__(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.Conv2d(6, 9, 1))

    def forward(self, x):
        return super().forward(x).unsqueeze(1)


def step(generate: nn.Module, x: torch.Tensor, call) -> list[torch.Tensor]:
    """Output, gradients and buffers after one step of training."""
    torch.manual_seed(1)
    y = call(generate, x)
    grads = torch.autograd.grad(y.square().sum(), [x, *generate.parameters()])
    return [y.detach(), *grads, *(b.clone() for b in generate.buffers())]


def kept(generate, x):
    return ops.pixel_conv(x, generate(x), **WINDOW)


def remade(generate, x):
    return recompute(generate, x, x, **WINDOW)


@pytest.mark.parametrize("training", [True, False])
def test_trains_the_same(training):
    torch.manual_seed(0)
    x, generate = torch.randn(2, 4, 6, 7, requires_grad=True), Generator().train(training)
    state = {name: value.clone() for name, value in generate.state_dict().items()}
    wants = step(generate, x, kept)
    generate.load_state_dict(state)
    assert all(torch.equal(got, want) for got, want in zip(step(generate, x, remade), wants, strict=True))


def test_methods_functions_and_conditions():
    x, condition, generate = torch.randn(2, 4, 6, 7), torch.randn(2, 4, 6, 7, requires_grad=True), Generator().eval()
    want = ops.pixel_conv(x, generate(condition), **WINDOW)
    for make in (generate.forward, lambda c: generate(c)):
        y = recompute(make, x, condition, **WINDOW)
        assert torch.equal(y, want)
        y.sum().backward()
    assert condition.grad is not None


def test_two_backward_passes_through_one_graph():
    torch.manual_seed(0)
    x, generate = torch.randn(2, 4, 6, 7, requires_grad=True), Generator().train()
    y = remade(generate, x)
    statistics = [b.clone() for b in generate.buffers()]
    first, second = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert all(map(torch.equal, generate.buffers(), statistics))


def test_without_a_gradient_nothing_is_prepared():
    with torch.no_grad():
        assert remade(Generator(), torch.randn(2, 4, 6, 7)).grad_fn is None


def test_compiled():
    torch._dynamo.reset()
    torch.manual_seed(0)
    x, generate = torch.randn(2, 4, 6, 7, requires_grad=True), Generator().train()
    generate[2].p = 0.0
    state = {name: value.clone() for name, value in generate.state_dict().items()}
    wants = step(generate, x, kept)
    generate.load_state_dict(state)
    compiled = torch.compile(remade, fullgraph=True, backend="aot_eager")
    for got, want in zip(step(generate, x, compiled), wants, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("call", [kept, remade])
def test_no_kernels_are_kept(call):
    generate, made = Generator(), []
    generate.register_forward_hook(lambda module, inputs, weight: made.append(weakref.ref(weight)))
    x = torch.randn(2, 4, 6, 7, requires_grad=True)
    y = call(generate, x)
    assert len(made) == 1 and (made[0]() is None) == (call is remade)
    y.sum().backward()
    assert len(made) == (2 if call is remade else 1)


MEMORY = """
import json, torch
from torch import nn
from convary import ops
from convary.bench.memory import forget_peak, resident
from convary.nn import recompute

LAYERS, window = 6, {"kernel_size": 7, "padding": 3}
torch.set_num_threads(1)
generators = nn.ModuleList(nn.Conv2d(8, 8 * 49, 1) for _ in range(LAYERS))

def train(remade, size):
    y = x = torch.randn(1, 8, size, size)
    for net in generators:
        generate = lambda c, net=net: net(c).unflatten(1, (8, 49))
        if remade: y = recompute(generate, y, y, **window)
        else: y = ops.pixel_conv(y, generate(y), **window)
    y.sum().backward()

def peak(remade):
    train(remade, 16)
    idle = resident("VmRSS")
    forget_peak()
    train(remade, 96)
    return resident("VmHWM") - idle

print(json.dumps([peak(True), peak(False)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts resident memory as Linux does")
def test_memory_does_not_grow_with_the_layers():
    """Six layers: kept, the kernels of all are there at the end; made again, those of one and their gradient."""
    remade, kept = json.loads(python(MEMORY, MALLOC_MMAP_THRESHOLD_="65536"))  # what is freed is given back at once
    kernels = 4 * 8 * 49 * 96 * 96
    assert remade <= 4 * kernels, (remade / kernels, kept / kernels)
    assert kept >= 6 * kernels
