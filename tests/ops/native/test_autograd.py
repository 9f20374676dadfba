# SPDX-License-Identifier: Apache-2.0
"""The operations' own gradients, where several Python threads train the same parameters."""

import pytest

from convary.ops import native
from tests.processes import python

needs_library = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))

SHARED = """
import faulthandler
from concurrent.futures import ThreadPoolExecutor
import torch
from convary import ops
from convary.ops import Coefficients

faulthandler.dump_traceback_later(120, exit=True)
torch.set_num_threads(1)
leaf = torch.nn.Parameter(torch.randn(2, 1, 1, 1, 1))

def work(seed, call):
    x, coeffs = torch.randn(2, 1, 1, 1), Coefficients(kernel=torch.rand(2, 2))
    for _ in range(3000):
        if seed % 2:
            call(x, coeffs)
        else:
            leaf.unflatten(0, (2, 1))

def forced(strategy, op, **options):
    def call(x, coeffs):
        with ops.strategy(strategy):
            op(x, leaf, *([coeffs] if op is ops.mixed_conv else []), **options)
    return call

for name, call in {
    "mixed_conv": forced("native", ops.mixed_conv),
    "sample_conv": forced("native", ops.sample_conv),
    "pixel_conv": forced("native", ops.pixel_conv, kernel_size=1),
    "taps": forced("taps", ops.pixel_conv, kernel_size=1),
}.items():
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4), [call] * 4))
    print(name, flush=True)
"""


@needs_library
def test_threads_that_share_a_parameter_do_not_wait_for_each_other():
    """In torch 2.14 ``autograd.Function.apply`` and an ordinary operation on the same leaf may hang."""
    assert python(SHARED).split() == ["mixed_conv", "sample_conv", "pixel_conv", "taps"]
