# SPDX-License-Identifier: Apache-2.0
"""The one way in: a call of an op is checked once, its strategy chosen and remembered, and run."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from convary.errors import ConfigError, StrategyError, nearest
from convary.ops import cost
from convary.ops.cost import measured
from convary.ops.geometry import autocast_dtype
from convary.ops.native import eligible, library
from convary.ops.problem import Problem
from convary.ops.tracing import forced, is_exporting, is_portable, is_traced, needs_gradient


class Arguments(Protocol):
    """The arguments of a call, spelled out: a named tuple in the order in which strategies take them, settings last."""

    @property
    def images(self) -> Tensor | None:
        """The image of each kernel, in whole numbers, where the op takes an ``index``."""
        ...

    def tensors(self) -> tuple[Tensor | None, ...]:
        """All tensors of numbers: x, the kernels, then the others."""
        ...

    def check(self) -> Arguments:
        """Raise unless the tensors fit together; the arguments, in one dtype where autocast wants that first."""
        ...

    def problem(self, *, training: bool, obstacle: str | None) -> Problem:
        """The problem that checked arguments pose."""
        ...

    def nothing(self) -> Tensor | None:
        """The answer where there is nothing to compute, connected to the tensors; else None."""
        ...

    def __getitem__(self, key: Any, /) -> Any: ...
    def __iter__(self) -> Iterator: ...


@dataclass(frozen=True)
class Strategy:
    """One way to execute an op.

    Attributes:
        why_not: The reason it can't run a problem, or None. The dispatcher and ``explain`` both ask it.
        run: The implementation; takes the op's arguments one by one.
        how: What it does, in a line.
        portable: It uses torch's operations alone. A graph that may run elsewhere records the first such strategy that
            can run; one of them depends on no size.
        costly: Why such a graph leaves a problem to a later one all the same, or None.
        on_trial: Its speed is not known well enough for an estimate to choose it, but where the device's table of costs
            has it: a measurement may, or who forces it.
    """

    why_not: Callable[[Problem], str | None]
    run: Callable[..., Tensor]
    how: str
    portable: bool = False
    costly: Callable[[Problem], str | None] = lambda problem: None
    on_trial: bool = False

    def left(self, problem: Problem) -> str | None:
        """Why a graph that may run elsewhere does not record it though it is portable, or None."""
        return self.why_not(problem) or self.costly(problem)


@dataclass(frozen=True)
class Op:
    """An op and its table of strategies; one that can run any problem is portable.

    Attributes:
        name: Of the function.
        function: What is called.
        spell: Its arguments, spelled out; checks no more than that takes.
        strategies: By name.
        for_gpu: Which of them ``torch.compile`` records for a CUDA device; the first portable one where it is None.
    """

    name: str
    function: Callable[..., Tensor]
    spell: Callable[..., Arguments]
    strategies: Mapping[str, Strategy]
    for_gpu: Callable[[Problem], str] | None = None

    def __post_init__(self) -> None:
        """Be known by name."""
        OPS[self.name] = self


OPS: dict[str, Op] = {}
_listener: ContextVar[Callable[[str, str, str], None] | None] = ContextVar("convary_listener", default=None)
_choices: dict[tuple, str] = {}
_CHOICES_KEPT = 4096


@contextlib.contextmanager
def strategy(name: str | None) -> Iterator[None]:
    """Force every op inside the ``with`` block to use one strategy; None restores the automatic choice.

    Args:
        name: One of ``ops.strategies()``.

    Raises:
        ConfigError: there is no strategy of that name. Ops inside raise StrategyError where it can't run.
    """
    if name is not None and name not in (names := strategies()):
        raise ConfigError(f"there is no strategy {name!r}; choose from {', '.join(names)}{nearest(name, names)}")
    token = forced.set(name)
    try:
        yield
    finally:
        forced.reset(token)


@contextlib.contextmanager
def listening(listener: Callable[[str, str, str], None]) -> Iterator[None]:
    """Tell ``listener`` of every call that a recorder sees inside the block: the op, its strategy, and why that one."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def strategies() -> tuple[str, ...]:
    """The names that ``strategy`` takes: those of all ops."""
    return tuple(dict.fromkeys(name for op in OPS.values() for name in op.strategies))


def run(op: Op, arguments: Arguments) -> Tensor:
    """Execute a call.

    Raises:
        ShapeError, DtypeError, DeviceError: the tensors do not fit together.
        StrategyError: the forced strategy can't run; says why and which can.
    """
    tensors, x = arguments.tensors(), arguments[0]
    if is_traced(x, arguments[1]):
        if _listener.get() is None and _keeps_native(op, arguments):
            return op.strategies["native"].run(*arguments)
        arguments = arguments.check()
        problem = pose(arguments)
        name = recorded(op, problem, portable=is_portable())
        if (listener := _listener.get()) is not None:
            listener(op.name, name, _reason(op, problem, name))
        return op.strategies[name].run(*arguments)
    obstacle = eligible.obstacle(tensors, arguments.images)
    shapes, indexed = tuple([None if t is None else t.shape for t in tensors]), arguments.images is not None
    gradient, slowdown = needs_gradient(*tensors), library.slowdown()
    alike = obstacle is None and eligible.all_exact(tensors)
    dtype = x.dtype if alike else autocast_dtype(x) or x.dtype
    key = (op.name, shapes, indexed, arguments[-1], gradient, x.device, dtype, obstacle, slowdown, alike)
    if measured.is_on():
        key = (*key, *measured.state(x))
    name = _choices.get(key) if forced.get() is None else None
    if name is None or not alike:  # else a call like it was checked: float32 on the CPU, shapes that fit
        arguments = arguments.check()
        eligible.tell_shortcoming(x)
        name = name or choose(op, arguments)
        if (nothing := arguments.nothing()) is not None:
            return nothing
        _remember(key, name)
    return op.strategies[name].run(*arguments)


