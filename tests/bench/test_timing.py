"""Interleaved timing."""

import itertools
from collections.abc import Callable

import pytest

from convary.bench.timing import interleave


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
