# SPDX-License-Identifier: Apache-2.0
"""Runs scripts as ``python SCRIPT`` does, each in a fork of this process, which has imported torch and nothing of ours.

Arguments: a folder to run them in, and the scripts. Prints JSON: of each its exit code and what it wrote.
"""

import json
import os
import runpy
import sys
from pathlib import Path

import torch  # noqa: F401  (the two seconds that are not paid again)


def run(script: str, folder: Path) -> None:
    """In the fork: everything goes to a file; leaves with the script's exit code."""
    with (folder / "said.txt").open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    os.chdir(folder)
    sys.argv, sys.path[0] = [script], os.path.dirname(script)
    runpy.run_path(script, run_name="__main__")
    sys.exit(0)


def main() -> None:
    """One script after the other."""
    place, *scripts = sys.argv[1:]
    outcomes = {}
    for number, script in enumerate(scripts):
        folder = Path(place) / str(number)
        folder.mkdir()
        process = os.fork()
        if process == 0:
            run(script, folder)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        outcomes[script] = (code, (folder / "said.txt").read_text(errors="replace"))
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
