# SPDX-License-Identifier: Apache-2.0
"""How tests call the program in a process of its own, and read what it says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import convary

SOURCE = Path(convary.__file__).parents[1]


def command_line(*argv):
    return [sys.executable, "-m", "convary.cli", *map(str, argv)]


def environment():
    return os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}


def one_line(err):
    """The single line of an error, without its end."""
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err.rstrip("\n")
