# SPDX-License-Identifier: Apache-2.0
"""Run the study, or some of its blocks; what is finished is only read, what was killed resumes.

    python -m studies.run --root DATA [--jobs 2] [--out runs/study] [BLOCK ...]

Each finished block leaves what docs/evidence.md needs of it in studies/results/BLOCK.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from convary.errors import ConvaryError, nearest
from convary.files import write_json
from convary.train import compare
from studies.blocks import BLOCKS

RESULTS = Path(__file__).parent / "results"
SCHEMA = 1


def slim(results: dict[str, Any], block: str) -> dict[str, Any]:
    """What the page needs of a results.json: settings, machine, and every arm with its seeds' last scores.

    Nothing in it names a folder of the machine: the command is the one that runs the block anywhere.
    """
    run = {name: value for name, value in results["run"].items() if name not in ("root", "out")}
    run["command"] = f"python -m studies.run {block}"
    if run.get("start"):
        run["start"] = Path(run["start"]).name
    return {
        "schema": SCHEMA,
        "run": run,
        "machine": results["machine"],
        "data": {name: results["data"][name] for name in ("name", "title", "train", "test", "shape")},
        "arms": [_arm(method) for method in results["methods"]],
    }


def _arm(method: dict[str, Any]) -> dict[str, Any]:
    ends = [seed["curve"][-1] for seed in method["seeds"]]
    return {
        **{name: method[name] for name in ("name", "title", "config", "params", "macs", "latency", "step", "lr")},
        "test_top1": [end["test_top1"] for end in ends],
        "train_top1": [round(end["train_top1"], 3) for end in ends],
        "cpu_seconds": [round(end["cpu_seconds"], 1) for end in ends],
    }


def main(argv: list[str]) -> int:
    """Run what is asked for, in the study's order."""
    parser = argparse.ArgumentParser(prog="python -m studies.run", description=__doc__.splitlines()[0])
    parser.add_argument("blocks", nargs="*", metavar="BLOCK", help=f"of {', '.join(b.name for b in BLOCKS)}; all")
    parser.add_argument("--root", type=Path, help="where CIFAR-10 lies; $CONVARY_DATA, or a folder in your cache")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    flags = parser.parse_args(argv)
    known = [block.name for block in BLOCKS]
    for name in flags.blocks:
        if name not in known:
            parser.error(f"no block {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    for block in BLOCKS:
        if flags.blocks and block.name not in flags.blocks:
            continue
        print(f"{block.name}: {block.question}", flush=True)
        try:
            results = compare(block.config(flags.out, flags.root, flags.jobs))
        except ConvaryError as error:
            print(f"studies.run: error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted; the state is saved, the same command resumes", file=sys.stderr)
            return 130
        write_json(RESULTS / f"{block.name}.json", slim(results, block.name))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
