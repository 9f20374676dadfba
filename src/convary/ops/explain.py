# SPDX-License-Identifier: Apache-2.0
"""A dry run: which strategy an op would take on these tensors, why the others can't, and what each costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from convary.errors import ConfigError, StrategyError, nearest
from convary.ops import cost, eligible, instances, mixed, native, native_sample, pixel, sample, window
from convary.ops.coefficients import Coefficients
from convary.ops.geometry import autocasting, check_conv, resolve
from convary.ops.strategy import Problem, Strategy, decide, describe, needs_gradient, recorded

_TABLES = {"sample_conv": sample.STRATEGIES, "mixed_conv": mixed.STRATEGIES, "pixel_conv": pixel.STRATEGIES}


@dataclass(frozen=True)
class StrategyRow:
    """One strategy of an explanation. ``reason`` says why it can't run, or is None."""

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
        source: Where the estimates come from.
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
            f"{'':2}{'strategy':<10}{'est. ms':>10}{'MMACs':>12}{'MB moved':>11}  note",
        ]
        for row in self.rows:
            mark = "> " if row.chosen else "  "
            note = "chosen" if row.chosen else row.reason or ""
            time = "-" if row.reason else f"{row.milliseconds:.3f}"
            lines.append(f"{mark}{row.strategy:<10}{time:>10}{row.macs / 1e6:>12.2f}{row.bytes / 1e6:>11.2f}  {note}")
        lines.append(f"  recorded by torch.compile: {self.compiled}")
        lines.append(f"  recorded by torch.export and torch.jit.trace: {self.exported}")
        return "\n".join([*lines, f"  estimates: {self.source}"])


def explain(
    op: Callable | str,
    x: Tensor,
    kernels: Tensor,
    coeffs: Coefficients | None = None,
    bias: Tensor | None = None,
    **geometry,
) -> Explanation:
    """Say what ``op(x, kernels, ...)`` would do, without doing it.

    Args:
        op: ``mixed_conv``, ``sample_conv``, ``pixel_conv`` or their names.
        x: (B, C, *S); requires_grad decides, with ``torch.is_grad_enabled()``, whether training is estimated.
        kernels: The bank (K, O, C/G, *k) of ``mixed_conv``, the weight (N, O, C/G, *k) of ``sample_conv`` or the weight
            (B, G, T, *S_out) of ``pixel_conv``.
        coeffs: The coefficients of ``mixed_conv``.
        bias: Accepted for symmetry with the op; it changes nothing.
        **geometry: The op's own arguments: stride, padding, dilation and so on.

    Returns:
        An explanation with one row per strategy.

    Raises:
        ConfigError: no such op. The op's own errors where the tensors do not fit.
    """
    name = op if isinstance(op, str) else op.__name__
    if name not in _TABLES:
        raise ConfigError(f"explain knows {', '.join(_TABLES)}; got {name!r}{nearest(name, _TABLES)}")
    if (coeffs is None) == (name == "mixed_conv"):
        raise ConfigError("explain needs coefficients for mixed_conv and takes none for the others")
    if name == "pixel_conv":
        problem = _pixel(x, kernels, **geometry)
    else:
        problem = _conv(name, x, kernels, coeffs, bias, geometry)
    table = _TABLES[name]
    chosen = decide(table, problem)
    rows = [
        StrategyRow(
            strategy=strategy,
            chosen=strategy == chosen,
            reason=entry.why_not(problem),
            milliseconds=cost.estimate(problem, strategy) * 1e3,
            macs=cost.macs(problem, strategy),
            bytes=cost.bytes_moved(problem, strategy),
        )
        for strategy, entry in table.items()
    ]
    compiled, exported = (_recorded(table, replace(problem, traced=True), portable) for portable in (False, True))
    sizes = (
        f"B={problem.B} C={problem.C} O={problem.O} G={problem.G} K={problem.K} k={problem.kernel_size} "
        f"S={problem.size}"
    )
    what = "forward and backward" if problem.training else "forward"
    return Explanation(name, f"{sizes}, {what}, {problem.device}", tuple(rows), compiled, exported, _source(x))


def _conv(
    name: str, x: Tensor, kernels: Tensor, coeffs: Coefficients | None, bias: Tensor | None, geometry: dict
) -> Problem:
    """What a call of ``mixed_conv`` or ``sample_conv`` poses, after its checks."""
    index = geometry.pop("index", None)
    arguments = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | geometry
    x, resolved = resolve(x, kernels.shape[3:], **arguments)
    check_conv(x, kernels, resolved, mixed_dtypes=autocasting(x))
    if coeffs is not None:
        coeffs.check(kernels, batch=x.shape[0])
        training, batch = needs_gradient(x, kernels, *coeffs.factors().values()), x.shape[0]
        obstacle = eligible.obstacle(x, kernels, *coeffs.factors().values(), bias)
    else:
        instances.check_kernels(x, kernels, bias, index)
        training, batch = needs_gradient(x, kernels), kernels.shape[0]
        obstacle = native_sample.obstacle(x, kernels, bias, index)
    return describe(name, x, kernels, resolved, batch=batch, training=training, coeffs=coeffs, obstacle=obstacle)


def _pixel(x: Tensor, weight: Tensor, **arguments) -> Problem:
    """What a call of ``pixel_conv`` poses, after its checks."""
    return pixel.describe(x, weight, window.resolve(x, weight, **arguments))


def _recorded(table: dict[str, Strategy], problem: Problem, portable: bool) -> str:
    try:
        return recorded(table, problem, portable=portable)
    except StrategyError as error:
        return f"an error, {error}"


def _source(x: Tensor) -> str:
    if x.device.type != "cpu":
        return f"nominal figures, not measured on a {x.device.type} device"
    fit = cost.fitted()
    reason = native.available()
    kernels = "native kernels for float32" if reason is None else f"no native kernels: {reason}"
    return f"fitted on {fit['machine']}, torch {fit['torch']}, {fit['threads']} threads; {kernels}"
