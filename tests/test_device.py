# SPDX-License-Identifier: Apache-2.0
"""Values and gradients of every method on another device or in another dtype, against float64 on the CPU.

    pytest tests/test_device.py --device cuda --dtype bfloat16

The rest of the contract is in tests/test_contract.py, speed in benchmarks/gpu.py.
"""

import copy

import pytest
import torch

from tests.variants import CONVS, RANKS, SIZE, VARIANTS, excite

# Of the largest value. On an accelerator float32 may be TF32, which has the digits of float16.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}
ON_ACCELERATORS = {torch.float32: 4e-3}


@pytest.fixture(scope="session")
def device(request):
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def dtype(request):
    return getattr(torch, request.config.getoption("--dtype"))


def values(layer, x, towards):
    """The output, and the gradients of x, of the kernels and of the router."""
    x = x.clone().requires_grad_()
    y = layer(x)
    layer.zero_grad()
    (y * towards).sum().backward()
    router = torch.cat([p.grad.flatten() for p in layer.router.parameters() if p.grad is not None])
    return {"output": y.detach(), "x": x.grad, "weight": layer.weight.grad, "router": router}


@pytest.mark.parametrize("config", VARIANTS, ids=[f"{c.name}{i}" for i, c in enumerate(VARIANTS)])
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(
    "geometry", [{"padding": 1}, {"stride": 2, "groups": 2, "bias": False}], ids=["plain", "groups"]
)
def test_values_and_gradients(config, rank, geometry, device, dtype):
    torch.manual_seed(0)
    layer = excite(config.build(CONVS[rank](4, 6, 3, **geometry))).eval()
    x = torch.randn(3, 4, *SIZE[rank])
    towards = torch.randn_like(layer(x))
    # Both start from the numbers that the dtype can hold.
    layer, x, towards = layer.to(dtype), x.to(dtype), towards.to(dtype)
    want = values(copy.deepcopy(layer).double(), x.double(), towards.double())
    got = values(layer.to(device), x.to(device), towards.to(device))
    limit = TOLERANCE[dtype] if device.type == "cpu" else ON_ACCELERATORS.get(dtype, TOLERANCE[dtype])
    for name, value in got.items():
        assert value.device.type == device.type and value.isfinite().all(), name
        if name == "router" and dtype.itemsize == 2:
            continue  # a ReLU near zero falls either way
        error = (value.cpu().double() - want[name]).abs().max() / want[name].abs().max()
        assert error < limit, f"{name}: {error:.1e} of the largest value"
