# SPDX-License-Identifier: Apache-2.0
"""What a terminal and an open page show while a comparison trains."""

import dataclasses
import io
import re

import pytest
from rich.console import Console

from convary._cli.progress import LiveProgress
from convary._cli.watch import LivePage
from convary.report import live
from convary.train import CompareConfig, Listeners, Progress, RunInfo, StepInfo
from convary.train.forecast import Work

RUN = RunInfo(
    name="odconv", title="ODConv (experts=2)", seed=0, trial=False, index=0, count=2, epochs=4, total_steps=100,
    start_step=0, params=12_345, layers=17,
)  # fmt: skip
WORK = Work(trainings=2, jobs=1, each=100, steps={"odconv": 200}, seconds={"odconv": 60.0})
STEP = StepInfo(step=50, losses={"loss": 1.2345, "top1": 87.65}, lr=0.01, temperature=28.9)
POINT = {
    "step": 50,
    "losses": {"loss": 1.2, "top1": 50.0},
    "scores": {"top1": 61.5, "loss": 1.1},
    "temperature": 2.0,
    "observed": {"experts": {"conv": [0.25, 0.75]}},
}


def terminal(width):
    """Lines of a terminal of this width, without its colours."""
    console = Console(width=width, force_terminal=True, file=io.StringIO(), color_system=None, legacy_windows=False)
    with LiveProgress(console) as bars:
        bars.on_work(WORK)
        bars.on_start(RUN)
        bars.on_step(RUN, STEP)
        bars.bars.refresh()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    return [line.strip("\r").rstrip() for line in plain.splitlines()]


@pytest.mark.parametrize("width", [60, 80, 110, 160])
def test_the_time_left_is_the_last_to_go(width):
    rows = [line for line in terminal(width) if "ODConv (experts=2), seed 0" in line or "all 2 trainings" in line]
    assert len(rows) >= 2
    assert all(re.search(r"(\d:\d\d|-:--)$", row) and len(row) <= width for row in rows), rows
    assert any(re.search(r"all 2 trainings.* \d:\d\d:\d\d$", row) for row in rows), "hours are there whole"
    assert any("epoch 2/4" in row for row in rows)


def test_how_much_there_is_and_how_long_it_takes_is_said_at_the_start():
    file = io.StringIO()
    with LiveProgress(Console(file=file, width=110)) as bars:
        bars.on_work(WORK)
        bars.on_work(dataclasses.replace(WORK, measuring=75.0))
        bars.on_work(dataclasses.replace(WORK, trainings=1, each=2))
        bars.on_work(dataclasses.replace(WORK, images=10, unused=2))
        bars.on_work(dataclasses.replace(WORK, images=1000, unused=20))
    first, second, short, doubt, third, rest, fourth = file.getvalue().splitlines()
    assert third == first == fourth and rest.startswith(
        "An epoch leaves out 2 of 10 images, others each time: a --batch"
    )
    assert short == "1 training of 2 steps, about 3 h 20 min"
    assert doubt.startswith("Only 2 training steps: little or nothing will be learnt; use more --epochs or a smaller")
    assert first == "2 trainings of 100 steps each, about 3 h 20 min"
    assert second == f"{first}; measuring and the report take about 1 min 15 s more"


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A live page that is written whenever there is something new, and its path."""
    monkeypatch.setattr("convary._cli.watch.SECONDS", 0.0)
    monkeypatch.setattr("convary._cli.watch.SHARE", 0.0)
    path = tmp_path / "report.html"
    return LivePage(CompareConfig(methods=("static", "odconv"), out=tmp_path), path), path


def test_the_page_shows_what_is_known_and_reloads_itself(page):
    page, path = page
    page.on_work(WORK)
    page.on_start(RUN)
    page.on_step(RUN, STEP)
    page.on_point(RUN, POINT)
    page.on_point(RUN, {**POINT, "step": 75})
    html = path.read_text()
    assert '<meta http-equiv="refresh" content="4">' in html
    assert "0 of 2 trainings are done; about" in html
    assert "ODConv (experts=2), test top-1 61.50 % after epoch 3" in html
    assert "expert 2 of conv of ODConv (experts=2): 75 % after epoch 2" in html
    page.on_end(RUN, POINT)
    page.on_measure("odconv", "latency", 0, 1)
    assert "Everything is trained; measuring latency of odconv, network 1 of 1." in path.read_text()


def test_an_interrupted_page_reloads_no_more(page):
    page, path = page

    def interrupted():
        with page:
            page.on_start(dataclasses.replace(RUN, start_step=50))
            page.on_resume(RUN, [POINT])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    html = path.read_text()
    assert 'http-equiv="refresh"' not in html
    assert "61.50" in html and "<span>compare</span>" in html


def test_a_page_is_not_written_more_often_than_every_few_seconds(page, monkeypatch):
    page, _ = page
    monkeypatch.setattr("convary._cli.watch.SECONDS", 60.0)
    written = []
    monkeypatch.setattr(live, "write", lambda content, path: written.append(content))
    page.on_start(RUN)
    page.on_point(RUN, POINT)
    assert len(written) == 1


def test_watching_is_no_part_of_what_a_run_is():
    assert CompareConfig(watch=True).identity() == CompareConfig().identity()
    assert "--watch" in CompareConfig(watch=True).command()


def test_listeners_all_hear_everything():
    heard = []

    class Ear(Progress):
        def on_step(self, run, step):
            heard.append(step)

    both = Listeners(Ear(), Ear())
    both.on_step(RUN, STEP)
    both.on_measure("odconv", "latency", index=0, count=1)
    assert heard == [STEP, STEP]
