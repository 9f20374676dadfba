# SPDX-License-Identifier: Apache-2.0
"""What an eager ``mixed_conv`` adds to its kernel: checks, the choice, the output's memory, autograd.

One thread, two small convolutions: the larger bank sweeps more of what Python and torch had in the caches. Blocks of
calls follow each other in turns: the kernel alone through ctypes, the whole call without a gradient, and with one. A
figure is the median over the turns of a block's difference from the kernel's, with the 10th and 90th percentiles.

    python benchmarks/eager.py
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from ctypes import addressof
from unittest import mock

import torch

from convary import ops
from convary.bench.machine import load, machine
from convary.ops import Coefficients, dispatch
from convary.ops.geometry import Geometry
from convary.ops.mixed.native import structure
from convary.ops.native.library import loaded

CALLS, TURNS = 100, 200


def block(call: Callable[[], object]) -> float:
    """Microseconds per call."""
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - start) / CALLS * 1e6


def measure(O: int) -> None:
    """Print one shape's figures."""
    x, bank, coeffs = torch.randn(4, 64, 7, 7), torch.randn(4, O, 64, 3, 3), Coefficients(kernel=torch.rand(4, 4))
    trained = bank.clone().requires_grad_()
    factors = (coeffs.kernel, None, None, None)
    sizes, shape = structure(x.shape, bank, factors, None, Geometry((1, 1), (1, 1), (1, 1), 1))
    y, kernel, address = torch.empty(shape), loaded().entries["mixed_conv"], addressof(sizes)
    assert coeffs.kernel is not None
    pointers = [x.data_ptr(), bank.data_ptr(), coeffs.kernel.data_ptr(), None, None, None, None, y.data_ptr()]

    def whole(weight: torch.Tensor) -> Callable[[], object]:
        return lambda: ops.mixed_conv(x, weight, coeffs, padding=1)

    calls = {
        "the kernel": lambda: kernel(address, *pointers),
        "a call without a gradient": whole(bank),
        "a call with one": whole(trained),
    }
    for call in calls.values():
        block(call)
    assert torch.equal(y, ops.mixed_conv(x, bank, coeffs, padding=1))
    turns = torch.tensor([[block(call) for call in calls.values()] for _ in range(TURNS)], dtype=torch.float64)
    print(f"\nx {tuple(x.shape)}, bank {tuple(bank.shape)}: the kernel takes {turns[:, 0].median():.1f} us")
    for i, name in enumerate(calls):
        if i:
            low, middle, high = (turns[:, i] - turns[:, 0]).quantile(turns.new_tensor([0.1, 0.5, 0.9])).tolist()
            print(f"{name}: {middle:.1f} us more [{low:.1f}, {high:.1f}]")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({**machine(), "load": load()}))
    with mock.patch.object(dispatch, "decide", return_value="native"):  # and remembered, as usual
        for channels in (16, 64):
            measure(channels)
