"""Interleaved timing."""

import itertools
import os
import time
from collections.abc import Callable

import pytest
import torch

from convary.bench import timing
from convary.bench.timing import duration, fitting_clock, interleave, one_thread


def test_ratio_of_interleaved_calls():
    now = [0.0]

    def work(*seconds: float) -> Callable[[], None]:
        """What takes so long by the clock, one call after the other."""
        turns = itertools.cycle(seconds)

        def call() -> None:
            now[0] += next(turns)

        return call

    timing = interleave(work(0.003, 0.004, 0.005), work(0.002), seconds=0, clock=lambda: now[0])
    assert timing.pairs == 9
    assert timing.ms == pytest.approx(4) and timing.base_ms == pytest.approx(2)
    assert (timing.low, timing.ratio, timing.high) == pytest.approx((1.5, 2.0, 2.5))


def test_calls_alternate_who_is_first():
    calls = []
    interleave(lambda: calls.append("ours"), lambda: calls.append("static"), seconds=0)
    assert calls[6:] == ["ours", "static", "static", "ours"] * 4 + ["ours", "static"]


@pytest.mark.parametrize(("call", "warm_up", "pairs"), [(0.001, 3, 9), (0.4, 3, 4), (0.9, 3, 3), (10.0, 1, 3)])
def test_slow_calls_are_timed_in_fewer_pairs(monkeypatch, call, warm_up, pairs):
    """By a clock of its own: nine pairs where they fit into the patience, three where nothing does."""
    now, calls = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def work():
        calls.append(call)
        now[0] += call

    found = interleave(work, work, seconds=0.0, clock=lambda: now[0], patience=5.0)
    assert (found.pairs, len(calls)) == (pairs, 2 * (warm_up + pairs))
    assert duration(2 * call, 0.0, 5.0) == pytest.approx(now[0], rel=0.15)
    calls.clear()
    assert interleave(work, work, seconds=0.0, clock=lambda: now[0]).pairs == 9 and len(calls) == 24


def test_one_thread_of_a_cpu_is_timed_by_what_it_computed():
    before = torch.get_num_threads()
    alone = time.process_time if os.name == "posix" else time.perf_counter
    with one_thread():
        assert fitting_clock(torch.device("cpu")) is alone
        assert fitting_clock(torch.device("cuda")) is time.perf_counter
        torch.set_num_threads(2)
        assert fitting_clock(torch.device("cpu")) is time.perf_counter
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before
