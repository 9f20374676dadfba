# SPDX-License-Identifier: Apache-2.0
"""Banks of kernels: initialised one by one, or made of a static kernel with perturbations that cancel out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convary.nn.modes import evaluating
from convary.nn.router import Router


def per_expert_(weight: Tensor, init: Any) -> None:
    """Apply an initialiser to every kernel of a bank on its own: fan-in and fan-out are those of one kernel."""
    if weight.is_meta:  # a plan counts a bank of any number of kernels
        return
    for kernel in weight:
        init(kernel)


@torch.no_grad()
def neutral_gain(router: Router, K: int) -> tuple[float, float]:
    """What a neutral router multiplies equal kernels, and equal biases, by: the sum of its coefficients over K."""
    like = next(router.parameters())
    with evaluating(router):
        coeffs = router.coefficients(torch.zeros(1, router.in_channels, device=like.device, dtype=like.dtype))

    def total(*axes: str) -> float:
        product = torch.ones(K, dtype=torch.double, device=like.device)
        for axis, value in coeffs.factors().items():
            if axis in axes:  # kernel (1, K), the others (1, 1 or K, n) with n equal entries
                product = product * (value[0] if value.ndim == 2 else value[0, :, 0]).double()
        return float(product.sum())

    return total("kernel", "filter", "channel", "tap"), total("kernel", "filter")


def zero_sum_noise(bank: Tensor) -> Tensor:
    """Normal noise like ``bank`` (K, ...) whose sum over K is zero; all zero where K is 1."""
    noise = torch.randn(bank.shape, device=bank.device, dtype=torch.float32)
    return (noise - noise.mean(0, keepdim=True)).to(bank.dtype)


def spread(weight: Tensor, noise: float) -> Tensor:
    """``noise`` times the standard deviation of a kernel's weights, in their dtype."""
    return noise * weight.float().std(correction=0).to(weight.dtype)
