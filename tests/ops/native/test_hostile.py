# SPDX-License-Identifier: Apache-2.0
"""The C ABI under hostile arguments: an error code and nothing written, or the right result; never a crash.

The calls run in a process of their own, so that a crash is a failed test that names the call.
"""

from __future__ import annotations

import ctypes
import math
import os
import random
import subprocess
import sys
from math import prod
from pathlib import Path

import torch

from convary.ops import Coefficients, reference
from convary.ops.native.call import ConvSizes
from convary.ops.native.library import loaded
from tests.ops.native.hostile import GUARD, HOSTILE, MOST, guarded, needs_library, spoil

SAMPLE = ("sample_conv", "sample_conv_grad_x", "sample_conv_grad_weight")
MIXED = ("mixed_conv", "mixed_conv_grad_x", "mixed_conv_grad_bank")


def draw_sizes(rng: random.Random, *, given: bool) -> dict[str, int]:
    """Sizes that mostly make a convolution, with up to three of them replaced by anything."""
    G = rng.choice([1, 1, 2, 3])
    sizes = {"B": rng.randint(1, 3), "C": G * rng.randint(1, 3), "O": G * rng.randint(1, 3), "G": G}
    sizes |= {"K": rng.choice([sizes["B"], rng.randint(1, 3)]), "threads": 1}
    for a, size in (("h", "H"), ("w", "W")):
        sizes |= {f"kernel_{a}": rng.randint(1, 3), f"stride_{a}": rng.randint(1, 3), f"pad_{a}": rng.randint(0, 2)}
        sizes |= {f"dilation_{a}": rng.randint(1, 2), size: rng.randint(5, 9)}
    sizes |= {f"{axis}_rows": 1 if given else rng.choice([1, sizes["K"]]) for axis in ("filter", "channel", "tap")}
    sizes |= {"bias_rows": 1, "channels_last": 0 if given else rng.choice([0, 1])}
    sizes["half"], sizes["bounded"] = rng.choice([0, 1]), rng.choice([0, 1])
    sizes["half_bank"] = sizes["half"] * rng.choice([0, 1])
    fields = [field for field, kind in ConvSizes._fields_ if kind is ctypes.c_int64]
    for name in rng.sample(fields, rng.choice([0, 1, 1, 2, 3])):
        sizes[name] = rng.choice(HOSTILE)
    return sizes


