# SPDX-License-Identifier: Apache-2.0
"""Generated kernels that are made again for the backward pass instead of being kept for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convary.ops import pixel_conv


def recompute(generate: Callable[..., Tensor], x: Tensor, *condition: Tensor, **window) -> Tensor:
    """``ops.pixel_conv(x, generate(*condition), **window)`` without keeping the kernels for the backward pass.

    Kernels per position are T/(C/G) times as large as x, and a network has many layers: kept, they are most of what
    training takes. Here x and the condition are kept, and the backward pass runs ``generate`` and the convolution once
    more (``torch.utils.checkpoint``). What ``generate`` writes to its buffers while it runs again, such as the running
    statistics of a norm, is forgotten, so that training is the same either way.

    Args:
        generate: A module, a method of one, or a function that makes kernels (B, G, T, *S_out) of the condition.
        x: (B, C, *S).
        *condition: What the kernels are made of; x itself, or other tensors.
        **window: The arguments of :func:`convary.ops.pixel_conv`: kernel_size, stride and so on.

    Returns:
        (B, C, *S_out).

    Raises:
        RuntimeError: in the backward pass, where x, the condition or a parameter of the module that generates was
            changed in place since the forward pass: the kernels would be others.
    """

    def run(x: Tensor, *condition: Tensor) -> Tensor:
        unchanged(x, *condition)
        return pixel_conv(x, generate(*condition), **window)

    unchanged: Callable[..., None] = _trust
    if not torch.is_grad_enabled():
        return run(x, *condition)
    owner = getattr(generate, "__self__", generate)
    if not torch.compiler.is_compiling():
        unchanged = _Unchanged(list(owner.parameters()) if isinstance(owner, nn.Module) else [])
    if torch.compiler.is_compiling() or not isinstance(owner, nn.Module):  # a compiled graph writes buffers once
        return checkpoint(run, x, *condition, use_reentrant=False)
    return checkpoint(
        run, x, *condition, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _Forgetting(owner))
    )


def _trust(*tensors: Tensor) -> None:
    """Of tensors that are read once."""


class _Unchanged:
    """Raises where tensors were written between its first call and a later one, as autograd does for what it saves."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters, self.versions = parameters, None

    def __call__(self, *tensors: Tensor) -> None:
        versions = [0 if t.is_inference() else t._version for t in (*tensors, *self.parameters)]
        if self.versions is None:
            self.versions = versions
        elif versions != self.versions:
            raise RuntimeError(
                "a tensor that generated kernels are made of was modified by an in-place operation between the forward "
                "pass and recomputing them for the backward pass; write to a copy of it, or step the optimizer after "
                "the backward pass"
            )


class _Forgetting:
    """Lets a module write to copies of its buffers; entered anew by every backward pass through the same graph."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        self.kept = [(part, dict(part._buffers)) for part in self.module.modules()]
        for part, buffers in self.kept:
            part._buffers.update({name: b.clone() for name, b in buffers.items() if b is not None})

    def __exit__(self, *exception: object) -> None:
        for part, buffers in self.kept:
            part._buffers.update(buffers)
