# SPDX-License-Identifier: Apache-2.0
"""Whether runs reached a score; ``make detection`` ends by it, with an error where one did not.

python -m scripts.reached mask_ap50 0.9 runs/detection runs/detection/static
"""

from __future__ import annotations

import sys
from pathlib import Path

from convary.errors import ConfigError
from convary.files import read_json
from convary.train.fit import RESULTS


def shortfalls(score: str, least: float, folders: list[Path]) -> list[str]:
    """What to say of each run whose score is not above ``least``.

    Raises:
        ConfigError: a run is not finished, or has no such score.
    """
    found = {}
    for folder in folders:
        if not (folder / RESULTS).exists():
            raise ConfigError(f"{folder} has no {RESULTS}; finish that run first")
        scores = read_json(folder / RESULTS)["scores"]
        if score not in scores:
            raise ConfigError(f"{folder} has no score {score!r}; it has {', '.join(scores)}")
        found[folder] = scores[score]
    return [
        f"{folder}: {score} {value:.4f}, wanted over {least:g}" for folder, value in found.items() if value <= least
    ]


if __name__ == "__main__":
    told = shortfalls(sys.argv[1], float(sys.argv[2]), [Path(folder) for folder in sys.argv[3:]])
    sys.exit("\n".join(told) or None)
