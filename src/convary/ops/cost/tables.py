# SPDX-License-Identifier: Apache-2.0
"""Which table of costs holds here: this machine's own, or the shipped one of its processor's or GPU's kind.

A table is a file of rates, seconds per amount, with the machine that they were fitted on. For a CPU: what ``convary
bench fit`` wrote here; ``avx512.json`` where the native kernels run that; ``avx2.json`` for all others. For a CUDA
device: what ``convary bench fit --device cuda`` wrote here for a device of this name; the shipped ``cuda-X.Y.json`` of
its compute capability; of the same X and the nearest Y; else none, and figures are nominal.
"""

from __future__ import annotations

import functools
import json
import warnings
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from convary.errors import ConvaryError
from convary.files import read_json
from convary.ops import native
from convary.ops.cost.times import device_name, own

Table = dict[str, Any]
CPU = ("machine", "torch", "native", "threads", "rates")
CUDA = ("machine", "torch", "capability", "rates")


@functools.cache
def fitted() -> Table:
    """What ``convary bench fit`` wrote, here or where shipped files come from: machine, torch, threads and rates."""
    if (table := _read(own("cost"), CPU)) is not None:
        return table
    wide = native.available() is None and native.isa().startswith("avx512")
    return json.loads(_shipped().joinpath("avx512.json" if wide else "avx2.json").read_text(encoding="utf-8"))


def is_foreign(table: Table) -> bool:
    """Whether a CPU's table was fitted with another instruction set than the native kernels' here."""
    return native.available() is None and table["native"][:4] != native.isa()[:4]  # avx512_bf16 has avx512's


@functools.cache
def fitted_on(device: str) -> Table | None:
    """What was fitted on a GPU such as this; None where no table is of its kind."""
    if not device.startswith("cuda") or (capability := capability_of(device)) is None:
        return None
    table = _read(own("cost-cuda"), CUDA)
    if table is not None and table["machine"] == device_name(device):
        return table
    major, minor = map(int, capability.split("."))
    found = {int(path.name[:-5].rpartition(".")[2]): path for path in _files() if _major(path) == major}
    if not found:
        return None
    nearest = found[min(found, key=lambda other: abs(other - minor))]
    return json.loads(nearest.read_text(encoding="utf-8"))


def capability_of(device: str) -> str | None:
    """A CUDA device's compute capability, for example "9.0"; None where torch sees no such device.

    AMD's GPUs, which torch calls CUDA devices too, count theirs otherwise.
    """
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return None
    return "{}.{}".format(*torch.cuda.get_device_capability(device))


def described(table: Table, device: str) -> str:
    """Where a GPU's table comes from, for ``explain``."""
    where = f"fitted on {table['machine']} (compute capability {table['capability']}), torch {table['torch']}"
    capability = capability_of(device)
    return where if capability == table["capability"] else f"{where}; this device has {capability}"


def _shipped() -> Any:
    return resources.files(__name__.rpartition(".")[0])


def _files() -> list[Any]:
    """The shipped tables of GPUs: ``cuda-9.0.json``."""
    return [path for path in _shipped().iterdir() if path.name.startswith("cuda-") and path.name.endswith(".json")]


def _major(path: Any) -> int:
    return int(path.name.removeprefix("cuda-").partition(".")[0])


def _read(path: Path, wanted: tuple[str, ...]) -> Table | None:
    if not path.is_file():
        return None
    try:
        return read_json(path, wanted=wanted)
    except ConvaryError as error:
        warnings.warn(f"the shipped costs are used: {error}", stacklevel=3)
        return None
