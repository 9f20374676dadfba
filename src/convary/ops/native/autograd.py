# SPDX-License-Identifier: Apache-2.0
"""What all of our ``autograd.Function``s share: how one is called, and how its gradient is differentiated again."""

from __future__ import annotations

from _thread import _count as threads_beside_this_one
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def apply(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    """``function.apply(*args)``, which by itself may hang where threads train the same parameter.

    Seen in torch 2.14: ``apply`` locks a leaf's autograd data while it holds Python's lock; an ordinary operation on
    the same leaf, in another thread, locks them the other way round. So in a process with several threads the leaves
    are taken as views, which ordinary operations make.
    """
    if threads_beside_this_one():
        args = tuple([_view(arg) if isinstance(arg, Tensor) else arg for arg in args])
    return function.apply(*args)


def _view(tensor: Tensor) -> Tensor:
    return tensor.view_as(tensor) if tensor.requires_grad and tensor.is_leaf else tensor


def differentiable(
    function: Callable[..., Tensor], tensors: Sequence[Tensor | None], needed: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients for a backward pass under ``create_graph=True``, made by operations that have derivatives themselves.

    Saved tensors may be made from each other: a router makes coefficients from x. The gradient of each must leave out
    what flows through the others, which autograd adds by itself. So the result is made again from aliases, of which
    none is made from another.

    Args:
        function: Makes the result once more, of ``tensors``, by torch's own operations.
        tensors: What the result was made from, as saved.
        needed: Which of these need a gradient.
        grad: The gradient of the result.

    Returns:
        A gradient for each tensor that needs one, and None for the others.
    """
    aliases = [None if t is None else t.view_as(t) for t in tensors]
    wanted = [t for t, need in zip(aliases, needed, strict=True) if need and t is not None]
    if not wanted:
        return (None,) * len(aliases)
    found = iter(torch.autograd.grad(function(*aliases), wanted, grad, create_graph=True))
    return tuple(next(found) if need and t is not None else None for t, need in zip(aliases, needed, strict=True))
