# SPDX-License-Identifier: Apache-2.0
"""Whether a device computes what the references say in float64: ``pixel_conv`` and routers, for benchmarks/gpu.py."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from convary import ops
from convary.errors import StrategyError
from convary.methods import method
from convary.ops import reference
from convary.ops.explanation import StrategyRow
from convary.ops.pixel.window import BORDERS

Line = dict[str, Any]
TOLERANCE = {torch.float32: 2e-3, torch.float16: 4e-3, torch.bfloat16: 2e-2}  # of the largest; float32 may be TF32


def guarded(line: Line, measure: Callable[[], Line]) -> Line:
    """The line with what was measured, or with what went wrong: minutes on a GPU are dear, so that others go on."""
    try:
        return line | measure()
    except (RuntimeError, StrategyError) as error:  # out of memory included
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return line | {"failed": str(error).splitlines()[0][:200]}


def runs(row: StrategyRow) -> bool:
    """Whether a strategy can run, also one that only a measurement would choose."""
    return row.reason is None or row.reason.endswith("ops.autotune() measures it")


def lines(device: str) -> Iterator[Line]:
    """``pixel_conv`` at every border, and routers: values and gradients, of each strategy, against float64."""
    for border, dtype in itertools.product(BORDERS, TOLERANCE):
        yield from _of_pixels(border, dtype, device)
    for name_of in ("odconv", "condconv"):
        line = {"layer": f"router, {name_of}", "dtype": "float32", "strategy": "triton"}
        yield guarded(line, lambda name_of=name_of: _of_router(name_of, device))


def _of_pixels(border: str, dtype: torch.dtype, device: str) -> Iterator[Line]:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 12, 13, 11, generator=generator), torch.randn(2, 3, 9, 13, 11, generator=generator)
    given = [t.to(device, dtype).requires_grad_() for t in (x, weight)]
    window: dict[str, Any] = {"kernel_size": (3, 3), "padding": (1, 1), "border": border}
    exact = [t.detach().cpu().double().requires_grad_() for t in given]
    rest: dict[str, Any] = {"stride": (1, 1), "dilation": (1, 1), "group_order": "contiguous", "scale_factor": 1}
    want = reference.pixel_conv(exact[0], exact[1], **window, **rest)
    truths = [want.detach(), *torch.autograd.grad(want, exact, torch.ones_like(want))]

    def measure(strategy: str) -> Line:
        with ops.strategy(strategy):
            y = ops.pixel_conv(given[0], given[1], **window)
        return compared([y, *torch.autograd.grad(y, given, torch.ones_like(y))], truths, dtype)

    for row in ops.explain("pixel_conv", *given, **window).rows:
        if runs(row):
            line = {"layer": f"pixel_conv, {border}", "dtype": name(dtype), "strategy": row.strategy}
            yield guarded(line, lambda strategy=row.strategy: measure(strategy))


def _of_router(name_of: str, device: str) -> Line:
    router: Any = method(name_of).build(torch.nn.Conv2d(48, 32, 3)).router
    x = torch.randn(3, 48, 9, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = copy.deepcopy(router.eval()).double()(x.double()).factors().values()
        with ops.strategy("triton"):
            found = router.to(device)(x.to(device)).factors().values()
    return compared(found, want, torch.float32)


def compared(found: Iterable[Tensor], truths: Iterable[Tensor], dtype: torch.dtype) -> Line:
    """The largest error, of the largest value, and whether it is one of rounding."""
    pairs = zip(found, truths, strict=True)
    error = max(float((a.detach().cpu().double() - b).abs().max() / b.abs().max()) for a, b in pairs)
    return {"error": error, "right": error < TOLERANCE[dtype]}


def name(dtype: torch.dtype) -> str:
    """A dtype without torch's prefix."""
    return str(dtype).removeprefix("torch.")
