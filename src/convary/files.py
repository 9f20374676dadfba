# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from convary.errors import ConvaryError

TEMPORARY = ".part"


def write_whole(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` at once: whoever reads it, and whenever power fails, it is old or new.

    Raises:
        ConvaryError: the folder is read-only, the disk is full, ...; ``path`` is what it was before.
    """
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
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


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
