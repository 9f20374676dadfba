# SPDX-License-Identifier: Apache-2.0
"""Rows of tables of speed, timed; the authors' code beside ours."""

import json
import sys

import pytest

from convary import cli
from convary.bench import rows, timing
from convary.errors import ConfigError
from convary.methods import ODConv
from convary.papers import Row, page, table

SMALL = "torchvision:mobilenet_v2@0.5"
STATIC = Row(name="static", title="", network=SMALL)
DYNAMIC = Row(name="odconv", title="", network=SMALL, method=ODConv(experts=1), released="od_small:kernel_num=1")
CHECKOUT = """
import convary
from convary.models import create
from modules.layer import EXTRA

def od_small(kernel_num):
    return convary.convert(create("torchvision:mobilenet_v2@0.5"), convary.ODConv(experts=kernel_num + EXTRA))
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(timing, "LEAST", 2)
    monkeypatch.setattr(timing, "WARM_UP", 1)
    monkeypatch.setattr(rows, "SIZE", 64)


def checkout(path, extra=0):
    for name, text in (("models", CHECKOUT), ("modules", "")):
        (path / name).mkdir()
        (path / name / "__init__.py").write_text(text)
    (path / "modules" / "layer.py").write_text(f"EXTRA = {extra}")
    return path


def test_a_dynamic_row_is_timed_against_the_static_network_and_the_released_code_too(tmp_path):
    sys.modules["models"] = before = type(sys)("models")
    try:
        found = rows.measure(DYNAMIC, seconds=0, released=checkout(tmp_path))
        assert sys.modules["models"] is before and "modules" not in sys.modules and str(tmp_path) not in sys.path
    finally:
        del sys.modules["models"]
    for timed in (found, found["released"]):
        for mode in rows.MODES:
            assert timed[mode]["ms"] > 0 and 0 < timed[mode]["low"] <= timed[mode]["ratio"] <= timed[mode]["high"]
    assert "ratio" not in rows.measure(STATIC, seconds=0)["inference"]


def test_a_checkout_of_something_else_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has no od_small in its package models"):
        rows.measure(DYNAMIC, seconds=0, released=tmp_path)
    with pytest.raises(ConfigError, match=r"parameters, and ours .* another network"):
        rows.measure(DYNAMIC, seconds=0, released=checkout(tmp_path, extra=1))


@pytest.mark.slow
def test_the_command_prints_what_it_measured(capsys):
    argv = ["reproduce", "condconv-speed", "--measure-seconds", "0.01", "--cpu", "--format"]
    assert cli.main([*argv, "text"]) == 0
    told = capsys.readouterr().out
    assert "8926" in told and "inference here" in told and "x (" in told
    assert cli.main([*argv, "json"]) == 0
    measured = [row["measured"] for row in json.loads(capsys.readouterr().out)["rows"]]
    assert measured[1]["training"]["ratio"] > 0 and measured[0]["batch"] == 1


def test_what_was_not_measured_is_not_printed():
    small = table("condconv-speed").select(("b0",))
    [record] = page.records(small)
    assert record["measured"] is None and "inference here" not in page.text(small, [record])
    record["measured"] = {"inference": {"ms": 7.0}, "training": {"ms": 9.0, "ratio": 1.5, "low": 1.4, "high": 1.6}}
    assert "9.0 ms, 1.50x (1.40 to 1.60)" in page.markdown(small, [record])
    assert "measured_training_ratio" in page.as_csv([record])
