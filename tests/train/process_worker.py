# SPDX-License-Identifier: Apache-2.0
"""One of two processes of tests/train/test_processes.py: fits a line over gloo on the CPU.

Arguments: the step at which the second process alone hears Ctrl-C in the last run, or 0; and the folders of the runs.
In a run called "unread" the second process cannot read what it has in a step, unless "mended" lies in its folder.
"""

import os
import sys
from pathlib import Path

from torch import nn

from convary.errors import DataError
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


UNREAD = 5  # the step


class Unread(Straight):
    read = 0

    def item(self, index, rng):
        self.read += 1
        if self.read > (UNREAD - 1) * self.config.batch_size // 2 and os.environ.get("RANK") == "1":
            raise DataError("item.jpg is broken")
        return super().item(index, rng)


class UnreadConfig(StraightConfig):
    def load(self):
        return (Straight if (self.out / "mended").exists() else Unread)(self)


if __name__ == "__main__":
    stop, *before, last = sys.argv[1:]
    for folder in map(Path, before):
        kind = UnreadConfig if folder.name == "unread" else StraightConfig
        try:
            fit(kind(out=folder, cpu=True))
        except DataError as error:
            (folder / f"error{os.environ['RANK']}.txt").write_text(str(error))
    hears = stop != "0" and os.environ.get("RANK") == "1"
    try:
        fit(StraightConfig(out=Path(last), cpu=True), StopAt(int(stop)) if hears else Progress())
    except KeyboardInterrupt:
        sys.exit(130)
