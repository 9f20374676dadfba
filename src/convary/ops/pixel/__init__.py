# SPDX-License-Identifier: Apache-2.0
"""Convolution with one given kernel per output position."""

from __future__ import annotations

from torch import Tensor

from convary.ops.dispatch import Op, Strategy, run
from convary.ops.geometry import Size
from convary.ops.native import eligible
from convary.ops.pixel import aten, native, triton
from convary.ops.pixel.arguments import spell
from convary.ops.pixel.window import Border, GroupOrder


def pixel_conv(
    x: Tensor,
    weight: Tensor,
    *,
    kernel_size: Size,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    border: Border = "zeros",
    group_order: GroupOrder = "contiguous",
    scale_factor: int = 1,
) -> Tensor:
    """Filter each position with its own kernel; the C/G channels of a group share it, and no channels are summed.

    ``y[b,c,p] = sum_t weight[b, g(c), t, p] x[b, c, (p // scale_factor)*stride + t*dilation - padding]``

    Args:
        x: (B, C, *S), one to three spatial axes.
        weight: (B, G, T, *S_out), taps row-major; used as it is, normalise it before if you want it normalised.
        kernel_size: An int or one per spatial axis; T is their product.
        stride: As in ``torch.nn.functional.conv2d``.
        padding: As in ``torch.nn.functional.conv2d``, ``"same"`` and ``"valid"`` included (``"same"`` here wants an odd
            reach and a stride of 1, for both sides are padded alike).
        dilation: As in ``torch.nn.functional.conv2d``.
        border: What is read outside x: ``"zeros"``, ``"replicate"`` (the nearest position), ``"reflect"`` (mirrored at
            the edge position), ``"circular"``; or ``"clamp"``: the whole window is moved until it lies inside x
            (ContMix).
        group_order: Channel c belongs to group c // (C/G) (``"contiguous"``, as in grouped convolutions and
            involution) or c % G (``"interleaved"``, LSNet).
        scale_factor: Every window serves this many output positions per axis, as if x were enlarged by nearest
            neighbour but with taps on the input grid (CARAFE).

    Returns:
        (B, C, *S_out) with ``S_out = scale_factor * ((S + 2 padding - dilation (k - 1) - 1) // stride + 1)``.

    Raises:
        ShapeError, DtypeError, DeviceError: the tensors do not fit together.
        ConfigError: an argument that is not one of those named.
        StrategyError: the forced strategy can't run.
    """
    window = (kernel_size, stride, padding, dilation, border, group_order, scale_factor)
    return run(OP, spell(x, weight, *window))


STRATEGIES = {
    "taps": Strategy(lambda problem: None, aten.run, "a pass over x per tap", portable=True),
    "native": Strategy(eligible.why_not, native.NATIVE.run, "fused CPU kernels"),
    "triton": Strategy(triton.why_not, triton.run, "one pass over x and the kernels", on_trial=True),
}
OP = Op("pixel_conv", pixel_conv, spell, STRATEGIES)
