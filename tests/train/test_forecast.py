# SPDX-License-Identifier: Apache-2.0
"""The time that all trainings take: guessed, then measured."""

import dataclasses

import pytest

from convary._cli.watch import LivePage
from convary.data import load
from convary.train import Listeners, Progress, RunInfo, compare
from convary.train.forecast import Forecast, Work, _measuring, work

RUN = RunInfo(
    name="static", title="static", seed=0, trial=False, index=0, count=2, epochs=2, total_steps=100, start_step=0,
    params=1, layers=0,
)  # fmt: skip
WORK = Work(trainings=2, jobs=1, each=100, steps={"static": 100, "odconv": 100}, seconds={"static": 1.0, "odconv": 3.0})


class Clock:
    """Seconds that a test sets."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def forecast():
    """Of two trainings, by a clock that stands."""
    clock = Clock()
    return Forecast(WORK, clock), clock


def test_at_first_the_guess_counts(forecast):
    forecast, _ = forecast
    assert (WORK.total, forecast.left, forecast.part) == (400.0, 400.0, 0.0)
    assert dataclasses.replace(WORK, jobs=2).total == 200.0
    assert Forecast(dataclasses.replace(WORK, jobs=2), Clock()).left == 200.0


def test_then_what_was_done_counts(forecast):
    forecast, clock = forecast
    forecast.start(RUN)
    forecast.at(RUN, 100)
    clock.now += 50  # half of the guess
    assert forecast.left == pytest.approx(150.0) and forecast.part == 0.25
    odconv = dataclasses.replace(RUN, name="odconv", title="ODConv")
    forecast.start(odconv)
    forecast.at(odconv, 50)
    clock.now += 75
    assert forecast.left == pytest.approx(75.0)
    forecast.at(odconv, 100)
    assert (forecast.left, forecast.part) == (0.0, 1.0)


def test_what_was_resumed_is_not_counted_as_fast(forecast):
    forecast, clock = forecast
    forecast.start(dataclasses.replace(RUN, start_step=100))
    odconv = dataclasses.replace(RUN, name="odconv", title="ODConv")
    forecast.start(odconv)
    forecast.at(odconv, 50)
    clock.now += 150
    assert forecast.left == pytest.approx(150.0)
    assert forecast.part == (100 + 150) / 400


@pytest.mark.slow
def test_work_counts_every_step_of_a_comparison_and_a_page_follows(make):
    class Ear(Progress):
        work, steps = None, {}

        def on_work(self, work):
            self.work = work

        def on_start(self, run):
            self.steps[run.name] = self.steps.get(run.name, 0) + run.total_steps
            self.count = getattr(self, "count", 0) + 1

    ear, where = Ear(), "all & ~first"
    config = make(methods=("static", "dyconv"), model="convnet_nano", where=where, seeds=2, lr=(0.1, 0.05))
    page = config.out.with_name("live.html")
    compare(config, Listeners(ear, LivePage(config, page)))
    assert "<h2>Trainings</h2>" in page.read_text()
    assert ear.work.steps == ear.steps
    assert ear.work.trainings == ear.count == 2 * 2 + 2 * 2
    assert all(seconds > 0 for seconds in ear.work.seconds.values())


def test_a_batch_may_be_larger_than_the_data(make):
    config = make(batch_size=1000, model="convnet_nano")
    found = work(config, load(config.data, image_size=16), "cpu")
    assert found.steps == {"static": 2}
    assert found.measuring >= 3 * config.measure_seconds
    assert work(make(measure_seconds=0.0), load(config.data, image_size=16), "cpu").measuring == 0


def test_measuring_counts_the_calls_that_slow_networks_need_at_least():
    """A pair to warm up (more within 5 s) and three to time (nine within 5 s), and three steps for the memory.

    Static against itself and ODConv against static, by the training's batch and those of 1 and 16 images.
    """
    calls = {"static": (3.0, 1.6), "odconv": (6.0, 6.4)}  # seconds of a step and of a forward, both of 16 images
    static = (6.0 + 3 * 6.0) + 12 * 0.2 + (5.0 + 3 * 3.2) + 3 * 3.0
    odconv = (9.0 + 3 * 9.0) + (3 * 0.5 + 3.5) + (8.0 + 3 * 8.0) + 3 * 6.0
    assert _measuring(calls, 16, 0.001) == pytest.approx(static + odconv)
    fast = _measuring({"static": (1e-2, 1e-2)}, 16, 2.0)
    assert fast == pytest.approx(2 * 2.0 + 500 * 2e-2 / 16, rel=0.05), "the seconds, or the most pairs"
