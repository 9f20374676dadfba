# SPDX-License-Identifier: Apache-2.0
"""The native library: values against float64, every instruction set, the raw C ABI, and why it is absent."""

from __future__ import annotations

import contextlib
import ctypes
import re
import shutil
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import convary
from convary import ops
from convary.errors import ConvaryError, NativeWarning
from convary.ops import Coefficients, native
from convary.ops.native import eligible
from convary.ops.native import library as native_library
from convary.ops.native.library import loaded
from tests.processes import python

needs_library = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))
EDGES = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 127, 128, 129, 1535, 1537, 6145]
TOO_LARGE = 2**62
WORK = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
PARALLEL_FOR = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, WORK, ctypes.c_void_p)


def tensors(K: int, N: int, B: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(K, N, generator=generator), torch.randn(B, K, generator=generator)


def check_mix(K: int, N: int, B: int) -> None:
    """Values within float32 rounding of the float64 truth, every element written and nothing beside them."""
    bank, coeff = tensors(K, N, B)
    guard = torch.full((B * N + 32,), torch.nan)
    out = guard[16 : 16 + B * N]
    assert raw_mix(bank, coeff, out, K, N, B) == 0
    truth = coeff.double() @ bank.double()
    bound = (coeff.double().abs() @ bank.double().abs()) * (K + 1) * 2**-23
    assert ((out.reshape(B, N) - truth).abs() <= bound).all(), f"{K=} {N=} {B=}"
    assert guard[:16].isnan().all()
    assert guard[16 + B * N :].isnan().all()


def raw_mix(bank, coeff, out, K: int, N: int, B: int) -> int:
    """The C function itself; a tensor may be None for a null pointer, or an address."""
    pointers = [t.data_ptr() if isinstance(t, torch.Tensor) else t for t in (bank, coeff, out)]
    return loaded().entries["mix_kernels"](*pointers, K, N, B)


@needs_library
class TestMixKernels:
    @pytest.mark.parametrize("N", EDGES)
    def test_sizes_around_vector_and_tile_edges(self, N):
        for K, B in ((1, 1), (2, 3), (4, 1), (4, 33), (49, 2)):
            check_mix(K, N, B)

    @settings(deadline=None, max_examples=60)
    @given(K=st.integers(0, 70), N=st.integers(0, 3000), B=st.integers(0, 40))
    def test_any_size(self, K, N, B):
        check_mix(K, N, B)

    def test_output_past_the_cache(self):
        check_mix(3, 100_003, 48)  # streamed stores: rows that start off a vector's alignment

    def test_output_on_huge_pages(self):
        bank, coeff = tensors(2, 1_200_001, 8)
        torch.testing.assert_close(native.mix_kernels(bank, coeff), coeff @ bank, rtol=1e-5, atol=1e-5)

    def test_special_values(self):
        bank, coeff = tensors(3, 40, 2)
        bank[0, 7], bank[1, 8] = torch.inf, torch.nan
        torch.testing.assert_close(native.mix_kernels(bank, coeff), coeff @ bank, equal_nan=True)

    def test_ignores_default_dtype(self):
        torch.set_default_dtype(torch.float64)
        try:
            assert native.mix_kernels(torch.ones(2, 3).float(), torch.ones(1, 2).float()).dtype is torch.float32
        finally:
            torch.set_default_dtype(torch.float32)

    def test_sample_does_not_see_its_neighbours(self):
        bank, coeff = tensors(4, 1001, 6)
        other = coeff.clone()
        other[3] = torch.nan
        kept = [0, 1, 2, 4, 5]
        assert torch.equal(native.mix_kernels(bank, coeff)[kept], native.mix_kernels(bank, other)[kept])


@needs_library
class TestWhyNot:
    @pytest.mark.parametrize(
        ("bank", "coeff", "reason"),
        [
            (torch.ones(4, 9, dtype=torch.float64), torch.ones(2, 4), "a tensor is torch.float64"),
            (torch.ones(4, 9), torch.ones(2, 4, dtype=torch.bfloat16), "a tensor is torch.bfloat16"),
            (torch.ones(4, 9, device="meta"), torch.ones(2, 4), "a tensor is on meta"),
            (torch.ones(9, 4).T, torch.ones(2, 4), "bank is not contiguous"),
            (torch.ones(4, 9).to_sparse(), torch.ones(2, 4), "the layout torch.sparse_coo"),
            (torch.ones(4, 3, 3), torch.ones(2, 4), "bank has 3 dimensions"),
            (torch.ones(4, 9), torch.ones(2, 5), "bank has 4 kernels but coeff has 5"),
        ],
    )
    def test_refuses(self, bank, coeff, reason):
        assert reason in native.why_not(bank, coeff)
        with pytest.raises(ConvaryError, match=r"native.mix_kernels cannot run: .*; use coeff @ bank"):
            native.mix_kernels(bank, coeff)

    def test_takes(self):
        assert native.why_not(torch.ones(4, 9), torch.ones(2, 4)) is None


@needs_library
class TestRawInterface:
    """What only the C ABI can be given; a crash here would end the test run."""

    @pytest.mark.parametrize(
        ("sizes", "code"),
        [
            ((-1, 4, 4), 3),
            ((4, -1, 4), 3),
            ((4, 4, -1), 3),
            ((TOO_LARGE, TOO_LARGE, 1), 4),
            ((4, TOO_LARGE, 1), 4),
            ((1, 2**61, 1), 4),
            ((4, 1, TOO_LARGE), 4),
            ((2**63 - 1, 1, 1), 4),
        ],
    )
    def test_bad_sizes(self, sizes, code):
        bank, coeff, out = torch.ones(16), torch.ones(16), torch.ones(16)
        assert raw_mix(bank, coeff, out, *sizes) == code
        assert out.eq(1).all()

    @settings(deadline=None, max_examples=200)
    @given(st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 3).filter(lambda sizes: max(sizes) > 2**40))
    def test_no_sizes_crash_it(self, sizes):
        # With null pointers a size that passes the checks ends at the pointer check, or is an empty output.
        assert raw_mix(None, None, None, *sizes) in (0, 1, 3, 4)

    @pytest.mark.parametrize("missing", [0, 1, 2])
    def test_null_pointer(self, missing):
        arguments: list = [torch.ones(4, 4), torch.ones(4, 4), torch.ones(4, 4)]
        arguments[missing] = None
        assert raw_mix(*arguments, 4, 4, 4) == 1

    @pytest.mark.parametrize("odd", [0, 1, 2])
    def test_misaligned_pointer(self, odd):
        tensors = [torch.ones(8, 8) for _ in range(3)]
        pointers: list = [t.data_ptr() for t in tensors]
        pointers[odd] += 1
        assert raw_mix(*pointers, 4, 4, 4) == 2

    def test_overlap(self):
        memory = torch.ones(64)
        assert raw_mix(memory[:16], memory[16:32], memory[15:31], 4, 4, 4) == 5
        assert raw_mix(memory[:16], memory[16:32], memory[31:47], 4, 4, 4) == 5
        assert raw_mix(memory[:16], memory[16:32], memory[32:48], 4, 4, 4) == 0

    def test_every_code_has_a_text(self):
        texts = [loaded().error_text(code) for code in range(12)]
        assert len(set(texts)) == 12
        assert texts[11] == b"unknown error code"

    def test_failed_threads_are_an_error_code(self, threads):
        with (
            threads(2, lambda *arguments: 1),
            pytest.raises(
                ConvaryError, match="parallel_for that was given to the library failed; got K=4, N=100000, B=8"
            ),
        ):
            native.mix_kernels(torch.ones(4, 100_000), torch.ones(8, 4))


