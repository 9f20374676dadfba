# SPDX-License-Identifier: Apache-2.0
"""The native library (csrc/) and the way from tensors to it; it knows no op.

``CONVARY_LIBRARY`` names another build of the library (for example one with sanitizers); ``CONVARY_ISA`` forces a lower
instruction set than the CPU's best (``baseline``, ``avx2``, ``avx512``, ``avx512_bf16``, ``neon``). Both are read once,
at first use.
"""

from convary.ops.native.library import alone, available, isa, isas
from convary.ops.native.mix import mix_kernels, weighted_sum, why_not

__all__ = ["alone", "available", "isa", "isas", "mix_kernels", "weighted_sum", "why_not"]
