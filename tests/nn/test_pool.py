"""Adaptive pooling by matrices is adaptive pooling."""

import pytest
import torch
import torch.nn.functional as F

from convary.nn.pool import adaptive_avg_pool, by_products

POOL = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("shape", [(9, 11), (14, 7), (5, 3), (1, 1), (64, 33), (10,), (5, 6, 9)])
def test_equals_torchs(size, shape):
    x = torch.randn(2, 3, *shape, dtype=torch.float64, requires_grad=True)
    sizes = (size + 1, *(size,) * (len(shape) - 1))
    got, want = by_products(x, sizes), POOL[len(shape) - 1](x, sizes)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    (ours,), (theirs,) = (torch.autograd.grad(y.square().sum(), x) for y in (got, want))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_half_precision_loses_only_its_rounding():
    x = torch.randn(2, 3, 61, 45) + 100
    got = by_products(x.bfloat16(), (7, 7)).float()
    assert (got / F.adaptive_avg_pool2d(x, 7) - 1).abs().max() < 3 * 2**-8


def test_one_graph_serves_every_size():
    class Pool(torch.nn.Module):
        def forward(self, x):
            return adaptive_avg_pool(x, 7)

    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(Pool(), (torch.randn(2, 3, 9, 11),), dynamic_shapes=({0: free, 2: free, 3: free},))
    x = torch.randn(5, 3, 20, 6)
    assert torch.allclose(program.module()(x), F.adaptive_avg_pool2d(x, 7), atol=1e-6)
