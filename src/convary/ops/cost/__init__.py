# SPDX-License-Identifier: Apache-2.0
"""What a strategy costs: arithmetic, memory traffic and an estimate of time.

The time is a sum of amounts (multiply-adds, elements moved, calls) times seconds per amount. On a CPU the seconds were
fitted by ``convary bench fit``: on this machine where it was run here, else on one of its kind, see ``tables.py``.
Devices without a table use nominal figures (``NOMINAL``): not measured, good enough to prefer dense products, fewer
bytes and fewer calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch

from convary.ops.cost.tables import fitted, fitted_on
from convary.ops.problem import Problem

# Of an H100-class GPU in 16 bits, by its data sheet: an element at 3.3 TB/s, a multiply-add of tensor cores at 60 % of
# 495 T/s. Nobody measured these: their order is what counts.
_ELEMENT, _PRODUCT = 6e-13, 3.4e-15
NOMINAL = {
    "call": 2e-5, "sample": 1e-5, "macs": _PRODUCT, "mixed": 2 * _ELEMENT, "bank": _ELEMENT, "features": _ELEMENT,
    "result": _ELEMENT, "columns": 2 * _ELEMENT, "fresh": 0.0, "mixing": 2e-13,
}  # fmt: skip
_GROUPED = {**NOMINAL, "macs": 4 * _PRODUCT}  # cuDNN takes 1.5 to 8 times as long with as many groups as samples
_DEPTHWISE = {**NOMINAL, "macs": 3e-14}  # without tensor cores
NOMINAL_OF = {
    "grouped/dense": _GROUPED, "grouped/pointwise": _GROUPED, "grouped/depthwise": _DEPTHWISE,
    "loop/depthwise": _DEPTHWISE, "outputs/depthwise": _DEPTHWISE, "bmm/depthwise": {**NOMINAL, "macs": 3e-13},
}  # fmt: skip
# pixel_conv on a CPU: seconds per amount of a forward pass, by hand from docs/pixel.md; their order is what counts.
PIXEL = {
    "taps": {"call": 5e-6, "macs": 1.8e-10, "mixed": 1.3e-10},
    "native": {"call": 5e-6, "macs": 2.5e-11, "mixed": 2e-10, "features": 1.2e-10, "result": 1.2e-10},
}
FRESH_BYTES = 32 << 20  # glibc maps a larger buffer anew every time, and the kernel zeroes its pages
AMOUNTS = tuple(NOMINAL)
NATIVE_MARGIN = 1.2
HALF_SLOWDOWN = 20.0  # of torch's convolutions in half precision where the processor has no such products: seen on AVX2


def kind(problem: Problem) -> str:
    """Depthwise, pointwise or dense: they run through different code in torch and have their own fits."""
    if problem.op == "pixel_conv":
        return "pixel"
    if problem.G > 1 and problem.G == problem.C:
        return "depthwise"
    return "pointwise" if problem.T == 1 else "dense"


def amounts(problem: Problem, strategy: str) -> dict[str, float]:
    """What one call does, by the names in ``AMOUNTS``. Elements, not bytes; multiply-adds, not FLOPs."""
    if problem.op == "pixel_conv":
        return _pixel_amounts(problem, strategy)
    B, K, P, numel = problem.B, problem.K, problem.P, problem.kernel_numel
    stored = strategy not in ("outputs", "native")  # mixed kernels are written to memory and read back
    copies = K if strategy == "outputs" else 1
    pointwise = problem.T == 1 and all(s == 1 for s in problem.stride)
    given = problem.op == "sample_conv"  # the kernels come ready made
    in_cache = strategy == "native" and not given  # no mixed kernel reaches memory
    unfolds = strategy == "bmm" or (strategy == "outputs" and "tap" in problem.axes)
    buffers = {
        "mixed": float(B * numel) if stored or given else 0.0,
        "result": float(B * copies * problem.O * P),
        "columns": float(B * problem.C * problem.T * P) if unfolds and not pointwise else 0.0,
    }
    return {
        "call": 1.0,
        "sample": B if strategy == "loop" else 0.0,
        "macs": float(B * copies * numel * P),
        "bank": float(K * numel) if problem.axes else 0.0,
        "features": float(B * problem.C * prod(problem.size)),
        **buffers,
        "fresh": sum(size for size in buffers.values() if size * problem.dtype.itemsize > FRESH_BYTES),
        "mixing": float(B * K * numel) if in_cache else 0.0,
    }


def _pixel_amounts(problem: Problem, strategy: str) -> dict[str, float]:
    """Of ``pixel_conv``: ``mixed`` are its kernels. Strategy ``taps`` goes over features and results once per tap."""
    B, C, P, T = problem.B, problem.C, problem.P, problem.T
    passes = T if strategy == "taps" else 1
    return dict.fromkeys(AMOUNTS, 0.0) | {
        "call": float(passes),
        "macs": float(B * C * T * P),
        "mixed": float(B * problem.G * T * P),
        "features": float(B * C * prod(problem.size) * passes),
        "result": float(B * C * P * passes),
    }


def macs(problem: Problem, strategy: str) -> int:
    """Multiply-adds of a call: convolution, and assembling the kernels where the strategy does."""
    done = amounts(problem, strategy)
    assembly = problem.B * problem.K * problem.kernel_numel if problem.axes and strategy != "outputs" else 0
    return int(done["macs"]) + assembly


def bytes_moved(problem: Problem, strategy: str) -> int:
    """Bytes read and written once each, caches ignored; mixed kernels, columns and K-fold results count twice."""
    done = amounts(problem, strategy)
    if problem.op == "pixel_conv":
        return int(done["mixed"] + done["features"] + done["result"]) * problem.dtype.itemsize
    again = 2 if strategy == "outputs" else 1
    elements = 2 * done["mixed"] + done["bank"] + done["features"] + again * done["result"] + 2 * done["columns"]
    return int(elements) * problem.dtype.itemsize


def estimate(problem: Problem, strategy: str) -> float:
    """Estimated seconds of a call (forward, or forward and backward where ``problem.training``)."""
    rates = _rates(problem, strategy)
    if strategy == "outputs":  # fitted without tap coefficients: a column then counts as a feature
        rates = {"columns": rates.get("features", 0.0), **rates}
    seconds = sum(rates.get(name, 0.0) * amount for name, amount in amounts(problem, strategy).items())
    multiplies = problem.op != "pixel_conv" and strategy != "native"
    return seconds * HALF_SLOWDOWN if multiplies and not has_fast_products(problem) else seconds


def has_fast_products(problem: Problem) -> bool:
    """Whether torch's convolutions and products are no slower in the problem's dtype than in float32."""
    if problem.device != "cpu":
        return True
    ask = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(problem.dtype)
    known = getattr(torch.ops.mkldnn, ask, None) if ask else None  # a torch without oneDNN has no such function
    return known is None or bool(known())


def key(problem: Problem, strategy: str) -> str:
    """Where the rates stand. Given kernels go through native code of their own; torch's does not care who made them."""
    given = strategy == "native" and problem.op == "sample_conv"
    mode = "training" if problem.training else "inference"
    return f"{strategy}{' (given)' if given else ''}/{kind(problem)}/{mode}"


