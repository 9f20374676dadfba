"""Interleaved timing."""

import contextlib
import itertools
import math
import os
import time
from collections.abc import Callable

import pytest
import torch

from convary.bench import timing
from convary.bench.timing import DeviceClock, clock_of, device_here, duration, fitting_clock, interleave, one_thread
from convary.errors import ConfigError


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
        assert isinstance(fitting_clock(torch.device("cuda")), DeviceClock)
        torch.set_num_threads(2)
        assert fitting_clock(torch.device("cpu")) is time.perf_counter
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


class Stream:
    """A CUDA device of a test: calls return at once, and what they launched is computed when somebody waits."""

    def __init__(self, monkeypatch):
        self.host = self.done = 0.0
        self.waits = 0
        stream = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = max(stream.host, stream.done)

            def synchronize(self):
                stream.waits += 1
                stream.host = max(stream.host, self.at)

            def elapsed_time(self, other):
                return 1e3 * (other.at - self.at)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.host)

    def synchronize(self, device=None):
        self.host = max(self.host, self.done)

    def launches(self, host: float, device: float):
        def call():
            self.host += host
            self.done = max(self.host, self.done) + device

        return call


def test_calls_on_a_gpu_are_timed_by_its_events_and_warmed_up(monkeypatch):
    stream = Stream(monkeypatch)
    clock = clock_of(torch.device("cuda", 0))
    found = interleave(stream.launches(0.001, 0.005), stream.launches(0.001, 0.002), seconds=0.0, clock=clock)
    # The host's millisecond counts, for a small network is no faster than its launches; a wall's clock alone would
    # see it and nothing else.
    assert (found.ms, found.base_ms, found.ratio) == pytest.approx((6.0, 3.0, 2.0))
    assert found.pairs == 9
    assert stream.waits == 2 * (9 + math.ceil(timing.DEVICE_WARM_UP / 0.009))


def test_a_device_that_is_not_there_is_one_error(monkeypatch):
    assert device_here("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"no device 'cuda' here, torch .* sees none; use --device cpu"):
        device_here("cuda")
    with pytest.raises(ConfigError, match="knows no device 'gpu' to compute on; use cpu or cuda"):
        device_here("gpu")
    with pytest.raises(ConfigError, match="knows no device 'meta'"):
        device_here("meta")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert (device_here("cuda"), device_here("cuda:0")) == (torch.device("cuda", 1), torch.device("cuda", 0))
    with pytest.raises(ConfigError, match="'cuda:2' here, torch .* sees 2 of that kind"):
        device_here("cuda:2")
