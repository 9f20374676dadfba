# SPDX-License-Identifier: Apache-2.0
"""The choice by measurement: what is timed, kept, found again and left alone."""

import json
import time
import warnings
from dataclasses import replace

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import convary as cv
from convary import ops
from convary.ops import Coefficients, dispatch
from convary.ops.cost import measured
from convary.ops.dispatch import OPS

B, K, C, O, S = 2, 3, 4, 6, 5
CALLS = ("mixed_conv", "sample_conv", "sample_conv, index", "pixel_conv")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A folder of the test's own, and measurement on."""
    monkeypatch.setenv("CONVARY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measured, "_measured", 0)
    monkeypatch.setattr(measured, "SECONDS", 0.02)
    monkeypatch.setattr(dispatch, "_choices", {})
    measured._times.cache_clear()
    ops.autotune()
    yield tmp_path / "cache"
    ops.autotune(False)
    measured._times.cache_clear()


def call(name: str, **changes) -> torch.Tensor:
    """One call of an op on tensors that want gradients, some exchanged."""
    torch.manual_seed(0)
    kind = {"dtype": torch.float64, "requires_grad": True}
    tensors = {
        "mixed_conv": {"x": torch.randn(B, C, S, S, **kind), "bank": torch.randn(K, O, C, 3, 3, **kind),
                       "coeffs": Coefficients(kernel=torch.rand(B, K, **kind), tap=torch.rand(B, 1, 9, **kind))},
        "sample_conv": {"x": torch.randn(B, C, S, S, **kind), "weight": torch.randn(B, O, C, 3, 3, **kind)},
        "sample_conv, index": {"x": torch.randn(B, C, S, S, **kind), "weight": torch.randn(3, O, C, 3, 3, **kind),
                               "index": torch.tensor([1, 0, 1])},
        "pixel_conv": {"x": torch.randn(B, C, S, S, **kind), "weight": torch.randn(B, 2, 9, S, S, **kind),
                       "kernel_size": 3},
    }[name] | {"padding": 1} | changes  # fmt: skip
    return getattr(ops, name.split(",")[0])(**tensors)


def slow(monkeypatch, op: str, *quick: str, log: list | None = None) -> None:
    """Make all strategies of an op take a while but those named ``quick``; ``log`` gets the names that run."""
    for name, entry in list(OPS[op].strategies.items()):

        def run(*arguments, name=name, entry=entry):
            if log is not None:
                log.append(name)
            time.sleep(0 if name in quick else 0.01)
            return entry.run(*arguments)

        monkeypatch.setitem(OPS[op].strategies, name, replace(entry, run=run))


@pytest.mark.parametrize("name", CALLS)
def test_values_and_gradients_are_those_of_the_estimated_choice(name):
    def results() -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(B, C, S, S, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
        y = call(name, x=x)
        return y, *torch.autograd.grad((y**2).sum(), x)

    tuned = results()
    assert ops.tuned().measured == (name != "pixel_conv")  # which has one strategy for float64
    ops.autotune(False)
    torch.testing.assert_close(tuned, results())


@pytest.mark.parametrize("quick", ["grouped", "loop", "bmm"])
def test_the_fastest_runs_and_explain_says_so(quick, monkeypatch):
    log = []
    slow(monkeypatch, "mixed_conv", quick, log=log)
    for _ in range(2):
        call("mixed_conv", stride=2)
        assert log[-1] == quick
    count = len(log)
    call("mixed_conv", stride=2)
    assert log[count:] == [quick]  # nothing is timed again
    x, bank = torch.randn(B, C, S, S).double(), torch.randn(K, O, C, 3, 3).double().requires_grad_()
    coeffs = Coefficients(kernel=torch.rand(B, K).double(), tap=torch.rand(B, 1, 9).double())
    explained = ops.explain("mixed_conv", x, bank, coeffs, padding=1, stride=2)
    assert explained.chosen == quick
    assert "measured here" in str(explained)
    assert all(row.milliseconds > 10 for row in explained.rows if row.reason is None and row.strategy != quick)


def test_what_is_not_measured_yet_is_explained_as_estimated():
    x, bank, coeffs = torch.randn(B, C, S, S), torch.randn(K, O, C, 3, 3), Coefficients(kernel=torch.rand(B, K))
    assert "not measured yet, the first call will; estimated" in str(ops.explain("mixed_conv", x, bank, coeffs))
    assert ops.tuned().measured == 0  # a dry run
    ops.autotune(False)
    assert "not measured" not in str(ops.explain("mixed_conv", x, bank, coeffs))


def test_a_forced_strategy_stays_forced(monkeypatch):
    log = []
    slow(monkeypatch, "mixed_conv", "grouped", log=log)
    with ops.strategy("bmm"):
        call("mixed_conv")
    assert log == ["bmm"]
    assert ops.tuned().measured == 0


def test_a_later_process_finds_the_times(cache, monkeypatch):
    slow(monkeypatch, "sample_conv", "loop")
    call("sample_conv")
    (file,) = cache.glob("autotune-*.json")
    assert len(json.loads(file.read_text())["times"]) == 1
    measured._times.cache_clear()
    monkeypatch.setattr(measured, "_race", lambda *_: pytest.fail("it was measured again"))
    call("sample_conv")
    assert next(iter(ops.tuned().rows.values())).keys() >= {"loop", "grouped"}
    assert "1 shapes in" in str(ops.tuned())


def test_processes_share_a_file(cache):
    mine, other = measured.Times(), measured.Times()
    mine.keep("a", {"grouped": 1.0})
    other.keep("b", {"grouped": 2.0})
    assert measured.Times().known == {"a": {"grouped": 1.0}, "b": {"grouped": 2.0}} == other.known


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"schema": 1}', "other machine", "no number", "no strategy"])
def test_a_damaged_or_foreign_file_is_replaced_with_one_warning(damage, cache):
    call("pixel_conv")
    measured.Times().keep("a", {"grouped": 1.0})
    (file,) = cache.glob("autotune-*.json")
    content = json.loads(file.read_text())
    if damage == "other machine":
        content["circumstances"]["processor"] = "Z80"
    times = {"no number": {"grouped": None}, "no strategy": {}}.get(damage, {"grouped": 1.0})
    content["times"]["a"] = times
    file.write_text(json.dumps(content) if damage in ("other machine", "no number", "no strategy") else damage)
    with pytest.warns(UserWarning, match="measures anew") as caught:
        measured.Times().keep("b", {"grouped": 2.0})
    assert len(caught) == 1
    assert measured.Times().known == {"b": {"grouped": 2.0}}


def test_without_a_folder_to_write_to_times_stay_in_memory(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONVARY_CACHE", str(tmp_path / "file" / "below"))
    measured._times.cache_clear()
    with pytest.warns(UserWarning, match="in memory only"):
        call("mixed_conv")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        call("sample_conv")
    assert len(ops.tuned().rows) == 2


def test_a_strategy_that_raises_is_left_out_and_named(monkeypatch):
    def broken(*_):
        raise torch.OutOfMemoryError("out of memory")

    table = OPS["mixed_conv"].strategies
    monkeypatch.setitem(table, "grouped", replace(table["grouped"], run=broken))
    with pytest.warns(UserWarning, match="leaves out 'grouped'.*out of memory"):
        y = call("mixed_conv")
    assert torch.isfinite(y).all()
    assert "grouped" not in next(iter(ops.tuned().rows.values()))


def test_measuring_leaves_no_trace_in_the_callers_graph():
    x = torch.randn(B, C, S, S, requires_grad=True)
    bank = torch.nn.Parameter(torch.randn(K, O, C, 3, 3))
    seen = []
    bank.register_hook(lambda grad: seen.append(grad))
    y = ops.mixed_conv(x, bank, Coefficients(kernel=torch.rand(B, K)), padding=1)
    assert ops.tuned().measured == 1
    assert x.grad is None and bank.grad is None and not seen
    y.sum().backward()
    assert len(seen) == 1


def test_a_checkpoint_around_the_call_counts_its_own_tensors():
    x = torch.randn(B, C, S, S, requires_grad=True)
    bank, coeffs = torch.randn(K, O, C, 3, 3, requires_grad=True), Coefficients(kernel=torch.rand(B, K))
    y = checkpoint(lambda x: ops.mixed_conv(x, bank, coeffs), x, use_reentrant=False)
    y.sum().backward()
    assert ops.tuned().measured == 1
    ops.autotune(False)
    grad, bank.grad = bank.grad, None
    ops.mixed_conv(x, bank, coeffs).sum().backward()
    torch.testing.assert_close(bank.grad, grad)


def test_what_others_watch_or_transform_is_not_measured():
    x, weight = torch.randn(B, C, S, S), torch.randn(B, O, C, 3, 3)
    with FlopCounterMode(display=False) as counter:
        ops.sample_conv(x, weight)
    assert counter.get_total_flops() == 2 * B * O * C * 9 * (S - 2) ** 2
    torch.func.vmap(lambda x: ops.sample_conv(x, weight))(torch.randn(3, *x.shape))
    torch.func.jvp(lambda x: ops.sample_conv(x, weight), (x,), (x,))
    assert ops.tuned().measured == 0
    ops.sample_conv(x, weight)
    assert ops.tuned().measured == 1


def test_tensors_without_numbers_of_their_own_are_not_measured():
    """Plans and summaries run on the meta device, exporters on fake tensors: both go on, and leave no times."""
    layer = cv.CondConv2d(4, 6, 3).eval()
    plan = cv.plan(
        torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3)), cv.ODConv(), where=cv.where.all(), example=(1, 4, 9, 9)
    )
    assert cv.summary(plan.apply().to("meta"), torch.randn(1, 4, 9, 9, device="meta")).macs > 0
    assert layer.to("meta")(torch.randn(2, 4, 9, 9, device="meta")).shape == (2, 6, 7, 7)
    with FakeTensorMode():
        layer, x = cv.CondConv2d(4, 6, 3), torch.randn(2, 4, 9, 9)
    assert layer(x).shape == (2, 6, 7, 7)  # outside the mode, which would be seen
    assert ops.tuned().measured == 0


