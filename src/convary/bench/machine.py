# SPDX-License-Identifier: Apache-2.0
"""What a figure was measured on."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from convary.ops import native
from convary.ops.cost.times import device_name, processor


def machine(device: str = "cpu") -> dict[str, object]:
    """The machine, the versions and the device that computes, as plain JSON values."""
    try:
        own = metadata.version("convary")
    except metadata.PackageNotFoundError:
        own = "not installed"
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": processor(),
        "device": device_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(pages / 2**30, 1),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "convary": own,
        "commit": _commit(),
        "code": code(),
        "native": native.available() or native.isa(),
    }


def load() -> float:
    """Processes that wanted to run in the last minute, ours included: above the threads in use, figures are noise."""
    return round(os.getloadavg()[0], 1)


def code() -> str:
    """What tells this code from another: a digest of the package's own Python files."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _commit() -> str | None:
    """The commit of this code, with ``-dirty`` where files are changed; None where the code is in no repository."""
    here = Path(__file__)

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", here.parent, *words], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", here.name) is None:
        return None
    return git("describe", "--always", "--dirty", "--exclude=*", "--abbrev=40")
