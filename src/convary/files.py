# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all, and read without running code."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from convary.errors import CheckpointError, ConvaryError

TEMPORARY = ".part"


def check_target(path: Path) -> None:
    """Say before the work is done that a file can't be put in the place of ``path``.

    Raises:
        ConvaryError: it is a folder or a device, or has no name.
    """
    with writing(path):
        if path.name and (path.is_file() or not path.exists()):
            return
        kind = "a folder" if path.is_dir() else "no ordinary file"
    raise ConvaryError(f"cannot write {path}: it is {kind}; name a file, which is replaced where there is one")


def write_whole(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` at once: whoever reads it, and whenever power fails, it is old or new.

    Raises:
        ConvaryError: the folder is read-only, the disk is full, ...; ``path`` is what it was before.
    """
    check_target(path)
    part = path.with_name(path.name + TEMPORARY)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        _sync(path.parent)


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """For writers that make several files: where to write ``path`` and what belongs beside it.

    They get to their places when the block ends; none does where it raises. The folder of ``path`` is made.

    Raises:
        ConvaryError: as ``write_whole``.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            yield Path(folder) / path.name
            for file in Path(folder).iterdir():
                _sync(file)
                os.replace(file, path.parent / file.name)
            _sync(path.parent)


def _sync(path: Path) -> None:
    """Have a file or a folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write of ``path`` into a ConvaryError that says what to do."""
    try:
        yield
    except OSError as error:
        raise ConvaryError(
            f"cannot write {path}: {error.strerror or error}; free some space or make the folder writable, "
            "or choose another folder with --out"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """``value`` as JSON, written whole."""
    write_whole(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path, wanted: Iterable[str] = ()) -> dict[str, Any]:
    """What :func:`write_json` wrote.

    Args:
        path: The file.
        wanted: Keys that it has.

    Raises:
        ConvaryError: it can't be read, or is something else.
    """
    try:
        content = json.loads(path.read_text())
        if missing := [key for key in wanted if key not in content]:
            raise ValueError(f"it has no {missing[0]!r}")
        return content
    except (OSError, ValueError, TypeError) as error:
        raise ConvaryError(f"{path} is not readable: {error}; delete it to measure again") from error


def read_tensors(path: Path, advice: str) -> Any:
    """The tensors and plain values of a file of ``torch.save``, on the CPU.

    Args:
        path: The file.
        advice: What to do where it can't be read, for the message.

    Raises:
        CheckpointError: a truncated file, one of something else, or a pickle that would run code: nothing is executed.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, LookupError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is truncated or no checkpoint, or holds more than weights; nothing in it was executed; {advice}"
        ) from error
