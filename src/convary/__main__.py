# SPDX-License-Identifier: Apache-2.0
"""``python -m convary``: what launchers of several processes start."""

import sys

from convary.cli import main

if __name__ == "__main__":
    sys.exit(main())
