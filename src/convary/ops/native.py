# SPDX-License-Identifier: Apache-2.0
"""The native library (csrc/): found next to the package, checked by its ABI version, threaded by torch's own pool.

``CONVARY_LIBRARY`` names another build of the library (for example one with sanitizers); ``CONVARY_ISA`` forces a lower
instruction set than the CPU's best (``baseline``, ``avx2``, ``avx512``, ``neon``). Both are read once, at first use.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from convary.errors import ConvaryError

ABI_VERSION = 6
_FILES = {"linux": "libconvary.so", "darwin": "libconvary.so"}
_TORCH_FILES = {"linux": "libtorch_cpu.so", "darwin": "libtorch_cpu.dylib"}


@dataclass(frozen=True, kw_only=True)
class Library:
    """The loaded library: its entry points and the instruction set that it picked."""

    isa: str
    isas: tuple[str, ...]
    mix_kernels: Callable[..., int]
    mixed_conv: Callable[..., int]
    mixed_conv_grad_x: Callable[..., int]
    mixed_conv_grad_blocks: Callable[..., int]
    mixed_conv_grad_bank: Callable[..., int]
    route: Callable[..., int]
    sample_conv: Callable[..., int]
    sample_conv_grad_x: Callable[..., int]
    sample_conv_grad_weight: Callable[..., int]
    pixel_conv: Callable[..., int]
    pixel_conv_grad_x: Callable[..., int]
    pixel_conv_grad_weight: Callable[..., int]
    error_text: Callable[[int], bytes]


def available() -> str | None:
    """None where the native kernels can run, else the reason why they cannot."""
    library = _load()
    return library if isinstance(library, str) else None


def isa() -> str:
    """The instruction set in use, for example ``"avx2"``.

    Raises:
        ConvaryError: the library is not available.
    """
    return loaded().isa


def isas() -> tuple[str, ...]:
    """Every instruction set that the library holds and this CPU can run, best first.

    Raises:
        ConvaryError: the library is not available.
    """
    return loaded().isas


def why_not(bank: Tensor, coeff: Tensor) -> str | None:
    """None where :func:`mix_kernels` takes these tensors, else the reason why it does not.

    Args:
        bank: (K, N).
        coeff: (B, K).
    """
    library = _load()
    if isinstance(library, str):
        return library
    if torch._C._len_torch_dispatch_stack():
        return "a dispatch mode (a tracer, a counter) is watching and would not see it"
    if (reason := _refusal(bank)) is not None:
        return f"bank {reason}"
    if (reason := _refusal(coeff)) is not None:
        return f"coeff {reason}"
    if bank.shape[0] != coeff.shape[1]:
        return f"bank has {bank.shape[0]} kernels but coeff has {coeff.shape[1]} columns"
    return None


def _refusal(tensor: Tensor) -> str | None:
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"is a {type(tensor).__name__}, the native kernels take plain tensors"
    if not tensor.is_cpu:
        return f"is on {tensor.device}, the native kernels run on the CPU"
    if tensor.dtype is not torch.float32:
        return f"is {tensor.dtype}, the native kernels take torch.float32"
    if tensor.ndim != 2:
        return f"has {tensor.ndim} dimensions, 2 are wanted"
    if tensor.layout is not torch.strided or not tensor.is_contiguous() or tensor.is_neg():
        return "is not contiguous"
    return None


def mix_kernels(bank: Tensor, coeff: Tensor) -> Tensor:
    """``coeff @ bank`` in one pass over the bank, whatever the batch; not differentiable by itself.

    Runs on as many threads as ``torch.get_num_threads()`` says.

    Args:
        bank: (K, N) float32, contiguous, on the CPU: K flattened kernels.
        coeff: (B, K) float32, contiguous, on the CPU: mixing weights.

    Returns:
        (B, N), fresh memory without a gradient.

    Raises:
        ConvaryError: the library is not available, or :func:`why_not` refuses the tensors.
    """
    if (reason := why_not(bank, coeff)) is not None:
        raise ConvaryError(f"native.mix_kernels cannot run: {reason}; use coeff @ bank")
    library = loaded()
    B, K = coeff.shape
    N = bank.shape[1]
    out = torch.empty((B, N), dtype=torch.float32, device="cpu")  # whatever the defaults are
    code = library.mix_kernels(bank.data_ptr(), coeff.data_ptr(), out.data_ptr(), K, N, B)
    if code:
        raise ConvaryError(f"native.mix_kernels failed: {library.error_text(code).decode()}; got {K=}, {N=}, {B=}")
    return out


def loaded() -> Library:
    """The library.

    Raises:
        ConvaryError: it is not available.
    """
    library = _load()
    if isinstance(library, str):
        raise ConvaryError(f"the native kernels are not available: {library}")
    return library


_library: Library | str | None = None


def _load() -> Library | str:
    """The library, or why there is none; kept in a variable, since torch.compile looks through a cached function."""
    global _library
    if _library is None:
        _library = _open()
    return _library


def _open() -> Library | str:
    path = _find()
    if isinstance(path, str):
        return path
    try:
        handle = ctypes.CDLL(str(path))
        version = handle.convary_abi_version()
    except (OSError, AttributeError) as error:
        return f"{path} could not be loaded: {error}"
    if version != ABI_VERSION:
        return f"{path} has ABI version {version} but {ABI_VERSION} is wanted; reinstall convary"
    parallel_for = _torch_parallel_for()
    if isinstance(parallel_for, str):
        return parallel_for
    return _bind(handle, parallel_for)


def _bind(handle: ctypes.CDLL, parallel_for: int) -> Library | str:
    """Declare the C signatures (csrc/convary.h) and hand over torch's threads."""
    for name in ("convary_cpu_isa", "convary_isas", "convary_error_text"):
        getattr(handle, name).restype = ctypes.c_char_p
    handle.convary_set_parallel_for.argtypes = [ctypes.c_void_p]
    handle.convary_set_parallel_for.restype = None
    handle.convary_mix_kernels_f32.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 3
    handle.convary_mixed_conv_f32.argtypes = [ctypes.c_void_p] * 9
    handle.convary_mixed_conv_grad_x_f32.argtypes = [ctypes.c_void_p] * 8
    handle.convary_mixed_conv_grad_blocks.argtypes = [ctypes.c_void_p] * 2
    handle.convary_mixed_conv_grad_bank_f32.argtypes = [ctypes.c_void_p] * 12
    handle.convary_route_f32.argtypes = [ctypes.c_void_p] * 13
    handle.convary_sample_conv_f32.argtypes = [ctypes.c_void_p] * 6
    handle.convary_sample_conv_grad_x_f32.argtypes = [ctypes.c_void_p] * 5
    handle.convary_sample_conv_grad_weight_f32.argtypes = [ctypes.c_void_p] * 5
    for name in ("convary_pixel_conv_f32", "convary_pixel_conv_grad_x_f32", "convary_pixel_conv_grad_weight_f32"):
        getattr(handle, name).argtypes = [ctypes.c_void_p] * 4
    names = handle.convary_isas().decode()
    picked = handle.convary_cpu_isa()
    if picked is None:
        return f"CONVARY_ISA={os.environ.get('CONVARY_ISA')} cannot run here; unset it or use one of {names}"
    handle.convary_set_parallel_for(parallel_for)
    return Library(
        isa=picked.decode(),
        isas=tuple(names.split(",")),
        mix_kernels=handle.convary_mix_kernels_f32,
        mixed_conv=handle.convary_mixed_conv_f32,
        mixed_conv_grad_x=handle.convary_mixed_conv_grad_x_f32,
        mixed_conv_grad_blocks=handle.convary_mixed_conv_grad_blocks,
        mixed_conv_grad_bank=handle.convary_mixed_conv_grad_bank_f32,
        route=handle.convary_route_f32,
        sample_conv=handle.convary_sample_conv_f32,
        sample_conv_grad_x=handle.convary_sample_conv_grad_x_f32,
        sample_conv_grad_weight=handle.convary_sample_conv_grad_weight_f32,
        pixel_conv=handle.convary_pixel_conv_f32,
        pixel_conv_grad_x=handle.convary_pixel_conv_grad_x_f32,
        pixel_conv_grad_weight=handle.convary_pixel_conv_grad_weight_f32,
        error_text=handle.convary_error_text,
    )


