# SPDX-License-Identifier: Apache-2.0
"""The operations' own gradients, where several Python threads train the same parameters."""

import pytest

from convary.ops import native
from tests.ops.native.test_library import python

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

def work(seed):
    x, coeffs = torch.randn(2, 1, 1, 1), Coefficients(kernel=torch.rand(2, 2))
    for _ in range(6000):
        if seed % 2:
            CALL
        else:
            leaf.unflatten(0, (2, 1))

with ThreadPoolExecutor(4) as pool:
    list(pool.map(work, range(4)))
print("done")
"""
CALLS = {
    "mixed_conv": "with ops.strategy('native'): ops.mixed_conv(x, leaf, coeffs)",
    "sample_conv": "with ops.strategy('native'): ops.sample_conv(x, leaf)",
    "pixel_conv": "with ops.strategy('native'): ops.pixel_conv(x, leaf, kernel_size=1)",
    "taps": "with ops.strategy('taps'): ops.pixel_conv(x, leaf, kernel_size=1)",
}


@needs_library
@pytest.mark.parametrize("name", CALLS)
def test_threads_that_share_a_parameter_do_not_wait_for_each_other(name):
    """In torch 2.14 ``autograd.Function.apply`` and an ordinary operation on the same leaf may hang."""
    assert python(SHARED.replace("CALL", CALLS[name])) == "done"
