# SPDX-License-Identifier: Apache-2.0
"""Write docs/tables.md: every published table beside ours. It takes minutes, because every network is counted.

python scripts/paper_tables.py
"""

from __future__ import annotations

from pathlib import Path

from convary.files import write_whole
from convary.train.reproduce import whole_page

PAGE = Path(__file__).parent.parent / "docs" / "tables.md"

if __name__ == "__main__":
    write_whole(PAGE, whole_page().encode())