@needs_library
class TestInstructionSets:
    def test_values(self, another_isa):
        for N in EDGES:
            check_mix(4, N, 5)
            check_mix(7, N, 1)
        check_mix(3, 100_003, 48)

    def test_best_is_the_default(self, reloaded):
        reloaded("")
        assert native.isa() == native.isas()[0]

    def test_unknown_is_refused(self, reloaded):
        reloaded("avx9000")
        assert native.available().startswith("CONVARY_ISA=avx9000 cannot run here; unset it or use one of ")


@pytest.fixture
def threads():
    """A context in which torch has that many threads and the library another parallel_for."""

    @contextlib.contextmanager
    def use(count: int, parallel_for=None):
        native.isa()  # loaded, or loading would set torch's parallel_for after us
        library, before = ctypes.CDLL(str(native_library._find())), torch.get_num_threads()
        replaced = PARALLEL_FOR(parallel_for) if parallel_for else PARALLEL_FOR(native_library._torch_parallel_for())
        torch.set_num_threads(count)
        library.convary_set_parallel_for(replaced)
        try:
            yield
        finally:
            library.convary_set_parallel_for(PARALLEL_FOR(native_library._torch_parallel_for()))
            torch.set_num_threads(before)

    return use


@needs_library
class TestThreads:
    @pytest.mark.parametrize("count", [1, 2])
    def test_follow_torch(self, threads, count):
        """The work is cut into as many ranges as torch has threads: seen by wrapping the parallel_for."""
        torchs, ranges = PARALLEL_FOR(native_library._torch_parallel_for()), []

        def counted(begin, end, grain, function, context):
            def piece(first, last, context):
                ranges.append((first, last))
                function(first, last, context)

            return torchs(begin, end, grain, WORK(piece), context)

        bank, coeff = tensors(4, 200_000, 8)
        with threads(count, counted):
            torch.testing.assert_close(native.mix_kernels(bank, coeff), coeff @ bank)
        assert len(ranges) == count

    def test_small_work_stays_on_the_calling_thread(self, threads):
        with threads(2, lambda *arguments: 1):
            native.mix_kernels(torch.ones(4, 500), torch.ones(2, 4))

    def test_from_several_python_threads(self, threads):
        def work(seed):
            bank, coeff = tensors(4, 50_000, 8, seed)
            for _ in range(20):
                torch.testing.assert_close(native.mix_kernels(bank, coeff), coeff @ bank)
            return seed

        with threads(2), ThreadPoolExecutor(4) as pool:
            assert list(pool.map(work, range(4))) == [0, 1, 2, 3]

    def test_after_fork(self):
        """As in a DataLoader worker, which sets one thread."""
        code = """
import os, torch
from convary.ops import native
bank, coeff = torch.randn(4, 100_000), torch.randn(8, 4)
native.mix_kernels(bank, coeff)
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    os._exit(0 if torch.allclose(native.mix_kernels(bank, coeff), coeff @ bank, atol=1e-5) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
        assert python(code) == "0"


@pytest.fixture
def fresh(monkeypatch):
    """The library is looked for again in the test, and again after it."""
    monkeypatch.setattr(native_library, "_library", None)
    return monkeypatch


class TestAbsent:
    """Each way to be without the library has its reason, and every function gives it."""

    def reason(self) -> str:
        reason = native.available()
        assert reason is not None
        assert native.why_not(torch.ones(1, 1), torch.ones(1, 1)) == reason
        for call in (native.isa, native.isas, lambda: native.mix_kernels(torch.ones(1, 1), torch.ones(1, 1))):
            with pytest.raises(ConvaryError, match=re.escape(reason)):
                call()
        return reason

    def test_named_file_is_missing(self, fresh, tmp_path):
        fresh.setenv("CONVARY_LIBRARY", str(tmp_path / "none.so"))
        assert self.reason() == f"CONVARY_LIBRARY={tmp_path / 'none.so'} is not a file"

    def test_file_is_no_library(self, fresh, tmp_path):
        path = tmp_path / "broken.so"
        path.write_bytes(b"not a library")
        fresh.setenv("CONVARY_LIBRARY", str(path))
        assert self.reason().startswith(f"{path} could not be loaded: ")

    def test_foreign_library(self, fresh):
        foreign = next((Path(torch.__file__).parent / "lib").glob("libc10.*"))
        fresh.setenv("CONVARY_LIBRARY", str(foreign))
        assert "could not be loaded" in self.reason()

    def test_not_built(self, fresh, tmp_path):
        fresh.delenv("CONVARY_LIBRARY", raising=False)
        fresh.setattr(convary, "__path__", [str(tmp_path)])
        assert self.reason() == "convary runs from a source tree where they were not built; run pip install . there"

    def test_built_without_a_compiler(self, fresh, tmp_path):
        (tmp_path / "lib").mkdir()
        (tmp_path / "lib" / "absent.txt").write_text("no C++ compiler was found\n")
        fresh.delenv("CONVARY_LIBRARY", raising=False)
        fresh.setattr(convary, "__path__", [str(tmp_path)])
        assert self.reason() == (
            "convary was built without them: no C++ compiler was found; install a C++ compiler and reinstall"
        )

    def test_other_platform(self, fresh):
        fresh.delenv("CONVARY_LIBRARY", raising=False)
        fresh.setattr(native_library.sys, "platform", "sunos5")
        assert self.reason() == "there are no native kernels for sunos5"

    def test_windows_file_is_looked_for(self, fresh, tmp_path):
        (tmp_path / "lib").mkdir()
        path = tmp_path / "lib" / "libconvary.dll"
        path.write_bytes(b"not a library")
        fresh.delenv("CONVARY_LIBRARY", raising=False)
        fresh.setattr(convary, "__path__", [str(tmp_path)])
        fresh.setattr(native_library.sys, "platform", "win32")
        assert self.reason().startswith(f"{path} could not be loaded: ")

    @needs_library
    def test_other_abi(self, fresh):
        version = native_library.ABI_VERSION
        fresh.setattr(native_library, "ABI_VERSION", 99)
        assert f"has ABI version {version} but 99 is wanted; reinstall convary" in self.reason()


def call(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A mixed convolution, whose strategy is chosen."""
    coeffs = Coefficients(kernel=torch.ones(2, 3, dtype=dtype))
    return ops.mixed_conv(torch.ones(2, 4, 9, dtype=dtype), torch.ones(3, 5, 4, 3, dtype=dtype), coeffs)


