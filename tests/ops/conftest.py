# SPDX-License-Identifier: Apache-2.0
"""A second copy of the native library here: of another instruction set, or beside a torch without threads."""

import shutil

import pytest

from convary.ops import cost, native
from convary.ops.native import library


@pytest.fixture
def reloaded(monkeypatch, tmp_path):
    """A function that puts a second copy of the library, which reads its environment anew, in the first one's place."""

    def load(isa: str) -> None:
        monkeypatch.setenv("CONVARY_LIBRARY", shutil.copy(library._find(), tmp_path))
        monkeypatch.setenv("CONVARY_ISA", isa)
        monkeypatch.setattr(library, "_library", None)
        cost.fitted.cache_clear()  # whose table is of the instruction set

    yield load
    cost.fitted.cache_clear()


@pytest.fixture(params=["avx512_bf16", "avx512", "avx2", "baseline", "neon"])
def another_isa(request, reloaded):
    """The native calls of a test run on this instruction set; the CPU's best one is skipped: all other tests run it."""
    isa = request.param
    if native.available() is not None or isa not in native.isas():
        pytest.skip(f"this CPU or library has no {isa}")
    if isa == native.isa():
        pytest.skip("every other test runs on it")
    reloaded(isa)
    assert native.isa() == isa
