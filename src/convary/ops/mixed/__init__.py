# SPDX-License-Identifier: Apache-2.0
"""Convolution with kernels mixed from a bank, per sample."""

from __future__ import annotations

from torch import Tensor

from convary.ops.coefficients import Coefficients
from convary.ops.dispatch import Op, Strategy, run
from convary.ops.geometry import Size
from convary.ops.mixed import aten, native
from convary.ops.mixed.arguments import spell
from convary.ops.native import eligible
from convary.ops.sample import deferred, triton
from convary.ops.sample.aten import bmm, grouped, loop, needs_fixed_batch


def mixed_conv(
    x: Tensor,
    bank: Tensor,
    coeffs: Coefficients,
    bias: Tensor | None = None,
    *,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve each sample with its own mixture of the bank: ``sample_conv(x, mix_kernels(bank, coeffs))``.

    ``torch.compile`` keeps the native kernels where they can run. ``torch.export`` and ``torch.jit.trace`` record
    torch's own operations, which run anywhere; under ``ops.strategy("native")`` they record
    ``torch.ops.convary.mixed_conv``, and the program needs ``import convary.ops`` where it is loaded.

    Contiguous and channels_last x are taken, and y is in x's memory format. The native kernels read and write both as
    they lie; inside a compiled or exported graph they copy channels_last features to the contiguous format and back.

    Args:
        x: (B, C, *S), one to three spatial axes.
        bank: (K, O, C/G, *k).
        coeffs: factors for B samples.
        bias: (O,) is added as it is; a bank (K, O) is mixed like the kernels, by the kernel and filter factors.
        stride: As in ``torch.nn.functional.conv2d``.
        padding: As in ``torch.nn.functional.conv2d``, ``"same"`` and ``"valid"`` included. ``"same"`` takes any
            stride: the output has ceil(size / stride) positions, as TensorFlow has it.
        dilation: As in ``torch.nn.functional.conv2d``.
        groups: G.

    Returns:
        (B, O, *S_out).

    Raises:
        ShapeError, DtypeError, DeviceError: the tensors do not fit together.
        ConfigError: a stride, padding or dilation that no convolution takes.
        StrategyError: the forced strategy can't run.
    """
    return run(OP, spell(x, bank, coeffs, bias, stride, padding, dilation, groups))


# Of those that can run, the one whose estimated or measured cost is least: on CPUs mostly "native".
STRATEGIES = {
    "grouped": Strategy(needs_fixed_batch, aten.per_sample(grouped), "mixed kernels, one convolution", portable=True),
    "loop": Strategy(needs_fixed_batch, aten.per_sample(loop), "mixed kernels, a convolution per sample"),
    "outputs": Strategy(
        aten.outputs_why_not, aten.outputs, "a convolution per kernel, mixed outputs", True, aten.outputs_costly
    ),
    "bmm": Strategy(lambda problem: None, aten.per_sample(bmm), "mixed kernels, a product with the windows of x", True),
    "native": Strategy(eligible.why_not, native.run, "fused CPU kernels"),
    "triton": Strategy(
        triton.why_not, aten.per_sample(triton.run), "mixed kernels, a product with the windows of x", on_trial=True
    ),
    "deferred": Strategy(
        deferred.why_not, aten.per_sample(deferred.run), "mixed kernels, an operator that chooses when it runs"
    ),
}
OP = Op("mixed_conv", mixed_conv, spell, STRATEGIES, for_gpu=aten.for_gpu)
