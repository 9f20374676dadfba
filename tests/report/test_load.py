# SPDX-License-Identifier: Apache-2.0
"""Results are read from JSON, and refused by place where they break the schema."""

from __future__ import annotations

import copy
import json
import os

import pytest

from convary import report
from convary.errors import DataError


def test_load_reads_what_json_holds(synthetic, tmp_path):
    results = synthetic()
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert report.load(tmp_path / "results.json") == results


def test_load_names_a_file_that_is_no_json(tmp_path):
    (tmp_path / "results.json").write_text('{"schema": 1,')
    with pytest.raises(DataError, match=r"results\.json is not JSON"):
        report.load(tmp_path / "results.json")


def _remove(*keys):
    def change(results):
        inner = results
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]

    return change


def _set(value, *keys):
    def change(results):
        inner = results
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return change


BROKEN = [
    (_set(2, "schema"), "has schema 2, this convary reads schema 1"),
    (_remove("machine"), "'machine' is missing"),
    (_remove("methods", 2, "top1", "mean"), r"methods\[2\].top1: 'mean' is missing"),
    (_set("87", "methods", 0, "top1", "mean"), r"top1.mean is '87'; want a number"),
    (_set(True, "methods", 0, "params"), "params is True; want int"),
    (_set({}, "methods"), "methods is {}; want a list"),
    (_set([], "methods"), "methods is empty"),
    (_set([], "methods", 0, "seeds"), "has a seed without a curve"),
    (_set([[0.5, 0.5]], "methods", 1, "routing", 0, "by_class"), "want one row of equal length for each of the 10"),
    (_set([0.5, 0.2, 0.1, 0.1], "methods", 1, "correlation", "bands"), "want 4 fractions that sum to 1"),
    (_set("javascript:", "pictures", "0", "png"), "want a PNG in base64"),
    (_set([[0.5]], "methods", 1, "confusion"), r"confusion\[0\]\[0\] is 0.5; want int"),
    (_set(None, "methods", 1, "correlation"), "correlation is None; want an object"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_results_that_break_the_schema_are_refused_by_place(synthetic, tmp_path, change, message):
    results = copy.deepcopy(synthetic())
    change(results)
    with pytest.raises(DataError, match=message):
        report.write(results, tmp_path / "report.html")
    assert not os.listdir(tmp_path)