def _find() -> Path | str:
    """Where the library is, or why it is not there."""
    if named := os.environ.get("CONVARY_LIBRARY"):
        return Path(named) if Path(named).is_file() else f"CONVARY_LIBRARY={named} is not a file"
    if sys.platform not in _FILES:
        return f"there are no native kernels for {sys.platform}"
    # An editable install has two entries here: the sources and the folder that the library was installed to.
    folders = [Path(entry) / "lib" for entry in sys.modules[__name__.partition(".")[0]].__path__]
    for folder in folders:
        if (library := folder / _FILES[sys.platform]).is_file():
            return library
    for folder in folders:
        if (note := folder / "absent.txt").is_file():
            return f"convary was built without them: {note.read_text().strip()}; install a C++ compiler and reinstall"
    return "convary runs from a source tree where they were not built; install it with pip"


def _torch_parallel_for() -> int | str:
    """The address of ``torch_parallel_for`` (torch/csrc/stable/c/shim.h), or why there is none."""
    name = _TORCH_FILES[sys.platform]
    path = Path(torch.__path__[0]) / "lib" / name
    try:
        function = ctypes.CDLL(str(path) if path.is_file() else name).torch_parallel_for
    except OSError as error:
        return f"torch's {name} could not be opened: {error}"
    except AttributeError:
        return f"torch {torch.__version__} has no torch_parallel_for; torch 2.10 or later is needed"
    address = ctypes.cast(function, ctypes.c_void_p).value
    return address if address is not None else "torch_parallel_for has no address"
