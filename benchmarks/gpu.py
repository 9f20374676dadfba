# SPDX-License-Identifier: Apache-2.0
"""What a GPU makes of dynamic convolutions, in at most eight minutes, as a page: docs/gpu.md.

    python benchmarks/gpu.py [--out benchmarks/results/gpu.json] [--page docs/gpu.md]

First every strategy that can run is compared with the reference in float64. Then layers and networks are timed in
bfloat16 and channels_last, interleaved with the static ones: eager and compiled, strategies measured (``ops.autotune``)
and forced to ``grouped``, which is how released code runs. Between them the table of costs is fitted, by which
strategies are chosen on such a device (``src/convary/ops/cost/cuda-X.Y.json``, X.Y its compute capability). Each part
has its share of the time; what it did not reach is said on the page, and so is what failed, in the device's own words.
The file is written after every line.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from convary import ops
from convary.bench import fit, right
from convary.bench.layers import Shape
from convary.bench.machine import machine
from convary.bench.models import networks, step
from convary.bench.right import TOLERANCE, Line, compared, guarded, runs
from convary.bench.right import name as name_of
from convary.bench.tables import markdown
from convary.bench.timing import clock_of, device_here, interleave
from convary.files import read_json, write_json, write_whole
from convary.ops import Coefficients, cost, reference

SHARES = {"errors": 0.15, "costs": 0.15, "layers": 0.25, "networks": 0.45}  # of the time
SHAPES = [
    Shape(B, *sizes)
    for B in (1, 128)
    for sizes in (
        (64, 64, 56, 3), (128, 128, 28, 3), (256, 256, 14, 3), (512, 512, 7, 3), (384, 64, 14, 1), (960, 320, 7, 1),
        (960, 960, 7, 3, 960),
    )
]  # fmt: skip
NETWORKS = [
    (model, method, batch, mode)
    for batch, mode in ((128, "inference"), (1, "inference"), (128, "training"), (256, "inference"))
    for model in ("torchvision:resnet50", "torchvision:mobilenet_v2", "torchvision:resnet18")
    for method in ("odconv", "condconv")
]
TABLES = Path(__file__).parents[1] / "src" / "convary" / "ops" / "cost"
FIT_SECONDS = 0.02  # for a shape and dtype: 190 shapes, twice
WAYS = ("measured", "grouped", "compiled")
SMALL_SHAPES = [Shape(2, 16, 16, 6, 3), Shape(2, 16, 32, 5, 1)]
SMALL_NETWORKS = [("mobilenet_v2_tiny", "odconv", 2, "inference"), ("mobilenet_v2_tiny", "odconv", 2, "training")]
HEAD = """# GPU

Made by `python benchmarks/gpu.py`; nothing was typed by hand.
"""
ABSENT = """# GPU

**Not measured yet.** Everything runs on CUDA devices through torch's own operations. Strategy `triton` (convolutions,
`pixel_conv`, routers) is tested in Triton's interpreter, on a CPU, against float64, and built for compute capabilities
8.0 and 9.0. Nobody has run or timed it on a GPU: turn on [`convary.ops.autotune()`](api.md), which times what can run
and keeps the fastest.

