# SPDX-License-Identifier: Apache-2.0
"""One of two processes of tests/train/test_processes.py: fits a line over gloo on the CPU.

Arguments: the step at which the second process alone hears Ctrl-C in the last run, or 0; and the folders of the runs.
"""

import os
import sys
from pathlib import Path

from torch import nn

from convary.train import Progress
from convary.train.fit import fit
from tests.train.line import Line, LineConfig, StopAt


class Straight(Line):
    def model(self):  # without dropout, whose numbers differ from process to process
        return nn.Sequential(nn.Identity(), nn.Linear(1, 1))


class StraightConfig(LineConfig):
    name = "straight"

    def load(self):
        return Straight(self)


if __name__ == "__main__":
    stop, *before, last = sys.argv[1:]
    for folder in before:
        fit(StraightConfig(out=Path(folder), cpu=True))
    hears = stop != "0" and os.environ.get("RANK") == "1"
    try:
        fit(StraightConfig(out=Path(last), cpu=True), StopAt(int(stop)) if hears else Progress())
    except KeyboardInterrupt:
        sys.exit(130)
