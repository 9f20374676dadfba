# SPDX-License-Identifier: Apache-2.0
"""Execution strategies: which exist, why one can't run, which one is chosen, and how to force one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]

from convary.errors import ConfigError, StrategyError, nearest
from convary.ops import cost
from convary.ops.coefficients import Coefficients
from convary.ops.geometry import Geometry
from convary.ops.shapes import plain_shape

NAMES = ("grouped", "loop", "outputs", "bmm", "taps", "native")
_PORTABLE = ("bmm", "taps")  # in operations of torch alone, for every batch and size: each op has one
PLAIN = (Tensor, torch.nn.Parameter)
_forced: ContextVar[str | None] = ContextVar("convary_strategy", default=None)


@dataclass(frozen=True)
class Problem:
    """What a strategy needs to know about one call, in plain numbers. B counts kernels (instances with ``index``).

    ``reach`` is the padded size of each axis, ``obstacle`` why the native kernels can't take the tensors.
    """

    op: str
    B: int
    C: int
    O: int
    G: int
    K: int
    kernel_size: tuple[int, ...]
    size: tuple[int, ...]
    out_size: tuple[int, ...]
    stride: tuple[int, ...]
    axes: tuple[str, ...]
    shared: tuple[str, ...]
    training: bool
    traced: bool
    device: str
    itemsize: int
    reach: tuple[int, ...] = ()
    obstacle: str | None = None

    @property
    def T(self) -> int:
        """Taps of a kernel."""
        return prod(self.kernel_size)

    @property
    def P(self) -> int:
        """Output positions of a sample."""
        return prod(self.out_size)

    @property
    def kernel_numel(self) -> int:
        """Weights of one kernel."""
        return self.O * (self.C // self.G) * self.T


@dataclass(frozen=True)
class Strategy:
    """One way to execute an op.

    Attributes:
        why_not: The reason it can't run a problem, or None. The dispatcher and ``explain`` both ask it.
        run: The implementation.
    """

    why_not: Callable[[Problem], str | None]
    run: Callable[..., Tensor]


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


def is_watched(*tensors: Tensor) -> bool:
    """Whether someone is to see the operation itself: a tracer, or a dispatch mode such as a counter."""
    return is_traced(*tensors) or torch._C._len_torch_dispatch_stack() > 0


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may follow."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def is_portable() -> bool:
    """Whether the graph being recorded may run elsewhere (export, jit.trace): it keeps to torch's own operations."""
    if not torch.compiler.is_compiling():
        return True
    return not hasattr(torch.compiler, "is_exporting") or torch.compiler.is_exporting()  # torch 2.7


def is_onnx_trace() -> bool:
    """Whether torch's TorchScript exporter is tracing for ONNX (``torch.onnx.export(dynamo=False)``)."""
    return torch._C._get_tracing_state() is not None and torch.onnx.is_in_onnx_export()


def inside_functorch() -> bool:
    """Whether vmap or torch.func.grad is running: tensors then are wrappers without memory of their own."""
    # not "is not None": torch.compile, which traces this too, takes every answer for an object
    return isinstance(_functorch.peek_interpreter_stack(), _functorch.CInterpreter)


@contextlib.contextmanager
def strategy(name: str | None) -> Iterator[None]:
    """Force every op inside the ``with`` block to use one strategy; None restores the automatic choice.

    Args:
        name: One of ``ops.strategies()``.

    Raises:
        ConfigError: there is no strategy of that name. Ops inside raise StrategyError where it can't run.
    """
    if name is not None and name not in NAMES:
        raise ConfigError(f"there is no strategy {name!r}; choose from {', '.join(NAMES)}{nearest(name, NAMES)}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def may_be_native() -> bool:
    """Whether what is not a strategy's own business, such as routing, may take the native library too."""
    return _forced.get() in (None, "native")


def strategies() -> tuple[str, ...]:
    """The names that ``strategy`` takes."""
    return NAMES


_choices: dict[tuple, str] = {}
_CHOICES_KEPT = 4096


def choose(table: dict[str, Strategy], key: tuple, problem: Callable[[], Problem]) -> str:
    """The forced strategy, or the cheapest that can run.

    Args:
        table: The strategies of one op, by name.
        key: Everything that the choice depends on, hashable; choices are remembered by it.
        problem: Makes the problem when the choice is not remembered.

    Raises:
        StrategyError: the forced strategy can't run; says why and which can.
    """
    chosen = remembered(key)
    if chosen is None:
        chosen = decide(table, problem())
        if _forced.get() is None:
            if len(_choices) >= _CHOICES_KEPT:
                _choices.clear()
            _choices[key] = chosen
    return chosen


def remembered(key: tuple) -> str | None:
    """What :func:`choose` chose for the key, so that a call like it was checked before; None where one is forced."""
    return _choices.get(key) if _forced.get() is None else None


def choose_traced(table: dict[str, Strategy], problem: Problem) -> str:
    """The choice while a graph is recorded."""
    return recorded(table, problem, portable=is_portable())


def recorded(table: dict[str, Strategy], problem: Problem, *, portable: bool) -> str:
    """What a graph records: the forced strategy, or ``native`` for this machine, or what depends on no size either.

    Raises:
        StrategyError: the forced strategy can't run, or its graph would hold the batch size.
    """
    name = _forced.get()
    if name is not None:
        return _check_forced(table, name, problem)
    native = None if portable else table.get("native")
    if native is not None and native.why_not(problem) is None:
        return "native"
    return next(name for name in _PORTABLE if name in table)


def _check_forced(table: dict[str, Strategy], name: str, problem: Problem) -> str:
    entry = table.get(name)
    reason = entry.why_not(problem) if entry else f"{problem.op} has no such strategy"
    if reason is not None:
        able = [n for n, entry in table.items() if entry.why_not(problem) is None]
        raise StrategyError(f"strategy {name!r} can't run this {problem.op}: {reason}; use one of {', '.join(able)}")
    return name


def decide(table: dict[str, Strategy], problem: Problem) -> str:
    """The forced strategy, or the one with the lowest estimated time among those that can run."""
    name = _forced.get()
    if name is not None:
        return _check_forced(table, name, problem)
    able = [name for name, entry in table.items() if entry.why_not(problem) is None]
    return cost.preferred({name: cost.estimate(problem, name) for name in able})


def describe(
    op: str,
    x: Tensor,
    kernels: Tensor,
    geometry: Geometry,
    *,
    batch: int,
    training: bool,
    coeffs: Coefficients | None = None,
    obstacle: str | None = None,
) -> Problem:
    """The problem that a call poses."""
    axes = () if coeffs is None else tuple(coeffs.factors())
    (_, C, *size), (K, O, _, *kernel_size) = plain_shape(x), plain_shape(kernels)
    return Problem(
        op=op,
        B=batch,
        C=C,
        O=O,
        G=geometry.groups,
        K=K if coeffs is not None else 1,
        kernel_size=tuple(kernel_size),
        size=tuple(size),
        out_size=tuple(geometry.out_size(size, kernel_size)),
        stride=geometry.stride,
        axes=axes,
        shared=() if coeffs is None else tuple(axis for axis in axes if coeffs.shared(axis) is not None),
        training=training,
        traced=is_traced(x, kernels),
        device=x.device.type,
        itemsize=x.element_size(),
        reach=tuple(s + 2 * p for s, p in zip(size, geometry.padding, strict=True)),
        obstacle=obstacle,
    )
