# SPDX-License-Identifier: Apache-2.0
"""Programs that know static convolutions only, and the module of ours that tells them about dynamic ones.

A host such as Ultralytics folds normalisations by formulas for ``nn.Conv2d``, and unpickles a trained network without a
call of ours. So it is told when the first dynamic layer is made or unpickled beside it: a process that has no dynamic
layer, or no such host, is left alone.
"""

from __future__ import annotations

import importlib
import sys

_expected: dict[str, str] = {}


def expect(host: str, module: str) -> None:
    """Once a dynamic layer meets the module ``host`` in a process, call ``attend()`` of ``module``, one time."""
    _expected[host] = module


def attend() -> None:
    """Called for every dynamic layer that is made or unpickled; looks for hosts that have not been told yet."""
    for host in [host for host in _expected if host in sys.modules]:
        importlib.import_module(_expected.pop(host)).attend()
