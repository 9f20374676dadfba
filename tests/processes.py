# SPDX-License-Identifier: Apache-2.0
"""A new interpreter, for what a process can do once only, or must not survive."""

import os
import subprocess
import sys


def python(code: str, **environment: str) -> str:
    """Run ``code`` in a new interpreter, where the library is loaded afresh; what it printed."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()
