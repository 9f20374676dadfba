"""Interleaved timing."""

import time

import pytest

from convary.bench.timing import interleave


def test_ratio_of_interleaved_calls():
    timing = interleave(lambda: time.sleep(0.004), lambda: time.sleep(0.002), seconds=0.3)
    assert timing.ms == pytest.approx(4, rel=0.3)
    assert 1.5 < timing.ratio < 2.5
    assert timing.low <= timing.ratio <= timing.high


def test_calls_alternate_who_is_first():
    calls = []
    interleave(lambda: calls.append("ours"), lambda: calls.append("static"), seconds=0)
    assert calls[6:] == ["ours", "static", "static", "ours"] * 4 + ["ours", "static"]
