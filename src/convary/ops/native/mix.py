# SPDX-License-Identifier: Apache-2.0
"""A bank mixed by the kernel factor: one pass over the bank per batch, whatever the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from convary.errors import ConvaryError
from convary.ops.native import autograd, eligible, library
from convary.ops.native.call import is_dense


def why_not(bank: Tensor, coeff: Tensor) -> str | None:
    """None where :func:`mix_kernels` takes these tensors, else the reason why it does not.

    Args:
        bank: (K, N).
        coeff: (B, K).
    """
    if (reason := eligible.obstacle((bank, coeff), dispatched=False)) is not None:
        return reason
    for name, tensor in (("bank", bank), ("coeff", coeff)):
        if tensor.ndim != 2:
            return f"{name} has {tensor.ndim} dimensions, 2 are wanted"
        if not is_dense(tensor):
            return f"{name} is not contiguous"
    if bank.shape[0] != coeff.shape[1]:
        return f"bank has {bank.shape[0]} kernels but coeff has {coeff.shape[1]} columns"
    return None


def mix_kernels(bank: Tensor, coeff: Tensor) -> Tensor:
    """``coeff @ bank`` in one pass over the bank, whatever the batch; not differentiable by itself.

    Runs on as many threads as ``torch.get_num_threads()`` says, before torch 2.10 on one.

    Args:
        bank: (K, N) float32, contiguous, on the CPU: K flattened kernels.
        coeff: (B, K) float32, contiguous, on the CPU: mixing weights.

    Returns:
        (B, N), fresh memory without a gradient.

    Raises:
        ConvaryError: the library is not available, or :func:`why_not` refuses the tensors.
    """
    if (reason := why_not(bank, coeff)) is not None:
        raise ConvaryError(f"native.mix_kernels cannot run: {reason}; use coeff @ bank")
    loaded = library.loaded()
    B, K = coeff.shape
    N = bank.shape[1]
    out = torch.empty((B, N), dtype=torch.float32, device="cpu")  # whatever the defaults are
    code = loaded.entries["mix_kernels"](bank.data_ptr(), coeff.data_ptr(), out.data_ptr(), K, N, B)
    if code:
        raise ConvaryError(f"native.mix_kernels failed: {loaded.error_text(code).decode()}; got {K=}, {N=}, {B=}")
    return out


def weighted_sum(coeff: Tensor, bank: Tensor) -> Tensor:
    """:func:`mix_kernels`, differentiable."""
    return autograd.apply(_Mix, coeff, bank)


class _Mix(torch.autograd.Function):
    """The native forward; its gradient is two matrix products, which can be differentiated again."""

    @staticmethod
    def forward(ctx, coeff: Tensor, bank: Tensor) -> Tensor:
        ctx.save_for_backward(coeff, bank)
        return mix_kernels(bank, coeff)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        coeff, bank = ctx.saved_tensors
        of_coeff = grad @ bank.T if ctx.needs_input_grad[0] else None
        return of_coeff, coeff.T @ grad if ctx.needs_input_grad[1] else None
