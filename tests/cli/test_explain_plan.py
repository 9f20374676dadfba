# SPDX-License-Identifier: Apache-2.0
"""``explain`` and ``plan``, and the selectors of ``--where``."""

from __future__ import annotations

import pytest

import convary
from convary import ops
from convary.errors import ConfigError
from convary.ops.cost import measured
from convary.selector import SELECTORS, selector


@pytest.mark.parametrize("op", ["mixed_conv", "sample_conv", "pixel_conv"])
@pytest.mark.parametrize("rest", ["", "--size 20 --training", "--size 9 8 7 --groups 2 --stride 2"])
def test_explain_takes_every_op(run, op, rest):
    code, out, _ = run(
        "explain", "--op", op, "--batch", "2", "--in-channels", "8", "--out-channels", "8", *rest.split()
    )
    assert code == 0
    assert out.startswith(f"{op}: B=2 C=8 O=8") and "> " in out


def test_explain_measures_when_asked(run, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVARY_CACHE", str(tmp_path))
    measured._times.cache_clear()
    try:
        code, out, _ = run("explain", "--measure", "--batch", "1", "--in-channels", "8", "--size", "9", "9")
    finally:
        ops.autotune(False)
        measured._times.cache_clear()
    assert code == 0
    assert f"measured here, {tmp_path}" in out


def test_explain_prints_a_row_for_each_strategy(run):
    code, out, _ = run("explain", "--batch", 2, "--in-channels", 8, "--out-channels", 8, "--size", 12, "--training")
    assert code == 0
    assert all(name in out for name in ("grouped", "loop", "outputs", "bmm", "chosen", "forward and backward"))
    assert "S=(12,)" in out


def test_explain_shows_the_choice_first(run):
    rows = run("explain", "--op", "sample_conv", "--batch", 2)[1].splitlines()[2:]
    assert rows[0].startswith("> ") and not any(row.startswith("> ") for row in rows[1:])


def test_explain_of_one_kernel_per_sample(run):
    code, out, _ = run("explain", "--op", "sample_conv", "--groups", 64)
    assert code == 0
    assert "sample_conv" in out


def test_plan_prints_every_layer(run):
    code, out, _ = run(
        "plan", "--model", "resnet20", "--method", "odconv", "--where", "name('layer3.*')", "--experts", 2
    )
    assert code == 0
    assert "layer3.* (5 layers)" in out and "layer3.0.conv1" in out
    assert "6 of 20 layers become ODConv (ODConv(experts=2" in out


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("all & ~first", "(all() & ~first())"),
        ("all() | classifier", "(all() | classifier())"),
        ("kernel_size((3, 1))", "kernel_size((3, 1))"),
        ("name('a.*', 'b') & type(Conv2d)", "(name('a.*', 'b') & type(Conv2d))"),
        ("paper", "paper(ODConv)"),
    ],
)
def test_selectors_read_as_in_python(text, label):
    assert repr(selector(text, convary.ODConv())) == label


@pytest.mark.parametrize(
    "text", ["", "all &", "all + first", "all.first", "__import__('os')", "kernel_size()", "name(x)", "where=1", "1"]
)
def test_selectors_run_no_python(text):
    with pytest.raises(ConfigError, match="--where"):
        selector(text, convary.ODConv())


def test_all_public_selectors_can_be_written():
    public = {name for name, value in vars(convary.where).items() if callable(value) and name in convary.where.__dict__}
    assert set(SELECTORS) <= public
    assert {"all", "first", "last", "kernel_size", "depthwise", "name", "type", "paper"} <= set(SELECTORS)


def test_plan_counts_the_classes_that_the_authors_chose(run):
    code, out, _ = run("plan", "--model", "torchvision:resnet18", "--method", "odconv")
    assert code == 0 and "11,689,512 -> 44,901,640" in out
    assert (
        "11,181,642 -> 44,393,770" in run(*"plan --model torchvision:resnet18 --method odconv --classes 10".split())[1]
    )
