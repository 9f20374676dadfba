# SPDX-License-Identifier: Apache-2.0
"""Use an installed convary for a moment: its native kernels must be there and agree with torch's operations.

python scripts/try_install.py
"""

from __future__ import annotations

import platform
import warnings
from importlib.metadata import version

import torch

import convary as cv
from convary import ops
from convary.ops import native


def gradients(strategy: str) -> list[torch.Tensor]:
    """The output of a dynamic layer, and the gradients of its input and weights."""
    torch.manual_seed(0)
    layer = cv.ODConv2d(8, 16, 3, padding=1, experts=4).eval()
    x = torch.randn(3, 8, 14, 14, requires_grad=True)
    with ops.strategy(strategy):
        y = layer(x)
        y.square().sum().backward()
    return [y.detach(), *[t.grad for t in (x, *layer.parameters()) if t.grad is not None]]


def main() -> None:
    """Compare, and say what was found."""
    warnings.simplefilter("error", cv.NativeWarning)
    for ours, reference in zip(gradients("native"), gradients("grouped"), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-4)
    cv.ODConv2d(8, 16, 3)(torch.randn(2, 8, 8, 8))  # chosen by itself, without a warning
    python, torchs = platform.python_version(), torch.__version__
    print(f"convary {version('convary')}, Python {python}, torch {torchs}, {platform.machine()}: {native.isa()}, fine")


if __name__ == "__main__":
    main()
