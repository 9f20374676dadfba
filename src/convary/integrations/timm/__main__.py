# SPDX-License-Identifier: Apache-2.0
"""Run a script of timm, or anybody's, where the names are known: ``python -m convary.integrations.timm SCRIPT ...``."""

import runpy
import sys


def main() -> None:
    """Run the script named first, with the arguments after it."""
    if len(sys.argv) < 2:
        raise SystemExit("usage: python -m convary.integrations.timm SCRIPT [its arguments]")
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
