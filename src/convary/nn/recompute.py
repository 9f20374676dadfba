# SPDX-License-Identifier: Apache-2.0
"""Generated kernels that are made again for the backward pass instead of being kept for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

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
    """

    def run(x: Tensor, *condition: Tensor) -> Tensor:
        return pixel_conv(x, generate(*condition), **window)

    if not torch.is_grad_enabled():
        return run(x, *condition)
    owner = getattr(generate, "__self__", generate)
    if torch.compiler.is_compiling() or not isinstance(owner, nn.Module):  # a compiled graph writes buffers once
        return checkpoint(run, x, *condition, use_reentrant=False)
    return checkpoint(
        run, x, *condition, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _forgetting(owner))
    )


@contextlib.contextmanager
def _forgetting(module: nn.Module) -> Iterator[None]:
    """Let the module write to copies of its buffers."""
    kept = [(part, dict(part._buffers)) for part in module.modules()]
    for part, buffers in kept:
        part._buffers.update({name: b.clone() for name, b in buffers.items() if b is not None})
    try:
        yield
    finally:
        for part, buffers in kept:
            part._buffers.update(buffers)