def out_size(sizes: dict[str, int]) -> tuple[int, int] | None:
    """Of y, or None where there is no convolution."""
    sides = []
    for a, size in (("h", "H"), ("w", "W")):
        taps, stride, pad, dilation = (sizes[f"{n}_{a}"] for n in ("kernel", "stride", "pad", "dilation"))
        room = sizes[size] + 2 * pad - (taps - 1) * dilation - 1
        if min(taps, stride, dilation) < 1 or room < 0:
            return None
        sides.append(room // stride + 1)
    return sides[0], sides[1]


def sound(name: str, sizes: dict[str, int], *, indexed: bool) -> bool:
    """Whether the sizes make a convolution, as csrc/convary.h tells it."""
    if min(sizes.values()) < 0 or max(sizes.values()) >= 2**31 or sizes["G"] < 1 or out_size(sizes) is None:
        return False
    if sizes["C"] % sizes["G"] or sizes["O"] % sizes["G"]:
        return False
    if sizes["half"] > 1 or sizes["half_bank"] > sizes["half"] or sizes["bounded"] > 1:
        return False
    given = name in SAMPLE
    if given and not indexed and sizes["B"] != sizes["K"]:
        return False
    kernels, samples = (1, sizes["K"]) if given else (sizes["K"], sizes["B"])
    rows = all(sizes[f"{axis}_rows"] in (1, kernels) for axis in ("filter", "channel", "tap"))
    return rows and sizes["bias_rows"] in (1, samples) and sizes["channels_last"] in ((0,) if given else (0, 1))


def shapes(name: str, sizes: dict[str, int]) -> tuple[dict[str, tuple[int, ...]], str]:
    """Every tensor of a call in the order of its arguments, and which one is the output."""
    s, (height, width) = sizes, out_size(sizes) or (0, 0)
    samples = s["K"] if name in SAMPLE else s["B"]
    x, y = (s["B"], s["C"], s["H"], s["W"]), (samples, s["O"], height, width)
    weight = (s["K"], s["O"], s["C"] // max(1, s["G"]), s["kernel_h"], s["kernel_w"])
    taps = s["kernel_h"] * s["kernel_w"]
    factors = {"kernel": (s["B"], s["K"]), "filter": (s["B"], s["filter_rows"], s["O"]),
               "channel": (s["B"], s["channel_rows"], s["C"]), "tap": (s["B"], s["tap_rows"], taps)}  # fmt: skip
    bias, index = {"bias": (s["bias_rows"], s["O"])}, {"index": (s["K"],)}
    return {
        "mixed_conv": ({"x": x, "weight": weight, **factors, **bias, "y": y}, "y"),
        "mixed_conv_grad_x": ({"y": y, "weight": weight, **factors, "x": x}, "x"),
        "mixed_conv_grad_bank": ({"x": x, "y": y, "weight": weight, **factors, "grad": weight}, "grad"),
        "sample_conv": ({"x": x, "weight": weight, **bias, **index, "y": y}, "y"),
        "sample_conv_grad_x": ({"y": y, "weight": weight, **index, "x": x}, "x"),
        "sample_conv_grad_weight": ({"x": x, "y": y, **index, "weight": weight}, "weight"),
    }[name]


def dtype_of(key: str, name: str, sizes: dict[str, int]) -> torch.dtype:
    """Of a tensor of a call."""
    gradient = name == "sample_conv_grad_weight" and key == "weight"
    half = sizes["half"] if key in ("x", "y") else sizes["half_bank"] if key == "weight" and not gradient else 0
    return torch.bfloat16 if half else torch.float32


def truth(name: str, tensors: dict[str, torch.Tensor | None], sizes: dict[str, int]) -> torch.Tensor:
    """What the call must write, in float64."""
    names = ("stride", "pad", "dilation")
    stride, padding, dilation = ((sizes[f"{n}_h"], sizes[f"{n}_w"]) for n in names)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": sizes["G"]}
    double = {key: None if t is None or key == "index" else t.double() for key, t in tensors.items()}
    last = sizes["channels_last"] == 1
    for key in ("x", "y"):
        t = double[key] if key in double else None
        if last and t is not None:
            double[key] = t.view(t.shape[0], *t.shape[2:], t.shape[1]).permute(0, 3, 1, 2)
    output = shapes(name, sizes)[1]
    if output == "grad":
        output = "weight"
    full = shapes(name, sizes)[0]
    leaves = {key: double[key] if key != output else torch.zeros(full[key]).double() for key in ("x", "weight")}
    leaf = leaves[output].requires_grad_() if output != "y" else None
    if name in SAMPLE:
        y = reference.sample_conv(leaves["x"], leaves["weight"], double.get("bias"), index=tensors["index"], **geometry)
    else:
        factors = {axis: double[axis] for axis in ("kernel", "filter", "channel", "tap")}
        bias = double.get("bias")
        bias = None if bias is None else bias.expand(sizes["B"], -1)
        weight = reference.mix_kernels(leaves["weight"], Coefficients(**factors))
        y = reference.sample_conv(leaves["x"], weight, bias, **geometry)
    found = y if leaf is None else torch.autograd.grad(y, leaf, double["y"])[0]
    return found.permute(0, 2, 3, 1).reshape(found.shape) if last and output in ("x", "y") else found


def call(name: str, sizes: dict[str, int], tensors: list) -> int:
    structure = ConvSizes(**sizes, lower=-math.inf, upper=math.inf)
    pointers = [t.data_ptr() if isinstance(t, torch.Tensor) else t for t in tensors]
    return loaded().entries[name](ctypes.addressof(structure), *pointers)


def affordable(name: str, sizes: dict[str, int]) -> bool:
    """Whether every tensor is small enough to be there, and so is what the work needs besides."""
    if max(prod(shape) for shape in shapes(name, sizes)[0].values()) > MOST:
        return False
    reach = max((sizes[f"kernel_{a}"] - 1) * sizes[f"dilation_{a}"] + sizes[f"stride_{a}"] for a in "hw")
    pads = max(sizes["pad_h"], sizes["pad_w"])  # the reference pads
    return reach < 2**12 and pads < 2**6 and max(sizes["kernel_h"], sizes["kernel_w"]) < 2**6


def attack(name: str, rng: random.Random) -> None:
    """One call: hostile sizes with null pointers, or real tensors of which one pointer may be spoiled."""
    sizes, indexed = draw_sizes(rng, given=name in SAMPLE), name in SAMPLE and rng.random() < 0.6
    arguments = len(loaded().entries[name].argtypes) - 1
    valid = sound(name, sizes, indexed=indexed)
    if not valid or not affordable(name, sizes):
        code = call(name, sizes, [None] * arguments)
        if code == 0:  # then there was nothing to write
            assert valid and prod(shapes(name, sizes)[0][shapes(name, sizes)[1]]) == 0, sizes
        return
    wanted, output = shapes(name, sizes)
    wholes, tensors = {}, {}
    for i, (key, shape) in enumerate(wanted.items()):
        dtype = dtype_of(key, name, sizes)
        wholes[key], tensors[key] = guarded(shape, torch.nan if key == output else None, i, dtype)
        if key in ("kernel", "filter", "channel", "tap", "bias") and key != "kernel" and rng.random() < 0.3:
            tensors[key] = None
    bad_index = False
    if "index" in tensors:
        index = torch.tensor([rng.randrange(max(1, sizes["B"])) for _ in range(sizes["K"])], dtype=torch.int64)
        if indexed and sizes["K"] and rng.random() < 0.3:
            index[rng.randrange(sizes["K"])] = rng.choice([-1, -(2**63), sizes["B"], 2**31, 2**32, 2**62, 2**63 - 1])
        bad_index = indexed and bool(((index < 0) | (index >= sizes["B"])).any())
        tensors["index"] = index if indexed else None
    passed: list = list(tensors.values())
    if name == "mixed_conv_grad_bank":
        blocks = (ctypes.c_int64 * 3)()
        if call("mixed_conv_grad_blocks", sizes, [ctypes.addressof(blocks)]) != 0:
            assert min(sizes[n] for n in "BCOK") == 0, sizes
            return
        rows, taps = sizes["B"] * sizes["K"], sizes["kernel_h"] * sizes["kernel_w"]
        passed += [torch.empty(blocks[0] * rows * taps), torch.empty(blocks[1] * rows * sizes["O"]),
                   torch.empty(blocks[2] * rows * sizes["C"])]  # fmt: skip
    spoiled = spoil(rng, passed, list(tensors).index(output))
    code = call(name, sizes, passed)
    whole = wholes[output]
    assert whole[:GUARD].isnan().all() and whole[-GUARD:].isnan().all(), "written beside the output"
    count = prod(wanted[output])
    if code != 0:
        assert tensors[output].isnan().all() or code == 9, f"{code}, yet written to"
        empty_sum = min(sizes["C"], sizes["O"], sizes["K"]) == 0 or (name == "mixed_conv_grad_bank" and sizes["B"] == 0)
        assert spoiled or bad_index or empty_sum, f"{code}: {loaded().error_text(code)}"
        return
    assert not spoiled or count == 0, f"took a spoiled pointer: {spoiled}"
    assert not bad_index or count == 0, "took a bad index"
    if count and not spoiled:
        want = truth(name, tensors | {output: None} if output != "grad" else tensors, sizes)
        near = {"rtol": 1e-3, "atol": 1e-3}
        if sizes["half"]:  # weights and results may be rounded to 8 bits
            near = {"rtol": 2e-2, "atol": 2e-2 * max(1.0, want.abs().max().item())}
        torch.testing.assert_close(tensors[output].double(), want, **near)


def attack_mix_kernels(rng: random.Random) -> None:
    K, N, B = (rng.choice(HOSTILE) for _ in range(3))
    counts = [K * N, B * K, B * N]
    if min(K, N, B) < 0 or max(counts) > MOST:
        code = loaded().entries["mix_kernels"](None, None, None, K, N, B)
        assert code in (1, 3, 4) or (code == 0 and counts[2] == 0), f"{code} {K=} {N=} {B=}"
        return
    bank, coeff, out = torch.randn(K, N), torch.randn(B, K), torch.full((B, N), torch.nan)
    pointers: list = [bank, coeff, out]
    spoiled = spoil(rng, pointers, 2)
    code = loaded().entries["mix_kernels"](
        *(t.data_ptr() if isinstance(t, torch.Tensor) else t for t in pointers), K, N, B
    )
    assert (code != 0) == bool(spoiled), f"{code} {spoiled} {K=} {N=} {B=}"
    if code == 0:
        torch.testing.assert_close(out.double(), coeff.double() @ bank.double(), rtol=1e-4, atol=1e-4)


def attack_all(calls: int) -> None:
    """Many calls of every entry; the one under way is named on stderr, from where a crash can be repeated."""
    torch.set_num_threads(1)
    for name in ("mix_kernels", *MIXED, *SAMPLE):
        for seed in range(calls):
            print(f"{name} with seed {seed}", file=sys.stderr)
            rng = random.Random(seed)
            attack_mix_kernels(rng) if name == "mix_kernels" else attack(name, rng)
    print("done")


CALLS = int(os.environ.get("CONVARY_HOSTILE_CALLS", 200))  # of each entry; scripts/sanitize.sh wants more


@needs_library
def test_an_error_code_or_the_right_result():
    root = str(Path(__file__).parents[3])
    code = f"from tests.ops.native.test_hostile import attack_all; attack_all({CALLS})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.strip() == "done", f"exit {run.returncode}: {run.stderr[-2000:]}"
