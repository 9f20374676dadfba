# SPDX-License-Identifier: Apache-2.0
"""Primitives: tensors in, tensors out. Nothing here holds a parameter or normalises a weight."""

from convary.ops.coefficients import Coefficients
from convary.ops.cost.measured import Tuned, autotune, tuned
from convary.ops.dispatch import strategies, strategy
from convary.ops.explanation import Explanation, explain
from convary.ops.mixed import mixed_conv
from convary.ops.mixed.mix import mix_bias, mix_kernels
from convary.ops.pixel import pixel_conv
from convary.ops.sample import sample_conv

__all__ = [
    "Coefficients", "Explanation", "Tuned", "autotune", "explain", "mix_bias", "mix_kernels", "mixed_conv",
    "pixel_conv", "sample_conv", "strategies", "strategy", "tuned",
]  # fmt: skip
