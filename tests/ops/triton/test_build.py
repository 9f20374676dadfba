# SPDX-License-Identifier: Apache-2.0
"""Triton builds every kernel for real GPUs, down to machine code; a GPU is needed to run it, not to build it."""

import importlib
import importlib.util

import pytest

import convary.ops  # noqa: F401  (whose rooms must be there)
from tests.ops.kernels import forget

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
PRODUCT = {"PRECISION": "ieee", "POSITIONS": 64, "OUT": 64, "IN": 32}
SUM = {"POSITIONS": 256, "CHANNELS": 1}
ROUTER = {"HIDDEN": 64, "HAS_SQUEEZE_BIAS": True, "HAS_LAST_BIAS": True, "HAS_TEMPERATURE": True, "POSITIONS": 64,
          "CHANNELS": 32, "OUT": 64, "REST": 4}  # fmt: skip
POINTERS = {"x", "weight", "y", "grad", "squeeze", "squeeze_bias", "mean", "variance", "gain", "shift", "last",
            "last_bias", "temperature", "out"}  # fmt: skip
slow = pytest.mark.slow
KERNELS = [
    ("sample.triton_direct", "walk", SUM),
    ("sample.triton_direct", "compare", SUM),
    ("pixel.triton_kernels", "filter", SUM | {"BORDER": 2}),
    ("pixel.triton_kernels", "gradient_of_weight", SUM | {"BORDER": 4}),
    ("pixel.triton_kernels", "gradient_of_x", SUM | {"CLAMP": True}),
    ("triton.router_kernel", "of_sample", ROUTER | {"HAS_SQUEEZE": False, "HAS_NORM": False, "SOFTMAX": True,
                                                    "PIECES": 1}),
    *(pytest.param("pixel.triton_kernels", name, SUM | {"BORDER": border}, marks=slow)
      for name in ("filter", "gradient_of_weight") for border in range(5)),
    pytest.param("pixel.triton_kernels", "gradient_of_x", SUM | {"CLAMP": False}, marks=slow),
    *(pytest.param("sample.triton_kernels", name, PRODUCT | {"PRECISION": precision}, marks=slow)
      for name in ("gather", "correlate") for precision in ("ieee", "tf32")),
    *(pytest.param("triton.router_kernel", "of_sample", ROUTER | {"HAS_SQUEEZE": True, "HAS_NORM": norm,
                   "SOFTMAX": softmax, "PIECES": pieces}, marks=slow)
      for norm, softmax, pieces in ((True, True, 4), (False, False, 2))),
]  # fmt: skip


@needs_triton
@pytest.mark.parametrize(
    ("capability", "dtype"), [(90, "bf16"), *(pytest.param(*p, marks=slow) for p in ((90, "fp32"), (80, "bf16")))]
)
@pytest.mark.parametrize(("module", "name", "constants"), KERNELS, ids=str)
def test_every_kernel_builds(module, name, constants, capability, dtype, monkeypatch, tmp_path):
    pytest.importorskip("triton.backends.nvidia")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    forget()  # those for the interpreter, maybe
    kernel = getattr(importlib.import_module(f"convary.ops.{module}"), name)
    kinds = {key: "constexpr" for key in constants} | {key: f"*{dtype}" for key in POINTERS} | {"EPSILON": "fp32"}
    signature = {argument: kinds.get(argument, "i32") for argument in kernel.arg_names}
    where = {(kernel.arg_names.index(key),): value for key, value in constants.items()}
    built = triton.compile(ASTSource(kernel, signature, where), target=GPUTarget("cuda", capability, 32))
    assert len(built.asm["cubin"]) > 1000 and f"sm_{capability}" in built.asm["ptx"]
    assert built.metadata.shared <= 100_000  # of a block; an RTX 4090 has 99 KiB