def test_nothing_to_compute_is_not_measured():
    call("sample_conv", x=torch.randn(0, C, S, S), weight=torch.randn(0, O, C, 3, 3))
    assert ops.tuned().measured == 0


def test_bfloat16_features_with_and_without_autocast_are_measured_apart():
    x, weight = torch.randn(B, C, S, S).bfloat16(), torch.randn(B, O, C, 3, 3).bfloat16()
    ops.sample_conv(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        ops.sample_conv(x, weight.float())
    assert ops.tuned().measured == 2


@pytest.mark.parametrize("change", ["threads", "channels_last", "dtype", "autocast", "no_grad"])
def test_what_a_time_depends_on_is_measured_apart(change):
    x, weight = torch.randn(B, C, S, S), torch.randn(B, O, C, 3, 3, requires_grad=True)
    ops.sample_conv(x, weight)
    threads = torch.get_num_threads()
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"),
        torch.set_grad_enabled(change != "no_grad"),
    ):
        if change == "threads":
            torch.set_num_threads(threads + 1)
        if change == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        kind = torch.float64 if change == "dtype" else torch.float32
        try:
            ops.sample_conv(x.to(kind), weight.to(kind))
        finally:
            torch.set_num_threads(threads)
    assert ops.tuned().measured == 2


def test_ever_new_shapes_are_measured_so_many_times_and_no_more(monkeypatch):
    monkeypatch.setattr(measured, "MOST_SHAPES", 2)
    for size in range(5, 9):
        call("mixed_conv", x=torch.randn(B, C, size, size).double())
    assert ops.tuned().measured == 2


def test_prepared_inference_obeys(monkeypatch):
    """A layer that has prepared its native calls goes another way once that was measured to be faster."""
    log = []
    slow(monkeypatch, "mixed_conv", "grouped", log=log)
    layer, x = cv.CondConv2d(8, 8, 3, experts=4).eval(), torch.randn(1, 8, 9, 9)
    with torch.no_grad():
        for _ in range(4):
            layer(x)
        assert log[-1] == "grouped"
        count = len(log)
        layer(x)
        assert log[count:] == ["grouped"]
        ops.autotune(False)
        for _ in range(3):
            layer(x)
        assert "grouped" not in log[count + 1 :]


def test_off_by_default_and_turned_on_by_the_environment(monkeypatch):
    assert [measured.wanted(value) for value in (None, "", "0", "No", "1")] == [False, False, False, False, True]


def test_no_warning_where_all_is_well():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in CALLS:
            call(name)
