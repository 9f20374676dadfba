# SPDX-License-Identifier: Apache-2.0
"""Whether the native library may take tensors as they are, in the modes of torch that are on: asked by every op."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from convary.ops import native
from convary.ops.strategy import PLAIN, inside_functorch, is_watched

_RECORDED = (FakeTensor, FunctionalTensor)  # what torch traces with


def obstacle(*tensors: Tensor | None) -> str | None:
    """Why the native kernels can't take these tensors, or None. Asked on every call, so the order is by price."""
    if (absent := native.available()) is not None:
        return absent
    for tensor in tensors:
        if tensor is not None and (reason := refusal(tensor)) is not None:
            return reason
    return mode_obstacle()


def mode_obstacle() -> str | None:
    """Which mode of torch keeps the native kernels from running, whatever the tensors, or None."""
    if torch.is_autocast_enabled("cpu"):
        return "autocast wants torch's own operations, whose dtype it chooses"
    if inside_functorch():
        return "torch.func transforms see through torch's own operations only"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation sees through torch's own operations only"
    return None


def refusal(tensor: Tensor) -> str | None:
    """Why the native kernels can't take one tensor, or None."""
    if not tensor.is_cpu:
        return f"a tensor is on {tensor.device}, the native kernels run on the CPU"
    if tensor.dtype is not torch.float32:
        return f"a tensor is {tensor.dtype}, the native kernels take torch.float32"
    if tensor.layout is not torch.strided:
        return f"a tensor has the layout {tensor.layout}, the native kernels take strided ones"
    if type(tensor) not in PLAIN and not is_plain(tensor):  # the first spares a call
        return f"a tensor is a {type(tensor).__name__}, whose memory may not be its own"
    return None


def is_plain(tensor: Tensor) -> bool:
    """Whether its type promises nothing that the native kernels would break."""
    return type(tensor) in PLAIN or (type(tensor) in _RECORDED and is_watched(tensor))
