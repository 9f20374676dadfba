# SPDX-License-Identifier: Apache-2.0
"""The one obvious definition of each op. Slow on purpose; every strategy and kernel is tested against these."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from convary.ops.coefficients import Coefficients


def mix_kernels(bank: Tensor, coeffs: Coefficients) -> Tensor:
    """``W[b,o,c,t] = sum_k kernel[b,k] filter[b,k,o] channel[b,k,c] tap[b,k,t] bank[k,o,c,t]``, as written.

    Args:
        bank: (K, O, C/G, *k).
        coeffs: factors for B samples.

    Returns:
        (B, O, C/G, *k) one kernel per sample.
    """
    K, O, C_group, *k = bank.shape
    B = next(iter(coeffs.factors().values())).shape[0]
    weight = bank.reshape(1, K, O, C_group, -1).expand(B, -1, -1, -1, -1)
    if coeffs.kernel is not None:
        weight = weight * coeffs.kernel[:, :, None, None, None]
    if coeffs.filter is not None:
        weight = weight * coeffs.filter[:, :, :, None, None]
    if coeffs.channel is not None:
        G = coeffs.channel.shape[2] // C_group
        group_of = torch.arange(O, device=bank.device) // (O // G)
        per_output = coeffs.channel.unflatten(2, (G, C_group))[:, :, group_of]  # (B, 1|K, O, C/G)
        weight = weight * per_output[..., None]
    if coeffs.tap is not None:
        weight = weight * coeffs.tap[:, :, None, None, :]
    return weight.sum(1).reshape(B, O, C_group, *k)


def mix_bias(bias: Tensor, coeffs: Coefficients) -> Tensor:
    """A bias bank (K, O) mixed like the kernels: (B, O). Channel and tap factors do not touch a bias."""
    mixed = bias[None]
    if coeffs.kernel is not None:
        mixed = mixed * coeffs.kernel[:, :, None]
    if coeffs.filter is not None:
        mixed = mixed * coeffs.filter
    B = next(iter(coeffs.factors().values())).shape[0]
    return mixed.sum(1).expand(B, -1)


def sample_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    index: Tensor | None = None,
) -> Tensor:
    """``y[n,o,p] = sum_c sum_t weight[n,o,c,t] x[index[n], c, p*stride + t*dilation]``, one tap at a time.

    Args:
        x: (B, C, *S).
        weight: (N, O, C/G, *k); N = B without ``index``.
        bias: (O,) for all samples or (N, O).
        stride: One number per spatial axis.
        padding: Zeros on both sides, one number per spatial axis.
        dilation: One number per spatial axis.
        groups: G.
        index: (N,) the image of each kernel.

    Returns:
        (N, O, *S_out).
    """
    if index is not None:
        x = x[index]
    N, O, C_group, *k = weight.shape
    x = F.pad(x, [p for p in reversed(padding) for _ in range(2)])
    out_size = [(s - d * (kk - 1) - 1) // st + 1 for s, kk, d, st in zip(x.shape[2:], k, dilation, stride, strict=True)]
    x = x.unflatten(1, (groups, C_group))
    weight = weight.unflatten(1, (groups, O // groups))
    y = x.new_zeros(N, groups, O // groups, *out_size)
    for tap in itertools.product(*(range(kk) for kk in k)):
        window = tuple(
            slice(t * d, t * d + st * (n - 1) + 1, st)
            for t, d, st, n in zip(tap, dilation, stride, out_size, strict=True)
        )
        y = y + torch.einsum("ngoc,ngc...->ngo...", weight[(..., *tap)], x[(..., *window)])
    y = y.flatten(1, 2)
    if bias is not None:
        y = y + bias.expand(N, O).reshape(N, O, *[1] * len(k))
    return y


def mixed_conv(x: Tensor, bank: Tensor, coeffs: Coefficients, bias: Tensor | None = None, **geometry) -> Tensor:
    """``sample_conv(x, mix_kernels(bank, coeffs))``; a 2-D bias (K, O) is mixed, a 1-D bias (O,) added as it is."""
    if bias is not None and bias.ndim == 2:
        bias = mix_bias(bias, coeffs)
    return sample_conv(x, mix_kernels(bank, coeffs), bias, **geometry)


def pixel_conv(
    x: Tensor,
    weight: Tensor,
    *,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    border: str,
    group_order: str,
    scale_factor: int,
) -> Tensor:
    """``y[b,c,p] = sum_t weight[b, g(c), t, p] x[b, c, (p // scale_factor)*stride + t*dilation - padding]``, by taps.

    Args:
        x: (B, C, *S).
        weight: (B, G, T, *S_out), taps row-major.
        kernel_size: One number per spatial axis; T is their product.
        stride: One number per spatial axis.
        padding: Positions on both sides that ``border`` provides, one number per spatial axis.
        dilation: One number per spatial axis.
        border: What is read outside x; see :func:`convary.ops.pixel_conv`.
        group_order: ``"contiguous"``: channel c is of group c // (C/G); ``"interleaved"``: of group c % G.
        scale_factor: Output positions per window and axis.

    Returns:
        (B, C, *S_out).
    """
    C, G = x.shape[1], weight.shape[1]
    channels = torch.arange(C, device=x.device)
    group_of = channels // (C // G) if group_order == "contiguous" else channels % G
    y = x.new_zeros(x.shape[:2] + weight.shape[3:])
    for t, tap in enumerate(itertools.product(*(range(k) for k in kernel_size))):
        seen = x
        for axis, s in enumerate(x.shape[2:]):
            start = torch.arange(weight.shape[3 + axis], device=x.device) // scale_factor * stride[axis] - padding[axis]
            if border == "clamp":
                start = start.clamp(0, s - (kernel_size[axis] - 1) * dilation[axis] - 1)
            at = start + tap[axis] * dilation[axis]
            inside = torch.ones_like(at)
            if border == "zeros":
                inside = ((at >= 0) & (at < s)).to(at)
                at = at.clamp(0, s - 1)
            elif border == "replicate":
                at = at.clamp(0, s - 1)
            elif border == "circular":
                at = at % s
            elif border == "reflect":
                at = (s - 1) - ((s - 1) - at.abs()).abs()
            line = [1] * x.ndim
            line[2 + axis] = -1
            seen = seen.index_select(2 + axis, at) * inside.reshape(line)
        y = y + weight[:, group_of, t] * seen
    return y
