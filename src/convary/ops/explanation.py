# SPDX-License-Identifier: Apache-2.0
"""A dry run: which strategy an op would take on these tensors, why the others can't, and what each costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, overload

from torch import Tensor

from convary.errors import ConfigError, StrategyError, nearest
from convary.ops import cost, native
from convary.ops.cost import measured
from convary.ops.cost.tables import described, is_foreign
from convary.ops.dispatch import OPS, Op, decide, estimate, is_ranked, problem_of, recorded
from convary.ops.problem import Problem

P = ParamSpec("P")


@dataclass(frozen=True)
class StrategyRow:
    """One strategy of an explanation.

    ``reason`` says why it can't run, or is None. ``milliseconds`` are measured where the explanation's ``source`` says
    so and the strategy was timed, else estimated.
    """

    strategy: str
    chosen: bool
    reason: str | None
    milliseconds: float
    macs: int
    bytes: int


@dataclass(frozen=True)
class Explanation:
    """What ``explain`` found; print it.

    Attributes:
        op: The op's name.
        problem: Its sizes.
        rows: One per strategy.
        compiled: The strategy that ``torch.compile`` would record.
        exported: The strategy that ``torch.export`` and ``torch.jit.trace`` would record.
        source: Where the milliseconds come from.
    """

    op: str
    problem: str
    rows: tuple[StrategyRow, ...]
    compiled: str
    exported: str
    source: str

    @property
    def chosen(self) -> str:
        """The strategy that would run."""
        return next(row.strategy for row in self.rows if row.chosen)

    def __str__(self) -> str:
        lines = [
            f"{self.op}: {self.problem}",
            f"{'':2}{'strategy':<10}{'ms':>10}{'MMACs':>12}{'MB moved':>11}  note",
        ]
        for row in sorted(self.rows, key=lambda row: not row.chosen):
            mark = "> " if row.chosen else "  "
            note = "chosen" if row.chosen else row.reason or ""
            time = "-" if row.reason else f"{row.milliseconds:.3f}"
            lines.append(f"{mark}{row.strategy:<10}{time:>10}{row.macs / 1e6:>12.2f}{row.bytes / 1e6:>11.2f}  {note}")
        lines.append(f"  recorded by torch.compile: {self.compiled}")
        lines.append(f"  recorded by torch.export and torch.jit.trace: {self.exported}")
        return "\n".join([*lines, f"  times: {self.source}"])


@overload
def explain(op: Callable[P, Tensor], *arguments: P.args, **named: P.kwargs) -> Explanation: ...


@overload
def explain(op: str, *arguments: Any, **named: Any) -> Explanation: ...


def explain(op: Callable[..., Any] | str, *arguments: Any, **named: Any) -> Explanation:
    """Say what ``op(*arguments, **named)`` would do, without doing it.

    Args:
        op: ``mixed_conv``, ``sample_conv``, ``pixel_conv`` or their names.
        *arguments: What the op takes: tensors, of which requires_grad decides, with ``torch.is_grad_enabled()``,
            whether training is estimated.
        **named: What the op takes by name: stride, padding, dilation and so on.

    Returns:
        An explanation with one row per strategy.

    Raises:
        ConfigError: no such op, or arguments that it does not have. All that the call itself would raise.
    """
    name = op if isinstance(op, str) else op.__name__
    if name not in OPS:
        raise ConfigError(f"explain knows {', '.join(OPS)}; got {name!r}{nearest(name, OPS)}")
    known = OPS[name]
    problem = problem_of(known, *arguments, **named)
    chosen, times = decide(known, problem), measured.known(problem) or {}
    rows = [
        StrategyRow(
            strategy=strategy,
            chosen=strategy == chosen,
            reason=entry.why_not(problem) or _not_ranked(known, problem, strategy, times, chosen),
            milliseconds=times.get(strategy, estimate(problem, strategy)) * 1e3,
            macs=cost.macs(problem, strategy),
            bytes=cost.bytes_moved(problem, strategy),
        )
        for strategy, entry in known.strategies.items()
    ]
    compiled, exported = (_recorded(known, replace(problem, traced=True), portable) for portable in (False, True))
    sizes = (
        f"B={problem.B} C={problem.C} O={problem.O} G={problem.G} K={problem.K} k={problem.kernel_size} "
        f"S={problem.size}"
    )
    what = "forward and backward" if problem.training else "forward"
    described = f"{sizes}, {what}, {problem.device}"
    return Explanation(name, described, tuple(rows), compiled, exported, _source(problem))


def _recorded(op: Op, problem: Problem, portable: bool) -> str:
    try:
        return recorded(op, problem, portable=portable)
    except StrategyError as error:
        return f"an error, {error}"


def _not_ranked(op: Op, problem: Problem, name: str, times: Mapping[str, float], chosen: str) -> str | None:
    """Why a strategy that can run was not considered, or None."""
    if is_ranked(op, problem, name) or name in times or name == chosen:
        return None
    return "its speed here is not known; ops.autotune() measures it"


def _source(problem: Problem) -> str:
    if measured.known(problem):
        return f"measured here, {measured.tuned().path}"
    return f"{'not measured yet, the first call will; ' if measured.is_on() else ''}estimated, {_fit(problem.device)}"


def _fit(device: str) -> str:
    if device != "cpu":
        table = cost.fitted_on(device)
        return f"nominal figures, not measured on a {device} device" if table is None else described(table, device)
    fit = cost.fitted()
    reason = native.available()
    kernels = "native kernels for float32" if reason is None else f"no native kernels: {reason}"
    if (alone := native.alone()) is not None:
        kernels += f" on one thread: {alone}"
    where = f"{fit['machine']} ({fit['native']})"
    if is_foreign(fit):
        kernels += f"; no table is of {native.isa()}: ops.autotune() or convary bench fit measure here"
    return f"fitted on {where}, torch {fit['torch']}, {fit['threads']} threads; {kernels}"
