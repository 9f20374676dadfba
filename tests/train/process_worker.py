# SPDX-License-Identifier: Apache-2.0
"""One of two processes of tests/train/test_processes.py: fits a line over gloo on the CPU.

Arguments: the folder of the run, and the step at which the second process alone hears Ctrl-C, or 0.
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
    stop = int(sys.argv[2]) if os.environ.get("RANK") == "1" else 0
    try:
        fit(StraightConfig(out=Path(sys.argv[1]), cpu=True), StopAt(stop) if stop else Progress())
    except KeyboardInterrupt:
        sys.exit(130)
