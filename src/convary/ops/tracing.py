# SPDX-License-Identifier: Apache-2.0
"""What surrounds a call: who records or watches it, what differentiates it, and which strategy is forced."""

from __future__ import annotations

from contextvars import ContextVar

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]

PLAIN = (Tensor, torch.nn.Parameter)
forced: ContextVar[str | None] = ContextVar("convary_strategy", default=None)  # set by ``ops.strategy``
kept: ContextVar[bool] = ContextVar("convary_kept", default=False)  # an export may hold convary's own operators


def is_traced(*tensors: Tensor) -> bool:
    """Whether a graph is being recorded (compile, export, jit.trace), so that nothing may depend on the batch size."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return True
    for tensor in tensors:  # plain loops: this is asked on every call
        if type(tensor) not in PLAIN:  # whose sizes are numbers
            for size in tensor.shape:
                if isinstance(size, torch.SymInt):
                    return True
    return False


def is_intercepted(*tensors: Tensor) -> bool:
    """Whether someone is to see each operation: a tracer, or a dispatch mode such as a counter."""
    return is_traced(*tensors) or torch._C._len_torch_dispatch_stack() > 0


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may follow."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def is_portable() -> bool:
    """Whether the graph being recorded keeps to torch's own operations: one for elsewhere, that may not hold ours."""
    return not kept.get() and is_exported()


def is_exported() -> bool:
    """Whether the graph being recorded may run elsewhere (export, jit.trace)."""
    if not torch.compiler.is_compiling():
        return True
    return not hasattr(torch.compiler, "is_exporting") or torch.compiler.is_exporting()  # torch 2.7


def is_exporting() -> bool:
    """Whether ``torch.export`` is recording, also for this machine: what loads its program may have no Python."""
    return torch.compiler.is_compiling() and is_exported()


def holds_sizes(*sizes: object) -> bool:
    """Whether the graph being exported keeps these sizes as numbers: it then serves no others."""
    return torch.compiler.is_compiling() and is_exported() and all(type(size) is int for size in sizes)


def is_onnx_trace() -> bool:
    """Whether torch's TorchScript exporter is tracing for ONNX (``torch.onnx.export(dynamo=False)``)."""
    return torch._C._get_tracing_state() is not None and torch.onnx.is_in_onnx_export()


def inside_functorch() -> bool:
    """Whether vmap or torch.func.grad is running: tensors then are wrappers without memory of their own."""
    # Not `is not None`: Dynamo traces this call and models any result as a non-None object.
    return isinstance(_functorch.peek_interpreter_stack(), _functorch.CInterpreter)


def in_forward_mode() -> bool:
    """Whether forward-mode differentiation is on: it sees through torch's own operations only."""
    return torch.autograd.forward_ad._current_level >= 0