`python benchmarks/gpu.py` checks and measures a GPU in eight minutes, fits the costs by which strategies are chosen on
such devices, and writes this page; please send it. Beside it there are
`convary bench models --device cuda --dtypes bf16 --layout channels_last` for your network and
`convary bench fit --device cuda` for your own costs.
"""


def tensors(shape: Shape, device: str, dtype: torch.dtype, *, training: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Features in channels_last, a bank of four kernels, coefficients."""
    generator = torch.Generator().manual_seed(0)
    fan = shape.C // shape.groups * shape.kernel**2
    x = torch.randn(shape.B, shape.C, shape.size, shape.size, generator=generator)
    bank = torch.randn(4, shape.O, shape.C // shape.groups, shape.kernel, shape.kernel, generator=generator) / fan**0.5
    kernel = torch.rand(shape.B, 4, generator=generator).softmax(1)
    x = x.to(device, dtype, memory_format=torch.channels_last)
    return tuple(t.to(device, dtype).requires_grad_(training) for t in (x, bank, kernel))  # type: ignore[return-value]


def able(shape: Shape, given: tuple[Tensor, ...], strategy: str) -> bool:
    """Whether a strategy takes the problem."""
    rows = ops.explain(ops.mixed_conv, given[0], given[1], Coefficients(kernel=given[2]), groups=shape.groups).rows
    return any(row.strategy == strategy and runs(row) for row in rows)


def call(shape: Shape, given: tuple[Tensor, ...], strategy: str | None) -> Tensor:
    """The convolution by a strategy; None chooses."""
    x, bank, kernel = given
    with ops.strategy(strategy):
        return ops.mixed_conv(x, bank, Coefficients(kernel=kernel), padding=shape.kernel // 2, groups=shape.groups)


def passes(run: Callable[[], Tensor], given: Iterable[Tensor], *, training: bool) -> Callable[[], object]:
    """Forward, or forward and backward."""
    leaves = tuple(given)

    def backward() -> object:
        y = run()
        return torch.autograd.grad(y, leaves, torch.ones_like(y))

    def forward() -> object:
        with torch.no_grad():
            return run()

    return backward if training else forward


def error_lines(shapes: list[Shape], device: str) -> Iterator[Line]:
    """Values and gradients of every strategy against float64, on two samples."""
    for shape, dtype in itertools.product(shapes, TOLERANCE):
        small = Shape(2, shape.C, shape.O, shape.size, shape.kernel, shape.groups)
        given = tensors(small, device, dtype, training=True)
        exact = [t.detach().cpu().double().requires_grad_() for t in given]
        pad, one = (small.kernel // 2,) * 2, (1, 1)
        want = reference.mixed_conv(
            exact[0], exact[1], Coefficients(kernel=exact[2]), stride=one, padding=pad, dilation=one,
            groups=small.groups,
        )  # fmt: skip
        truths = [want.detach(), *torch.autograd.grad(want, exact, torch.ones_like(want))]
        for name in [name for name in ops.strategies() if able(small, given, name)]:
            line = {"layer": str(small), "dtype": name_of(dtype), "strategy": name}

            def measure(name=name, given=given, truths=truths, small=small, dtype=dtype) -> Line:
                y = call(small, given, name)
                return compared([y, *torch.autograd.grad(y, given, torch.ones_like(y))], truths, dtype)

            yield guarded(line, measure)


def layer_lines(shapes: list[Shape], device: str) -> Iterator[Line]:
    """Every strategy, and the measured choice, against the static convolution."""
    for shape, training in itertools.product(shapes, (False, True)):
        given = tensors(shape, device, torch.bfloat16, training=training)
        weight = given[1][0].detach().to(memory_format=torch.channels_last).requires_grad_(training)
        static = passes(
            lambda x=given[0], w=weight, shape=shape: torch.nn.functional.conv2d(
                x, w, padding=shape.kernel // 2, groups=shape.groups
            ),
            (given[0], weight),
            training=training,
        )
        names, clock = [name for name in ops.strategies() if able(shape, given, name)], clock_of(given[0].device)
        for name in [None, *names]:
            line = {
                "layer": str(shape),
                "mode": "training" if training else "inference",
                "strategy": name or "measured",
            }
            run = passes(lambda n=name, g=given, shape=shape: call(shape, g, n), given, training=training)

            def measure(run=run, static=static, name=name, clock=clock) -> Line:
                ops.autotune(name is None)
                try:
                    return vars(interleave(run, static, 0.15, clock))
                finally:
                    ops.autotune(False)

            yield guarded(line, measure)


def cost_lines(device: str, table: Path | None, seconds: float) -> Iterator[Line]:
    """One line, of the table of costs that is fitted and written; none where the device is no GPU."""
    if not device.startswith("cuda"):
        return

    def measure() -> Line:
        found = fit.fitted_on(device_here(device), seconds, lambda text: None)
        path = table or TABLES / f"cuda-{found['capability']}.json"
        write_json(path, found)
        cost.fitted_on.cache_clear()
        return {"good": found["good"], "table": path.name}

    yield guarded({"part": "costs"}, measure)


def network_lines(rows: list[tuple[str, str, int, str]], device: str, size: int) -> Iterator[Line]:
    """Networks under bfloat16 autocast in channels_last: eager, released code's way, compiled; peak memory."""
    for model, method, batch, mode in rows:
        pair = [net.to(device, memory_format=torch.channels_last) for net in networks(model, method, size)]
        for net in pair:
            net.train(mode == "training")
        static, dynamic = pair
        x = torch.randn(batch, 3, size, size).to(device, memory_format=torch.channels_last)
        for way in WAYS:
            line = {"network": model, "method": method, "batch": batch, "mode": mode, "way": way}

            def measure(way=way, static=static, dynamic=dynamic, x=x, mode=mode) -> Line:
                return timed(static, dynamic, x, mode, way)

            yield guarded(line, measure)


def timed(static: torch.nn.Module, dynamic: torch.nn.Module, x: Tensor, mode: str, way: str) -> Line:
    """Against the static network in the same mode: compiled against compiled."""
    if way == "compiled":
        torch._dynamo.reset()
        static, dynamic = (torch.compile(copy.deepcopy(net)) for net in (static, dynamic))
    ours, base = step(dynamic, x, mode, "bf16"), step(static, x, mode, "bf16")

    def run() -> object:
        with ops.strategy("grouped" if way == "grouped" else None):
            return ours()

    ops.autotune(way == "measured")
    try:
        peaks = {name: peak(one) for name, one in (("dynamic", run), ("static", base))}
        return vars(interleave(run, base, 1.0, clock_of(x.device))) | {"peaks": peaks}
    finally:
        ops.autotune(False)


def peak(run: Callable[[], object]) -> int | None:
    """Bytes at most allocated during a call, the networks included; None where the device does not count."""
    run()
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated()


def measured(content: Line, parts: dict[str, Iterator[Line]], minutes: float, keep: Callable[[], None]) -> None:
    """Fill the parts, each until its share of the time is over; what a part leaves, the next ones have."""
    start, share = time.perf_counter(), 0.0
    for name, lines in parts.items():
        share += SHARES[name]
        content[name] = {"lines": [], "whole": True}
        for line in lines:
            content[name]["lines"].append(line)
            print(name, line, flush=True)
            keep()
            if time.perf_counter() - start > 60 * minutes * share:
                content[name]["whole"] = next(lines, None) is None
                break
    keep()


def page(content: Line) -> str:
    """docs/gpu.md, of what was measured."""
    facts = content["machine"]
    parts = [HEAD, f"{content['device']}; torch {facts['torch']}, convary {facts['convary']}, {facts['os']}.\n"]
    errors = content["errors"]["lines"]
    right, wrong = sum(bool(line.get("right")) for line in errors), [line for line in errors if not line.get("right")]
    parts.append(f"## Right\n\n{right} of {len(errors)} checks of values and gradients against float64 hold.\n")
    for line in content["costs"]["lines"]:
        told = line.get("failed") or (
            f"of {line['good'][1]} shapes the choice by `{line['table']}` is within 15 % of the fastest for "
            f"{line['good'][0]}"
        )
        parts.append(f"The table of costs: {told}.\n")
    if wrong:
        rows = [
            [line["layer"], line["dtype"], line["strategy"], line.get("failed") or f"{line['error']:.0e}"]
            for line in wrong
        ]
        parts.append(markdown(["layer (B, C->O, size, k)", "dtype", "strategy", "wrong by"], rows) + "\n")
    for name, title, columns in (
        ("networks", "Networks, 224x224", ("network", "method", "batch", "mode", "way")),
        ("layers", "Layers", ("layer", "mode", "strategy")),
    ):
        parts.append(f"## {title}\n\nbfloat16, channels_last; 1.00 is the static one in the same mode.\n")
        parts.append(markdown([*columns, "ratio", "p10-p90", "ms", "peak MB (static)"], _rows(content[name], columns)))
        parts.append("" if content[name]["whole"] else "\nThe time was over before the rest was reached.\n")
    return "\n".join(parts).rstrip() + "\n"


def _rows(part: Line, columns: Iterable[str]) -> Iterator[list[str]]:
    for line in part["lines"]:
        cells = [str(line[name]).rpartition(":")[2] for name in columns]
        if "failed" in line:
            yield [*cells, "failed", line["failed"].replace("|", "/"), "", ""]
            continue
        peaks = line.get("peaks") or {}
        memory = f"{peaks['dynamic'] / 1e6:.0f} ({peaks['static'] / 1e6:.0f})" if peaks.get("dynamic") else ""
        yield [*cells, f"{line['ratio']:.2f}", f"{line['low']:.2f}-{line['high']:.2f}", f"{line['ms']:.3f}", memory]


def main() -> int:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="at most, about")
    parser.add_argument("--small", action="store_true", help="two layers and a small network, to try the script itself")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/gpu.md"))
    parser.add_argument("--table", type=Path, help="of costs; by default the one that convary reads, in src")
    flags = parser.parse_args()
    if flags.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch sees no GPU; run this on a machine with one, or try it with --device cpu --small")
    os.environ["CONVARY_CACHE"] = tempfile.mkdtemp()  # times of this run alone
    torch.backends.cudnn.benchmark = True
    shapes, rows = (SMALL_SHAPES, SMALL_NETWORKS) if flags.small else (SHAPES, NETWORKS)
    name = torch.cuda.get_device_name() if flags.device.startswith("cuda") else flags.device
    content: Line = {"schema": 1, "device": name, "machine": machine()}
    parts = {
        "errors": itertools.chain(error_lines(shapes, flags.device), right.lines(flags.device)),
        "costs": cost_lines(flags.device, flags.table, FIT_SECONDS),
        "layers": layer_lines(shapes, flags.device),
        "networks": network_lines(rows, flags.device, 28 if flags.small else 224),
    }
    measured(content, parts, flags.minutes, lambda: write_json(flags.out, content))
    write_whole(
        flags.page, page(read_json(flags.out, wanted=("device", "errors", "costs", "layers", "networks"))).encode()
    )
    print(f"wrote {flags.page}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