def preferred(estimates: Mapping[str, float]) -> str:
    """The strategy with the lowest estimate; ``native`` also where another promises less than a fifth more speed.

    The estimates are no better than that, and ``native`` alone keeps no mixed kernels in memory.
    """
    return min(estimates, key=lambda name: estimates[name] * (1.0 if name == "native" else NATIVE_MARGIN))


def knows(problem: Problem, strategy: str) -> bool:
    """Whether the table that holds for the problem's device has rates of a strategy."""
    return key(problem, strategy) in _table(problem)


def _table(problem: Problem) -> Mapping[str, dict[str, float]]:
    if problem.device == "cpu":
        return fitted()["rates"]
    table = fitted_on(problem.device)
    return {} if table is None else table["rates"]["float32" if problem.dtype.itemsize > 2 else "bf16"]


def _rates(problem: Problem, strategy: str) -> Mapping[str, float]:
    if problem.device != "cpu":
        plain = strategy == "grouped" and problem.B == 1  # then it is an ordinary convolution
        nominal = NOMINAL if plain else NOMINAL_OF.get(f"{strategy}/{kind(problem)}", NOMINAL)
        return _table(problem).get(key(problem, strategy), nominal)
    if problem.op == "pixel_conv":
        return PIXEL.get(strategy, NOMINAL)
    rates, name = _table(problem), key(problem, strategy)
    # Where the fit has none for given kernels: those of mixed ones, mixing left out.
    return rates.get(name) or rates.get(name.replace(" (given)", ""), NOMINAL)
