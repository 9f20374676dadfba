# SPDX-License-Identifier: Apache-2.0
"""The C ABI of the per-position convolution under hostile arguments; see tests/ops/native/test_hostile.py."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
from math import prod
from pathlib import Path

import torch

from convary.ops import reference
from convary.ops.native.library import loaded
from convary.ops.pixel.native import PixelSizes
from convary.ops.pixel.window import BORDERS
from tests.ops.native.hostile import GUARD, HOSTILE, MOST, guarded, needs_library, spoil

ENTRIES = ("pixel_conv", "pixel_conv_grad_x", "pixel_conv_grad_weight")


def draw_sizes(rng: random.Random) -> dict[str, int]:
    """Sizes that mostly make a convolution, with up to three of them replaced by anything."""
    G = rng.choice([1, 1, 2, 3])
    sizes = {"B": rng.randint(1, 3), "C": G * rng.randint(1, 6), "G": G, "threads": rng.choice([1, 1, 2, 9])}
    sizes |= {"border": rng.randrange(5), "interleaved": rng.randrange(2)}
    for a, size in (("h", "H"), ("w", "W")):
        sizes |= {f"kernel_{a}": rng.randint(1, 3), f"stride_{a}": rng.choice([1, 1, 2]), f"pad_{a}": rng.randint(0, 3)}
        sizes |= {f"dilation_{a}": rng.randint(1, 3), size: rng.randint(1, 21), f"scale_{a}": rng.choice([1, 1, 1, 2])}
    for name in rng.sample([field for field, _ in PixelSizes._fields_], rng.choice([0, 1, 1, 2, 3])):
        sizes[name] = rng.choice(HOSTILE)
    return sizes


def out_size(sizes: dict[str, int]) -> list[int] | None:
    """Of y, or None where there is no convolution."""
    sides = []
    for a, size in (("h", sizes["H"]), ("w", sizes["W"])):
        taps, stride, pad, dilation, scale = (
            sizes[f"{n}_{a}"] for n in ("kernel", "stride", "pad", "dilation", "scale")
        )
        reach = (taps - 1) * dilation + 1
        least = {2: pad + 1, 3: pad, 4: reach}.get(sizes["border"], 1)
        if min(size, taps, stride, dilation, scale) < 1 or size + 2 * pad < reach or size < least:
            return None
        sides.append(((size + 2 * pad - reach) // stride + 1) * scale)
    return sides


def sound(sizes: dict[str, int]) -> bool:
    """Whether the sizes make a convolution, as csrc/convary.h tells it."""
    if min(sizes.values()) < 0 or max(sizes.values()) >= 2**31 or sizes["border"] > 4 or sizes["interleaved"] > 1:
        return False
    side = out_size(sizes)
    return sizes["G"] >= 1 and sizes["C"] % sizes["G"] == 0 and side is not None and max(side) < 2**31


def shapes(name: str, sizes: dict[str, int]) -> tuple[dict[str, tuple[int, ...]], str]:
    """Every tensor of a call in the order of its arguments, and which one is the output."""
    s, side = sizes, out_size(sizes) or [0, 0]
    x, y = (s["B"], s["C"], s["H"], s["W"]), (s["B"], s["C"], *side)
    weight = (s["B"], s["G"], s["kernel_h"] * s["kernel_w"], *side)
    return {
        "pixel_conv": ({"x": x, "weight": weight, "y": y}, "y"),
        "pixel_conv_grad_x": ({"y": y, "weight": weight, "x": x}, "x"),
        "pixel_conv_grad_weight": ({"x": x, "y": y, "weight": weight}, "weight"),
    }[name]


def truth(name: str, tensors: dict[str, torch.Tensor], sizes: dict[str, int]) -> torch.Tensor | None:
    """What the call must write, in float64; None where the reference has other ideas of an enlargement."""
    if sizes["scale_h"] != sizes["scale_w"]:
        return None
    wanted, output = shapes(name, sizes)
    double = {key: torch.zeros(wanted[key]) if key == output else tensors[key] for key in ("x", "weight")}
    leaves = {key: tensor.double().requires_grad_() for key, tensor in double.items()}
    names = {"kernel_size": "kernel", "stride": "stride", "padding": "pad", "dilation": "dilation"}
    axes = {key: [sizes[f"{name}_h"], sizes[f"{name}_w"]] for key, name in names.items()}
    order = "interleaved" if sizes["interleaved"] else "contiguous"
    y = reference.pixel_conv(
        **leaves, **axes, border=BORDERS[sizes["border"]], group_order=order, scale_factor=sizes["scale_h"]
    )
    return y.detach() if output == "y" else torch.autograd.grad(y, leaves[output], tensors["y"].double())[0]


def call(name: str, sizes: dict[str, int], tensors: list) -> int:
    structure = PixelSizes(**sizes)
    pointers = [t.data_ptr() if isinstance(t, torch.Tensor) else t for t in tensors]
    return loaded().entries[name](ctypes.addressof(structure), *pointers)


def attack(name: str, rng: random.Random) -> bool:
    """One call: hostile sizes with null pointers, or real tensors of which one pointer may be spoiled.

    Returns whether a result was compared.
    """
    sizes = draw_sizes(rng)
    wanted, output = shapes(name, sizes)
    reach = max((sizes[f"kernel_{a}"] - 1) * sizes[f"dilation_{a}"] + sizes[f"stride_{a}"] for a in "hw")
    if not sound(sizes) or max(map(prod, wanted.values())) > MOST or reach > 2**12:
        code = call(name, sizes, [None] * 3)
        assert code != 0 or prod(wanted[output]) == 0, sizes  # then there was nothing to write
        return False
    wholes, tensors = {}, {}
    for i, (key, shape) in enumerate(wanted.items()):
        wholes[key], tensors[key] = guarded(shape, torch.nan if key == output else None, i)
    passed: list = list(tensors.values())
    spoiled = spoil(rng, passed, 2)
    code = call(name, sizes, passed)
    whole = wholes[output]
    assert whole[:GUARD].isnan().all() and whole[-GUARD:].isnan().all(), "written beside the output"
    if code != 0:
        assert tensors[output].isnan().all(), f"{code}, yet written to"
        assert spoiled, f"{code}: {loaded().error_text(code)} {sizes}"
        return False
    assert not spoiled or tensors[output].numel() == 0, f"took a spoiled pointer: {spoiled}"
    want = truth(name, tensors, sizes) if tensors[output].numel() and not spoiled else None
    if want is not None:
        torch.testing.assert_close(tensors[output].double(), want, rtol=1e-3, atol=1e-3)
    return want is not None


def attack_all(calls: int) -> None:
    """Many calls of every entry; the one under way is named on stderr, from where a crash can be repeated."""
    torch.set_num_threads(1)
    for name in ENTRIES:
        compared = 0
        for seed in range(calls):
            print(f"{name} with seed {seed}", file=sys.stderr)
            compared += attack(name, random.Random(seed))
        assert compared > calls // 10, "hardly any call was sound"
    print("done")


CALLS = int(os.environ.get("CONVARY_HOSTILE_CALLS", 100))  # of each entry; scripts/sanitize.sh wants more


@needs_library
def test_an_error_code_or_the_right_result():
    root = str(Path(__file__).parents[3])
    code = f"from tests.ops.pixel.test_hostile import attack_all; attack_all({CALLS})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.strip() == "done", f"exit {run.returncode}: {run.stderr[-2000:]}"
