# SPDX-License-Identifier: Apache-2.0
"""The native library (csrc/): found next to the package, checked by its ABI version, threaded by torch's own pool.

A torch older than 2.10 does not give its pool away: the kernels then run on the thread that calls them.

``CONVARY_LIBRARY`` names another build of the library (for example one with sanitizers); ``CONVARY_ISA`` forces a lower
instruction set than the CPU's best (``baseline``, ``avx2``, ``avx512``, ``avx512_bf16``, ``neon``). Both are read once,
at first use.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from convary.errors import ConvaryError

ABI_VERSION = 8
_FILES = {"linux": "libconvary.so", "darwin": "libconvary.so", "win32": "libconvary.dll"}
_TORCH_FILES = {"linux": "libtorch_cpu.so", "darwin": "libtorch_cpu.dylib", "win32": "torch_cpu.dll"}

# Entries and how many pointers each takes (csrc/convary.h); ``mix_kernels`` takes three numbers besides.
_POINTERS = {
    "mix_kernels_f32": 3,
    "mixed_conv": 9, "mixed_conv_grad_x": 8, "mixed_conv_grad_blocks": 2, "mixed_conv_grad_bank": 12,
    "sample_conv": 6, "sample_conv_grad_x": 5, "sample_conv_grad_weight": 5,
    "pixel_conv_f32": 4, "pixel_conv_grad_x_f32": 4, "pixel_conv_grad_weight_f32": 4,
    "route": 13,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Library:
    """The loaded library.

    Attributes:
        path: Its file.
        isa: The instruction set that it picked.
        isas: Those that it could have picked.
        entries: Its functions by their names in C, without ``convary_`` and ``_f32``; each answers an error code.
        error_text: What a code means.
        alone: Why it runs on the calling thread alone, or None where it has torch's threads.
    """

    path: str
    isa: str
    isas: tuple[str, ...]
    entries: Mapping[str, Callable[..., int]]
    error_text: Callable[[int], bytes]
    alone: str | None


def available() -> str | None:
    """None where the native kernels can run, else the reason why they cannot."""
    library = _load()
    return library if isinstance(library, str) else None


def alone() -> str | None:
    """Why the kernels run on the calling thread alone; None where they have torch's threads, or are absent."""
    library = _load()
    return None if isinstance(library, str) else library.alone


def threads() -> int:
    """How many threads the kernels run on."""
    return torch.get_num_threads() if alone() is None else 1


def slowdown() -> int:
    """How many times as many threads torch's operations run on."""
    return 1 if alone() is None else torch.get_num_threads()


def shortcoming() -> str | None:
    """That the kernels are absent or have fewer threads than torch, and why; None where all is well."""
    if (reason := available()) is not None:
        return f"convary's native kernels are absent, and torch's slower operations take their place: {reason}"
    return f"convary's native kernels run on one thread: {alone()}" if slowdown() > 1 else None


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
    return _bind(path, handle, _torch_parallel_for())


def _bind(path: Path, handle: ctypes.CDLL, parallel_for: int | str) -> Library | str:
    """Declare the C signatures (csrc/convary.h) and hand over torch's threads, if there is a way to them."""
    for name in ("convary_cpu_isa", "convary_isas", "convary_error_text"):
        getattr(handle, name).restype = ctypes.c_char_p
    handle.convary_set_parallel_for.argtypes = [ctypes.c_void_p]
    handle.convary_set_parallel_for.restype = None
    entries = {}
    for name, pointers in _POINTERS.items():
        entry = entries[name.removesuffix("_f32")] = getattr(handle, f"convary_{name}")
        entry.argtypes = [ctypes.c_void_p] * pointers
    entries["mix_kernels"].argtypes += [ctypes.c_int64] * 3
    names = handle.convary_isas().decode()
    picked = handle.convary_cpu_isa()
    if picked is None:
        return f"CONVARY_ISA={os.environ.get('CONVARY_ISA')} cannot run here; unset it or use one of {names}"
    alone = parallel_for if isinstance(parallel_for, str) else None
    handle.convary_set_parallel_for(None if alone else parallel_for)
    return Library(
        path=str(path),
        isa=picked.decode(),
        isas=tuple(names.split(",")),
        entries=entries,
        error_text=handle.convary_error_text,
        alone=alone,
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
    return "convary runs from a source tree where they were not built; run pip install . there"


def _torch_parallel_for() -> int | str:
    """The address of ``torch_parallel_for`` (torch/csrc/stable/c/shim.h), or why there is none."""
    name = _TORCH_FILES[sys.platform]
    path = Path(torch.__path__[0]) / "lib" / name
    try:
        function = ctypes.CDLL(str(path) if path.is_file() else name).torch_parallel_for
    except OSError as error:
        return f"torch's {name} could not be opened: {error}"
    except AttributeError:
        return f"torch {torch.__version__} does not share its threads; torch 2.10 or later does"
    address = ctypes.cast(function, ctypes.c_void_p).value
    return address if address is not None else "torch_parallel_for has no address"