class TestTold:
    """A user hears of missing kernels once, when they are first wanted."""

    @pytest.fixture(autouse=True)
    def untold(self, fresh):
        fresh.setattr(eligible, "_told", False)
        fresh.setenv("CONVARY_LIBRARY", "none.so")

    def test_absent(self):
        with pytest.warns(NativeWarning, match="kernels are absent, .*: CONVARY_LIBRARY=none.so is not a file"):
            call()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call()

    def test_not_where_they_would_not_run(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call(torch.float64)
            with ops.strategy("grouped"):
                call()
            native.available()
            ops.explain(
                "mixed_conv", torch.ones(2, 4, 9), torch.ones(1, 5, 4, 3), Coefficients(kernel=torch.ones(2, 1))
            )
        with pytest.warns(NativeWarning):
            call()

    def test_a_compiled_call_holds_no_warning(self):
        native.available()  # or the loading would be traced
        compiled = torch.compile(call, fullgraph=True, backend="eager")
        with warnings.catch_warnings():
            warnings.simplefilter("error", NativeWarning)
            assert compiled().shape == (2, 5, 7)


@pytest.fixture(params=[1, 2])
def old_torch(request, reloaded, monkeypatch):
    """As before torch 2.10, with so many threads: a libtorch_cpu that does not share them."""
    other = next((Path(torch.__file__).parent / "lib").glob("*c10.*")).name
    monkeypatch.setitem(native_library._TORCH_FILES, sys.platform, other)
    monkeypatch.setattr(eligible, "_told", False)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    reloaded("")
    yield request.param
    torch.set_num_threads(before)


def estimate(*arguments) -> float:
    """Of the native strategy, in milliseconds."""
    rows = ops.explain(ops.mixed_conv, *arguments).rows
    return next(row.milliseconds for row in rows if row.strategy == "native")


@needs_library
class TestOldTorch:
    """Without torch's threads the kernels run all the same, on one, and are chosen for what they are worth there."""

    def test_runs_on_one_thread(self, old_torch):
        torch.manual_seed(0)
        arguments = torch.randn(4, 8, 40), torch.randn(4, 16, 8, 3), Coefficients(kernel=torch.rand(4, 4))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            ys = [ops.mixed_conv(*arguments) for _ in range(2)]
        with ops.strategy("native"):
            ys.append(ops.mixed_conv(*arguments))
        with ops.strategy("grouped"):
            torch.testing.assert_close(ys, 3 * [ops.mixed_conv(*arguments)])
        why = f"torch {torch.__version__} does not share its threads; torch 2.10 or later does"
        assert (native.available(), native_library.threads()) == (None, 1)
        said = [f"convary's native kernels run on one thread: {why}"] if old_torch > 1 else []
        assert [str(warning.message) for warning in told] == said
        found = ops.explain(ops.mixed_conv, *arguments)
        assert found.compiled == ("native" if old_torch == 1 else "bmm")
        assert found.source.endswith(f" on one thread: {why}")
        alone = estimate(*arguments)
        torch.set_num_threads(1)
        assert alone == pytest.approx(old_torch * estimate(*arguments), rel=1e-3)

    def test_prepared_layers_run(self, old_torch):
        layer, x = convary.ODConv2d(8, 8, 3).eval(), torch.randn(4, 8, 12, 12)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", NativeWarning)
            ys = [layer(x) for _ in range(4)]
        assert all(torch.equal(ys[1], y) for y in ys[2:])
        torch.testing.assert_close(ys[0], ys[3])


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_library_is_there_where_a_compiler_is():
    """Or every test above would be skipped without a word."""
    assert native.available() is None


@needs_library
def test_header_and_python_agree():
    library = ctypes.CDLL(str(native_library._find()))
    assert library.convary_abi_version() == native_library.ABI_VERSION
