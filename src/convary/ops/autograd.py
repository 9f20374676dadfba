# SPDX-License-Identifier: Apache-2.0
"""Calling an ``autograd.Function``, from several Python threads too."""

from __future__ import annotations

from _thread import _count as threads_beside_this_one
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
