# SPDX-License-Identifier: Apache-2.0
"""Time mixed_conv against the static convolution of the same size, layer by layer.

    python benchmarks/layers.py --threads 2
    python benchmarks/layers.py --mode training --strategy native --rows 3 6

Each line is interleaved (A B A B ...): the median of the pairwise ratios with the 10th and 90th percentile between. It
is printed only after values (and gradients) agreed with the reference in float64 on the same tensors.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from convary import ops
from convary.ops import native, reference

K = 4
# B, C, O, size, kernel, groups
LAYERS = [
    (32, 64, 64, 56, 3, 1), (32, 128, 128, 28, 3, 1), (32, 256, 256, 14, 3, 1), (32, 512, 512, 7, 3, 1),
    (1, 512, 512, 7, 3, 1), (32, 384, 64, 14, 1, 1), (32, 960, 320, 7, 1, 1), (32, 24, 144, 56, 1, 1),
    (32, 960, 960, 7, 3, 960),
]  # fmt: skip
TRAINING = (3, 6)  # the rows of the table that also have a training target
CHECKED = 2  # samples compared with the reference: float64 is slow


class Layer:
    """Tensors of one line, and the two convolutions."""

    def __init__(self, shape: tuple[int, ...], *, training: bool, channels_last: bool, strategy: str | None):
        """Draw the tensors."""
        B, C, O, S, k, G = shape
        torch.manual_seed(0)
        self.x, self.bank = torch.randn(B, C, S, S), torch.randn(K, O, C // G, k, k) / (C // G * k * k) ** 0.5
        self.kernel, self.weight = torch.randn(B, K).softmax(1), self.bank[0].clone()
        self.grad = torch.randn(B, O, S, S)
        if channels_last:
            self.x, self.weight, self.grad = (
                t.contiguous(memory_format=torch.channels_last) for t in (self.x, self.weight, self.grad)
            )
        for tensor in (self.x, self.bank, self.kernel, self.weight):
            tensor.requires_grad_(training)
        self.geometry = {"padding": k // 2, "groups": G}
        self.training, self.strategy = training, strategy

    def _backward(self, y: torch.Tensor, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(y, leaves, self.grad) if self.training else ()

    def static(self) -> tuple[torch.Tensor, ...]:
        """The ordinary convolution, and its gradients in training."""
        y = F.conv2d(self.x, self.weight, **self.geometry)
        return y, *self._backward(y, self.x, self.weight)

    def dynamic(self) -> tuple[torch.Tensor, ...]:
        """The dynamic one."""
        with ops.strategy(self.strategy):
            y = ops.mixed_conv(self.x, self.bank, ops.Coefficients(kernel=self.kernel), **self.geometry)
        return y, *self._backward(y, self.x, self.bank, self.kernel)

    def error(self) -> float:
        """The largest error of some samples' values (and gradients of x and kernel), relative to the largest value."""
        got = self.dynamic()
        k = self.geometry["padding"]
        x, kernel = (t.detach()[:CHECKED].double().requires_grad_(self.training) for t in (self.x, self.kernel))
        want = [
            reference.mixed_conv(
                x, self.bank.detach().double(), ops.Coefficients(kernel=kernel), stride=(1, 1), padding=(k, k),
                dilation=(1, 1), groups=self.geometry["groups"],
            )
        ]  # fmt: skip
        compared = got[:1]
        if self.training:
            want += torch.autograd.grad(want[0], (x, kernel), self.grad[:CHECKED].double())
            compared = (got[0], got[1], got[3])
        pairs = zip(compared, want, strict=True)
        return max(((g[:CHECKED] - w).abs().max() / w.abs().max()).item() for g, w in pairs)


def seconds(function) -> float:
    """Of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(layer: Layer, budget: float) -> tuple[list[float], float]:
    """Sorted ratios of dynamic to static, and the fastest static call."""
    first = [seconds(layer.static) + seconds(layer.dynamic) for _ in range(2)]
    pairs = [(seconds(layer.dynamic), seconds(layer.static)) for _ in range(max(5, min(60, int(budget / first[1]))))]
    return sorted(dynamic / static for dynamic, static in pairs), min(static for _, static in pairs)


def machine() -> str:
    """Processor, instruction set, torch."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    isa = native.available() or native.isa()
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}, native: {isa}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--mode", choices=["both", "inference", "training"], default="both")
    parser.add_argument("--strategy", default="native", help="a strategy, or 'auto' (default native)")
    parser.add_argument("--channels-last", action="store_true", help="features and static weights in channels_last")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds per line (default 1)")
    parser.add_argument("--rows", type=int, nargs="*", help="lines of the table by number (default all)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    strategy = None if args.strategy == "auto" else args.strategy
    print(f"{machine()}, {args.threads} threads, load {os.getloadavg()[0]:.1f}, strategy {args.strategy}, K={K}")
    print(f"{'':4}{'layer (B, C, O, size, k, groups)':36}{'mode':12}{'ratio':>7}{'p10':>7}{'p90':>7}{'static ms':>11}")
    for training in (False, True):
        if args.mode == ("inference" if training else "training"):
            continue
        for row, shape in enumerate(LAYERS):
            if args.rows is not None and row not in args.rows:
                continue
            if args.rows is None and training and row not in TRAINING:
                continue
            layer = Layer(shape, training=training, channels_last=args.channels_last, strategy=strategy)
            if not (error := layer.error()) < 1e-4:
                print(f"{row:<4}{shape!s:36}WRONG: error {error:.1e} of the largest value; not timed")
                continue
            ratios, static = measure(layer, args.budget)
            low, middle, high = (ratios[min(len(ratios) - 1, int(len(ratios) * q))] for q in (0.1, 0.5, 0.9))
            mode = "training" if training else "inference"
            print(f"{row:<4}{shape!s:36}{mode:12}{middle:7.2f}{low:7.2f}{high:7.2f}{static * 1e3:11.2f}", flush=True)


if __name__ == "__main__":
    main()