def _keeps_native(op: Op, arguments: Arguments) -> bool:
    """Whether ``recorded`` is going to say ``native``, asked in few steps: ``torch.compile`` traces each of them.

    The operator checks the shapes, when the graph is made.
    """
    if forced.get() is not None or is_portable() or arguments[0].ndim > 4:
        return False
    if not eligible.all_exact(arguments.tensors()):
        return False
    return eligible.obstacle((arguments[0], arguments[1]), arguments.images) is None


def pose(arguments: Arguments) -> Problem:
    """The problem that checked arguments pose, here and now."""
    tensors = arguments.tensors()
    obstacle = eligible.obstacle(tensors, arguments.images)
    return arguments.problem(training=needs_gradient(*tensors), obstacle=obstacle)


def problem_of(op: Op, *arguments, **named) -> Problem:
    """The problem that ``op.function(*arguments, **named)`` poses, after all of its checks.

    Raises:
        ConfigError: arguments that the op does not have.
    """
    signature = inspect.signature(op.function)
    try:
        given = signature.bind(*arguments, **named)
    except TypeError as error:
        raise ConfigError(f"{op.name} takes {', '.join(signature.parameters)}; {error}") from None
    given.apply_defaults()
    return pose(op.spell(*given.args, **given.kwargs).check())


def choose(op: Op, arguments: Arguments) -> str:
    """As :func:`decide` for checked arguments, which are measured first where that is wanted."""
    problem = pose(arguments)
    if measured.is_on() and forced.get() is None and arguments.nothing() is None:
        measured.measure(problem, arguments, {name: op.strategies[name].run for name in _able(op, problem)})
    return decide(op, problem)


def decide(op: Op, problem: Problem) -> str:
    """The forced strategy, or the fastest of those that can run: as measured, else as estimated.

    Raises:
        StrategyError: the forced strategy can't run.
    """
    if (name := forced.get()) is not None:
        return _check_forced(op, name, problem)
    able = _able(op, problem)
    times = measured.known(problem) or {}
    if timed := {name: times[name] for name in able if name in times}:
        return measured.preferred(timed)
    ranked = [name for name in able if is_ranked(op, problem, name)]
    return cost.preferred({name: estimate(problem, name) for name in ranked})


def is_ranked(op: Op, problem: Problem, strategy: str) -> bool:
    """Whether an estimate may choose a strategy: one on trial, only where it was measured on such a device."""
    return not op.strategies[strategy].on_trial or cost.knows(problem, strategy)


def estimate(problem: Problem, strategy: str) -> float:
    """Estimated seconds of a call on the threads that a strategy has; the fit gave all of them the same."""
    return cost.estimate(problem, strategy) * (library.slowdown() if strategy == "native" else 1)


def recorded(op: Op, problem: Problem, *, portable: bool) -> str:
    """What a graph records: the forced strategy, or ``native`` for this machine, or the first portable one that can.

    Native kernels that have one thread must be asked for. A graph compiled for a GPU records what the op has for it.

    Raises:
        StrategyError: the forced strategy can't run, or its graph would hold the batch size.
    """
    if (name := forced.get()) is not None:
        return _check_forced(op, name, problem)
    native = None if portable else op.strategies.get("native")
    if native is not None and native.why_not(problem) is None and library.slowdown() == 1:
        return "native"
    if op.for_gpu is not None and not portable and problem.device.startswith("cuda") and not is_exporting():
        return op.for_gpu(problem)
    return next(name for name, entry in op.strategies.items() if entry.portable and entry.left(problem) is None)


def _reason(op: Op, problem: Problem, name: str) -> str:
    """What a recorded strategy does, and why no earlier portable one was taken."""
    if forced.get() is not None or not op.strategies[name].portable:
        return f"{op.strategies[name].how}; asked for"
    portable = (other for other, entry in op.strategies.items() if entry.portable)
    refused = itertools.takewhile(lambda other: other != name, portable)
    return "; ".join(
        [op.strategies[name].how, *(f"not {other}: {op.strategies[other].left(problem)}" for other in refused)]
    )


def _able(op: Op, problem: Problem) -> list[str]:
    return [name for name, entry in op.strategies.items() if entry.why_not(problem) is None]


def _check_forced(op: Op, name: str, problem: Problem) -> str:
    entry = op.strategies.get(name)
    reason = entry.why_not(problem) if entry else f"{op.name} has no such strategy"
    if reason is not None:
        able = ", ".join(_able(op, problem))
        raise StrategyError(f"strategy {name!r} can't run this {op.name}: {reason}; use one of {able}")
    return name


def _remember(key: tuple, name: str) -> None:
    if forced.get() is None:
        if len(_choices) >= _CHOICES_KEPT:
            _choices.clear()
        _choices[key] = name
