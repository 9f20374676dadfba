# SPDX-License-Identifier: Apache-2.0
"""Files of this machine that processes share: measured times, and which file is its own."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch

from convary.errors import ConvaryError
from convary.files import staged
from convary.ops import native

SCHEMA = 1


def folder() -> Path:
    """Where measured times are kept: ``$CONVARY_CACHE``, or a folder in the user's cache."""
    return Path(os.environ.get("CONVARY_CACHE") or Path.home() / ".cache" / "convary")


@functools.cache
def processor() -> str:
    """The processor's name, from where Linux keeps it or what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@functools.cache
def device_name(device: str) -> str:
    """The name of what computes there: of the processor, or as the maker of an accelerator has it."""
    if device in ("cpu", "meta"):
        return processor()
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(name(device)) if name is not None else "no name"


@functools.cache
def circumstances() -> dict[str, str]:
    """What times hold for: with another processor, torch or convary they are measured anew."""
    try:
        own = metadata.version("convary")
    except metadata.PackageNotFoundError:
        own = "not installed"
    isa = native.isa() if native.available() is None else "no native kernels"
    return {"processor": processor(), "isa": isa, "torch": torch.__version__, "convary": own}


def own(stem: str) -> Path:
    """The file of that kind that holds for these circumstances: machines that share a home have one each."""
    digest = hashlib.sha256(json.dumps(circumstances()).encode()).hexdigest()[:8]
    return folder() / f"{stem}-{digest}.json"


class Times:
    """Seconds of a call by strategy, by problem; read once, written after each measurement.

    Attributes:
        path: The file.
        known: The times.
    """

    def __init__(self) -> None:
        self.path = own("autotune")
        self.known: dict[str, dict[str, float]] = self._read()
        self._writes = True

    def keep(self, key: str, times: Mapping[str, float]) -> None:
        """Remember the times of a problem, here and in the file, with those that other processes wrote meanwhile."""
        self.known[key] = dict(times)
        if not self._writes:
            return
        self.known = self._read() | self.known
        content = {"schema": SCHEMA, "circumstances": circumstances(), "times": self.known}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with staged(self.path) as file:
                file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except (ConvaryError, OSError) as error:
            self._writes = False
            warnings.warn(f"autotune keeps its times in memory only: {error}; set CONVARY_CACHE", stacklevel=2)

    def _read(self) -> dict[str, dict[str, float]]:
        """The file's times; none, with a warning, where it is damaged or another machine's."""
        if not self.path.is_file():
            return {}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if (content["schema"], content["circumstances"]) != (SCHEMA, circumstances()):
                raise ValueError("it is of other circumstances")
            return {str(key): _checked(times) for key, times in content["times"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            warnings.warn(f"autotune measures anew: {self.path} is not readable ({error})", stacklevel=2)
            self._remove()
            return {}

    def _remove(self) -> None:
        """So that the warning comes once."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError:
            self._writes = False


def _checked(times: Mapping[str, float]) -> dict[str, float]:
    checked = {str(name): float(seconds) for name, seconds in times.items()}
    if not checked or not all(math.isfinite(seconds) and seconds > 0 for seconds in checked.values()):
        raise ValueError("a time is no positive number")
    return checked
