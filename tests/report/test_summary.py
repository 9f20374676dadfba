# SPDX-License-Identifier: Apache-2.0
"""The summary calls a difference only what the seeds and the test images show."""

from __future__ import annotations

import pytest

from convary.report import noise, page, tables


def gaps(low, mean, high, wins):
    return {"gaps": [mean] * 5, "mean": mean, "std": 1.0, "low": low, "high": high, "wins": wins}


def test_summary_of_one_seed_ranks_nothing(synthetic):
    results = synthetic(methods=("static", "odconv"))
    results["methods"][0]["top1"]["mean"], results["methods"][1]["top1"]["mean"] = 80.0, 82.5
    said = tables.summary(results)
    assert said.startswith("One seed, which ranks nothing") and "ODConv +2.50 points" in said


def test_summary_calls_a_difference_only_what_its_interval_shows(synthetic):
    results = synthetic(methods=("static", "dyconv", "odconv", "condconv"), seeds=5, layers=2)
    static, dyconv, odconv, condconv = results["methods"]
    static["top1"]["mean"] = 80.0
    dyconv["paired"], odconv["paired"] = gaps(-0.2, 0.5, 1.2, 4), gaps(0.4, 1.5, 2.6, 5)
    condconv["paired"] = gaps(-2.0, -1.2, -0.4, 0)
    above, below, none = tables.summary(results).split(". ")
    assert above.startswith("Above static’s 80.0 % top-1") and "ODConv by 1.50 points (+0.40 to +2.60; 5 of 5" in above
    assert below.startswith("Below static’s") and "CondConv by 1.20 points" in below
    assert none == "No difference to static is shown for DyConv (+0.50, −0.20 to +1.20)."
    assert "+0.40 to +2.60" in page.page(results)


def test_equal_gaps_of_all_seeds_are_no_certainty(synthetic):
    results = synthetic(methods=("static", "odconv"), seeds=3, layers=2)
    results["methods"][1]["paired"] = {**gaps(1.5, 1.5, 1.5, 3), "gaps": [1.5] * 3, "std": 0.0}
    assert tables.summary(results) == "No difference to static is shown for ODConv (+1.50 for every seed)."
    assert tables.headline(results)[1]["interval"] == "no spread"
    assert "+1.50 to" not in page.page(results)


def test_ties_are_no_losses(synthetic):
    results = synthetic(methods=("static", "odconv"), seeds=3, layers=2)
    results["methods"][1]["paired"] = {**gaps(-0.5, 0.5, 1.5, 1), "gaps": [0.0, 1.5, 0.0]}
    assert tables.headline(results)[1]["wins"] == "1 of 3 seeds, 2 tied"


def test_the_price_stands_under_the_outcome(synthetic):
    results = synthetic(methods=("static", "odconv"), seeds=3, layers=2)
    static, odconv = results["methods"]
    static["latency"][1] |= {"low": 0.5, "high": 2.0}  # too noisy to say anything
    odconv["latency"][0] |= {"ratio": 1.31, "low": 1.3, "high": 1.32}
    said = noise.price(results["methods"])
    params = odconv["params"] / static["params"]
    assert said == (
        f"Cost against static: ODConv {params:.2f} times the parameters, 1.31 times the time of an image. Times are of "
        "PyTorch here; an exported file has its own, often higher, which convary export tells."
    )
    assert said in page.page(results)
    assert not noise.price([odconv]) and not noise.price([static, *[odconv] * 4])


def test_a_networks_own_spread_is_noise_too(synthetic):
    methods = synthetic(methods=("static", "odconv"), seeds=3, layers=2)["methods"]
    assert not noise.busy(methods)
    methods[1]["latency"][0] |= {"low": 3.62, "ratio": 3.9, "high": 33.85}
    first, second = noise.timed(methods, methods[1])["latency"]
    assert first["ratio"] == noise.NOISY and first["range"] == "3.62–33.85" and second["ratio"] != noise.NOISY
    assert "ODConv took 3.62 to 33.85 times as long" in noise.busy(methods)
    assert "the time of an image" not in noise.price(methods)


@pytest.mark.parametrize("seeds", [1, 3])
def test_few_test_images_cannot_show_a_difference(synthetic, seeds):
    results = synthetic(methods=("static", "odconv"), seeds=seeds, layers=2)
    results["data"]["test"] = 2
    results["methods"][1]["paired"] = gaps(40, 50, 60, 3)
    assert tables.summary(results).startswith("2 test images can’t show a difference: one image is 50 points. Top-1: ")
    assert "With 2 test images, one image is 50 points: nothing can be concluded." in tables.caveats(results)
    results["data"]["test"] = 10_000
    results["methods"][0]["top1"]["mean"] = results["methods"][1]["top1"]["mean"] = 50.0
    said = " ".join(tables.caveats(results))
    assert "top-1 near 50 % is about 0.5 points, and of the difference of two networks 0.7" in said
