# SPDX-License-Identifier: Apache-2.0
"""What ``torch.compile`` makes of dynamic networks, against what it makes of the static one: a step, and compiling.

One thread. Every line is compared with eager torch before it is timed. A step is the forward pass in eval mode, or
forward and backward in training mode; dynamic and static take turns in one process: the median of the pairwise ratios,
with its 10th and 90th percentiles. The compilation is the first call, without any cache: seconds of this process and of
the C++ compiler that it runs. All times are the processor's, so that waiting for other programs does not count.

Mode ``packaged`` exports the network with convary's operators and compiles it ahead of time (AOTInductor).

    python benchmarks/compiled.py --models torchvision:mobilenet_v2 --methods odconv --modes inference
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable

os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # both are read when torch is imported
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

import torch
from torch import Tensor, nn

import convary as cv
from convary.bench.machine import load
from convary.bench.models import networks, step
from convary.bench.timing import interleave

TOLERANCE = 1e-3  # of the largest score
MODES = ["inference", "training", "packaged"]


def spent() -> float:
    """Seconds of processor time, of this process and of those that it waited for."""
    return sum(os.times()[:4])


def compiled(model: nn.Module, x: Tensor, arguments: argparse.Namespace, mode: str) -> tuple[Callable, float]:
    """A step of the compiled network, and what the first one took; raises unless it computes what eager torch does."""
    torch._dynamo.reset()
    with torch.no_grad():
        want = model.eval()(x)
        model.train(mode == "training")
    start = spent()
    network = packaged(model, x) if mode == "packaged" else torch.compile(model, mode=arguments.compile_mode)
    call = step(network, x, _pass(mode))
    call()
    seconds = spent() - start
    if mode != "training":
        error = float((call() - want).abs().max() / want.abs().max())
        if not error < TOLERANCE:
            raise SystemExit(f"WRONG: off by {error:.1e} from eager torch; not timed")
    return call, seconds


def _pass(mode: str) -> str:
    return "training" if mode == "training" else "inference"


def packaged(model: nn.Module, x: Tensor) -> Callable:
    """The network compiled ahead of time into a file, and read from there."""
    program = cv.export(model, x, dynamic=(), runtime="convary")
    with tempfile.TemporaryDirectory() as folder:
        return torch._inductor.aoti_load_package(
            torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/network.pt2")
        )


def lines(name: str, mode: str, arguments: argparse.Namespace) -> None:
    """Print the lines of one network in one mode."""
    for batch in arguments.batches:
        x = torch.randn(batch, 3, arguments.size, arguments.size, generator=torch.Generator().manual_seed(0))
        base = None
        for method in arguments.methods:
            static, dynamic = networks(name, method, arguments.size)
            if base is None:
                base = compiled(static, x, arguments, mode)
            ours, seconds = compiled(dynamic, x, arguments, mode)
            t = interleave(ours, base[0], arguments.seconds, time.process_time)
            eager = interleave(
                ours,
                step(dynamic, x, _pass(mode)),
                arguments.seconds,
                time.process_time,
            )
            what = f"| {name} | {method} | {mode} | {batch} | **{t.ratio:.2f}** ({t.low:.2f} to {t.high:.2f})"
            cost = f"{t.ms:.1f} / {t.base_ms:.1f} | {eager.base_ms:.1f}"
            print(f"{what} | {cost} | {seconds:.0f} / {base[1]:.0f} = {seconds / base[1]:.2f} |", flush=True)


def main() -> None:
    """Compile, check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["torchvision:mobilenet_v2", "torchvision:resnet18"])
    parser.add_argument("--methods", nargs="+", default=["condconv", "dyconv", "odconv"])
    parser.add_argument(
        "--modes", nargs="+", default=["inference", "training"], choices=["inference", "training", "packaged"]
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--compile-mode", default="default", choices=["default", "reduce-overhead", "max-autotune"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=6.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.compile(nn.Conv2d(3, 3, 1))(torch.randn(1, 3, 9, 9)).sum().backward()  # the first compilation of a process
    print("| network | method | mode | batch | time / static's | ms | ms eager | seconds to compile |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in arguments.models:
        for mode in arguments.modes:
            lines(name, mode, arguments)
    print(f"load {load()}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
