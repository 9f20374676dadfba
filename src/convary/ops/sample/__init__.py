# SPDX-License-Identifier: Apache-2.0
"""Convolution with one given kernel per sample, or per instance."""

from __future__ import annotations

from torch import Tensor

from convary.ops.dispatch import Op, Strategy, run
from convary.ops.geometry import Size
from convary.ops.native import eligible
from convary.ops.sample import aten, deferred, native, triton
from convary.ops.sample.arguments import spell


def sample_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    index: Tensor | None = None,
) -> Tensor:
    """Convolve each sample with its own kernel; with ``index``, each instance with its own kernel on its own image.

    ``y[n,o,p] = bias[n,o] + sum_c sum_t weight[n,o,c,t] x[index[n], c, p*stride + t*dilation - padding]``

    Graphs record it as they do ``mixed_conv``; the operator is ``torch.ops.convary.sample_conv``. Memory formats are
    taken as in ``mixed_conv``.

    Args:
        x: (B, C, *S), one to three spatial axes.
        weight: (B, O, C/G, *k), or (N, O, C/G, *k) with ``index``.
        bias: (O,) for all, or one row per kernel (B or N, O).
        stride: As in ``torch.nn.functional.conv2d``.
        padding: As in ``torch.nn.functional.conv2d``, ``"same"`` and ``"valid"`` included. ``"same"`` takes any
            stride: the output has ceil(size / stride) positions, as TensorFlow has it.
        dilation: As in ``torch.nn.functional.conv2d``.
        groups: G.
        index: (N,) integers in [0, B): the image that kernel n is applied to.

    Returns:
        (B or N, O, *S_out).

    Raises:
        ShapeError, DtypeError, DeviceError: the tensors do not fit together.
        ConfigError: a stride, padding or dilation that no convolution takes.
        StrategyError: the forced strategy can't run.
    """
    return run(OP, spell(x, weight, bias, stride, padding, dilation, groups, index))


STRATEGIES = {
    "grouped": Strategy(aten.needs_fixed_batch, aten.grouped, "one convolution with every kernel", portable=True),
    "loop": Strategy(aten.needs_fixed_batch, aten.loop, "a convolution per kernel"),
    "bmm": Strategy(lambda problem: None, aten.bmm, "a product with the windows of x", portable=True),
    "native": Strategy(eligible.why_not, native.run, "fused CPU kernels"),
    "triton": Strategy(
        triton.why_not, triton.run, "a product with the windows of x, gathered on the way", on_trial=True
    ),
    "deferred": Strategy(deferred.why_not, deferred.run, "an operator of the graph that chooses when it runs"),
}
OP = Op("sample_conv", sample_conv, spell, STRATEGIES, for_gpu=deferred.for_gpu)
