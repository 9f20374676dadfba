# SPDX-License-Identifier: Apache-2.0
"""What pixel_conv costs against unfold, multiply, sum: what code without a kernel of its own does.

Times are ratios of calls that follow each other (``convary.bench.timing``), each line checked against what unfold
gives first. Memory is the peak above an idle process that holds the inputs, results and gradients included, in a
fresh process per line. Figures stay in benchmarks/results/pixel.json and are drawn into docs/pixel.md: measure a few
lines at a time.

    python benchmarks/pixel.py time [--shape NAME] [--strategy NAME] [--mode forward|training]
    python benchmarks/pixel.py memory
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from convary import ops
from convary.bench.machine import load, machine
from convary.bench.memory import forget_peak, resident
from convary.bench.timing import interleave

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "benchmarks/results/pixel.json", ROOT / "docs/pixel.md"
MARK = "<!-- made by benchmarks/pixel.py -->\n"
# B, C, H = W, kernel, dilation, groups
SHAPES = {
    "involution": (8, 64, 56, 7, 1, 4),
    "dilated, shared": (1, 64, 256, 3, 3, 4),
    "dilated, a kernel per channel": (1, 64, 256, 3, 3, 64),
}
MODES, STRATEGIES = ("forward", "training"), ("native", "taps")


def unfold(x: Tensor, weight: Tensor, k: int, dilation: int) -> Tensor:
    """Every window as a column of T numbers, times its kernel, summed."""
    B, G, T, *size = weight.shape
    columns = F.unfold(x, k, dilation=dilation, padding=dilation * (k // 2)).view(B, G, -1, T, *size)
    return (weight.unsqueeze(2) * columns).sum(3).view(x.shape)


def step(shape: str, mode: str, strategy: str) -> tuple[Callable[[], list[Tensor]], list[Tensor]]:
    """A call of one pass, or of both, and the tensors that it starts from."""
    B, C, side, k, dilation, G = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, C, side, side, generator=generator)
    weight = torch.randn(B, G, k * k, side, side, generator=generator)
    grad = torch.randn(x.shape, generator=generator)

    def forward() -> Tensor:
        if strategy == "unfold":
            return unfold(x, weight, k, dilation)
        with ops.strategy(strategy):
            return ops.pixel_conv(x, weight, kernel_size=k, padding=dilation * (k // 2), dilation=dilation)

    if mode == "forward":
        return lambda: [forward()], [x, weight]
    x.requires_grad_()
    weight.requires_grad_()
    return lambda: [*torch.autograd.grad(forward(), (x, weight), grad)], [x, weight, grad]


def measure_time(shape: str, mode: str, strategy: str, seconds: float) -> dict:
    """One line; raises where the numbers differ from unfold's."""
    (ours, _), (base, _) = step(shape, mode, strategy), step(shape, mode, "unfold")
    for got, want in zip(ours(), base(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    timing = asdict(interleave(ours, base, seconds))
    return {"shape": shape, "mode": mode, "strategy": strategy, "machine": machine(), "load": load(), **timing}


def measure_memory(shape: str, mode: str, strategy: str) -> dict:
    """Peak bytes of one line, in this process."""
    torch.set_num_threads(2)
    torch.nn.functional.conv2d(torch.zeros(1, 3, 8, 8), torch.zeros(3, 3, 3, 3))  # loads the libraries
    call, _ = step(shape, mode, strategy)
    idle = resident("VmRSS")
    forget_peak()
    call()
    return {"shape": shape, "mode": mode, "strategy": strategy, "peak": resident("VmHWM") - idle}


def in_a_fresh_process(shape: str, mode: str, strategy: str) -> dict:
    """``measure_memory`` where nothing has run before."""
    command = [sys.executable, __file__, "one", "--shape", shape, "--mode", mode, "--strategy", strategy]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def keep(kind: str, row: dict) -> None:
    """Put a line in the place of the one that it renews, and draw the page anew."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"time": [], "memory": []}
    names = ("shape", "mode", "strategy")
    results[kind] = [old for old in results[kind] if any(old[name] != row[name] for name in names)] + [row]
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    before, _, after = PAGE.read_text(encoding="utf-8").split(MARK)
    PAGE.write_text(before + MARK + tables(results) + MARK + after, encoding="utf-8")


def tables(results: dict) -> str:
    """The figures in Markdown."""
    lines = ["", "| B, C, side, k, dilation, G | pass | strategy | unfold / ours | p10 | p90 | ms | unfold ms |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    order = [(shape, mode, strategy) for shape in SHAPES for mode in MODES for strategy in ("unfold", *STRATEGIES)]

    def sizes(shape: str) -> str:
        return ", ".join(map(str, SHAPES[shape]))

    for row in sorted(results["time"], key=lambda r: order.index((r["shape"], r["mode"], r["strategy"]))):
        faster = " | ".join(f"{1 / row[name]:.1f}" for name in ("ratio", "high", "low"))
        times = f"{row['ms']:.1f} | {row['base_ms']:.1f}"
        lines.append(f"| {sizes(row['shape'])} | {row['mode']} | `{row['strategy']}` | {faster} | {times} |")
    lines += ["", "| B, C, side, k, dilation, G | pass | strategy | peak MB | unfold's | unfold / ours |"]
    lines.append("|---|---|---|---|---|---|")
    peaks = {(r["shape"], r["mode"], r["strategy"]): r["peak"] / 1e6 for r in results["memory"]}
    for shape, mode, strategy in [key for key in order if key in peaks and key[2] != "unfold"]:
        ours, theirs = peaks[shape, mode, strategy], peaks[shape, mode, "unfold"]
        numbers = f"{ours:.0f} | {theirs:.0f} | {theirs / ours:.1f}"
        lines.append(f"| {sizes(shape)} | {mode} | `{strategy}` | {numbers} |")
    if results["time"]:
        facts = results["time"][-1]["machine"]
        where = f"Machine: {facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads"
        lines += ["", f"{where}, native kernels for {facts['native']}, torch {facts['torch']}, {facts['os']}."]
    return "\n".join(lines) + "\n\n"


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "memory", "one"])
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--mode", choices=MODES)
    parser.add_argument("--strategy", choices=(*STRATEGIES, "unfold"))
    parser.add_argument("--seconds", type=float, default=5.0)
    flags = parser.parse_args()
    if flags.what == "one":
        print(json.dumps(measure_memory(flags.shape, flags.mode, flags.strategy)))
        return
    torch.set_num_threads(2)
    strategies = STRATEGIES if flags.what == "time" else ("unfold", *STRATEGIES)
    for shape in SHAPES if flags.shape is None else [flags.shape]:
        for mode in MODES if flags.mode is None else [flags.mode]:
            for strategy in strategies if flags.strategy is None else [flags.strategy]:
                if flags.what == "time":
                    row = measure_time(shape, mode, strategy, flags.seconds)
                else:
                    row = in_a_fresh_process(shape, mode, strategy)
                keep(flags.what, row)
                print({key: value for key, value in row.items() if key != "machine"})


if __name__ == "__main__":
    main()
