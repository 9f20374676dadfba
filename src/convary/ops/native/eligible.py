# SPDX-License-Identifier: Apache-2.0
"""May the native library run this? The one predicate, asked by every op, by ``mix_kernels`` and by routing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from convary.errors import NativeWarning
from convary.ops.native.half import HALVES
from convary.ops.native.library import available, shortcoming
from convary.ops.problem import Problem
from convary.ops.tracing import PLAIN, forced, in_forward_mode, inside_functorch, is_intercepted

_RECORDED = (FakeTensor, FunctionalTensor)  # what torch traces with
_EXACT = (torch.float32,)
_TAKEN = (torch.float32, *HALVES)
_told = False


def obstacle(
    tensors: Sequence[Tensor | None], index: Tensor | None = None, *, dispatched: bool = True, halves: bool = False
) -> str | None:
    """Why the native kernels can't take these tensors in the modes of torch that are on, or None.

    Args:
        tensors: Those of numbers.
        index: Whole numbers, whose type alone is asked for.
        dispatched: Whether a dispatcher runs the call, who obeys a forced strategy himself, shows tracers and
            dispatch modes an operator, and widens numbers of 16 bits. Mixing kernels and routing have no strategy, and
            do neither.
        halves: Whether features in bfloat16 are taken as they lie all the same, also where autocast made them so.
    """
    if (absent := available()) is not None:  # asked on every call, so the order is by price
        return absent
    dtypes = _TAKEN if dispatched else (torch.float32, torch.bfloat16) if halves else _EXACT
    for tensor in tensors:
        if tensor is not None and (reason := refusal(tensor, dtypes)) is not None:
            return reason
    if index is not None and not _is_plain(index):
        return f"index is a {type(index).__name__}, whose memory may not be its own"
    if not dispatched:
        if (name := forced.get()) not in (None, "native"):
            return f"strategy {name!r} is forced"
        if is_intercepted(*[t for t in tensors if t is not None]):
            return "a tracer or a dispatch mode, such as a counter, is watching and would not see it"
        if torch.is_autocast_enabled("cpu") and not (halves and _is_as_autocast_has_it(tensors)):
            return "autocast wants torch's own operations, whose dtype it chooses"
    return _mode_obstacle()


def all_exact(tensors: Sequence[Tensor | None]) -> bool:
    """Whether all numbers are, and stay, float32: then shapes alone tell whether the tensors of a call fit together."""
    if torch.is_autocast_enabled("cpu"):
        return False
    for tensor in tensors:
        if tensor is not None and tensor.dtype is not torch.float32:
            return False
    return True


def refusal(tensor: Tensor, dtypes: Sequence[torch.dtype] = _EXACT) -> str | None:
    """Why the native kernels can't take one tensor, or None."""
    if not tensor.is_cpu:
        return f"a tensor is on {tensor.device}, the native kernels run on the CPU"
    if tensor.dtype not in dtypes:
        return f"a tensor is {tensor.dtype}, the native kernels take {', '.join(map(str, dtypes))}"
    if tensor.layout is not torch.strided:
        return f"a tensor has the layout {tensor.layout}, the native kernels take strided ones"
    if type(tensor) not in PLAIN and not _is_plain(tensor):  # the first spares a call
        return f"a tensor is a {type(tensor).__name__}, whose memory may not be its own"
    return None


def tell_shortcoming(x: Tensor) -> None:
    """Warn, once in a process, if x is the native kernels' business but they are absent or have one thread.

    Not for graphs being recorded, which can't hold a warning.
    """
    global _told
    if _told or forced.get() is not None or refusal(x, _TAKEN) is not None or (text := shortcoming()) is None:
        return
    _told = True
    warnings.warn(text, NativeWarning, stacklevel=2)


def why_not(problem: Problem) -> str | None:
    """Why the native kernels can't run a problem, or None: its obstacle, or sizes that they don't take."""
    if len(problem.kernel_size) == 3:
        return "it takes one or two spatial axes"
    if problem.obstacle is not None or problem.traced:  # the sizes of a recorded graph are known when it runs
        return problem.obstacle
    if min(problem.C, problem.O, problem.K, problem.P) == 0:
        return "a tensor is empty"
    if max(problem.B, problem.C, problem.O, problem.K, *problem.size, *problem.reach, *problem.out_size) >= 2**31:
        return "a size is beyond 32 bits"
    return None


def _is_as_autocast_has_it(tensors: Sequence[Tensor | None]) -> bool:
    dtype = torch.get_autocast_dtype("cpu")
    return dtype is torch.bfloat16 and all(t is None or t.dtype is dtype for t in tensors)


def _mode_obstacle() -> str | None:
    if inside_functorch():
        return "torch.func transforms see through torch's own operations only"
    if in_forward_mode():
        return "forward-mode differentiation sees through torch's own operations only"
    return None


def _is_plain(tensor: Tensor) -> bool:
    """Whether its type promises nothing that the native kernels would break."""
    return type(tensor) in PLAIN or (type(tensor) in _RECORDED and is_intercepted(tensor))
