# SPDX-License-Identifier: Apache-2.0
"""Whole networks whose strategies were measured (``convary.ops.autotune``) against those that were estimated.

    python benchmarks/autotune.py [--models torchvision:resnet18] [--modes inference training] [--batches 1 16]

One thread and process CPU time, interleaved: the median of the pairwise ratios with its 10th and 90th percentiles,
below 1 where measuring gains. Times are kept in a folder of this run's own. Results are compared first.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable

import torch

from convary import ops
from convary.bench.machine import load, machine
from convary.bench.models import networks, step
from convary.bench.timing import interleave

KINDS = ("float32", "channels_last", "autocast", "bfloat16")


def call(model: torch.nn.Module, x: torch.Tensor, mode: str, kind: str, measured: bool) -> Callable[[], object]:
    """One pass in a dtype or layout; the choice is by measurement or by estimate."""
    if kind == "channels_last":
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    if kind == "bfloat16":
        model, x = model.bfloat16(), x.bfloat16()
    once = step(model, x, mode)

    def run() -> object:
        ops.autotune(measured)
        with torch.autocast("cpu", torch.bfloat16) if kind == "autocast" else contextlib.nullcontext():
            return once()

    return run


def line(name: str, method: str, batch: int, mode: str, kind: str, seconds: float) -> str:
    """Compare results, then time both."""
    _, dynamic = networks(name, method, 224)
    models = dynamic.train(mode == "training"), copy.deepcopy(dynamic)
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    tuned, estimated = (call(m, x, mode, kind, on) for m, on in zip(models, (True, False), strict=True))
    before = ops.tuned()
    got, want = tuned(), estimated()
    if mode == "inference" and not torch.allclose(got.float(), want.float(), rtol=0.05, atol=0.05 * want.abs().max()):
        raise SystemExit(f"{name} {method} {kind}: results differ by {(got - want).abs().max():.3g}")
    after = ops.tuned()
    new = [times for key, times in after.rows.items() if key not in before.rows]
    fastest = Counter(min(times, key=times.__getitem__) for times in new)
    timing = interleave(tuned, estimated, seconds, clock=time.process_time)
    chosen = ", ".join(f"{count} {strategy}" for strategy, count in fastest.most_common())
    what = f"{name:26} {method:9} {batch:3} {mode:10} {kind:14}"
    return (
        f"{what} {timing.ratio:6.2f} ({timing.low:.2f} to {timing.high:.2f}) "
        f"{timing.ms:9.1f} ms  measuring {after.seconds - before.seconds:5.1f} s: {chosen}"
    )


def main() -> None:
    """Print a line for each network, method, batch, mode and kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["torchvision:mobilenet_v2", "torchvision:resnet18"])
    parser.add_argument("--methods", nargs="+", default=["odconv"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--modes", nargs="+", default=["inference", "training"])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seconds", type=float, default=6.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    facts = machine()
    print(f"{facts['cpu']}, one thread, torch {facts['torch']}, native {facts['native']}, load {load()}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONVARY_CACHE"] = folder
        for name in args.models:
            for method in args.methods:
                for batch in args.batches:
                    for mode in args.modes:
                        for kind in args.kinds:
                            print(line(name, method, batch, mode, kind, args.seconds), flush=True)


if __name__ == "__main__":
    main()
