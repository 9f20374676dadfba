# SPDX-License-Identifier: Apache-2.0
"""One of two processes of tests/train/test_processes.py: trains systems by the command, one after the other.

Arguments: a folder, and the names. Writes rank0.json or rank1.json there: of each name what went wrong, or "".
"""

import json
import os
import sys
import traceback
from pathlib import Path

from convary.cli import main

if __name__ == "__main__":
    folder, wrong = Path(sys.argv[1]), {}
    for name in sys.argv[2:]:
        options = ["--out", str(folder / name), "--steps", "3", "--batch-size", "2", "--cpu", "--threads", "1"]
        try:
            code = main(["train", name, *options])
            wrong[name] = "" if code == 0 else f"exit code {code}"
        except Exception:
            wrong[name] = traceback.format_exc()
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(wrong))
