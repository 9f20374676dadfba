# SPDX-License-Identifier: Apache-2.0
"""Figures and pictures of a report: marks, axes and colours."""

from __future__ import annotations

import re

import pytest

from convary import METHODS, report
from convary.report import figures, health, images, routing, stream, style


def test_health_is_a_badge_with_names(synthetic):
    odconv = synthetic(methods=("static", "odconv"), layers=4)["methods"][1]
    for at, layer in enumerate(odconv["diagnosis"]["layers"]):
        layer |= {"variation": 0.5 if at == 1 else 0.001, "dead": [2, 3] if at == 1 else [], "duplicates": []}
    names = [layer["layer"] for layer in odconv["diagnosis"]["layers"]]
    assert health.badges(odconv) == [
        {"kind": "bad", "text": "3 of 4 layers ignore their input", "names": f"{names[0]}, {names[2]} and 1 more"},
        {"kind": "bad", "text": "2 dead experts", "names": names[1]},
    ]
    assert health.trouble(odconv) == 4
    idle, dead = health.badges(odconv, upcycled=True)
    assert idle["note"] == "a layer that was just upcycled starts so and learns it" and "note" not in dead
    for layer in odconv["diagnosis"]["layers"]:
        layer |= {"variation": 0.5, "dead": []}
    assert health.badges(odconv) == [{"kind": "good", "text": "all 4 layers in use", "names": ""}]
    assert health.badges(synthetic(methods=("static",))["methods"][0]) == []


def test_a_mix_is_a_bar_of_its_shares():
    bar = images.mix([0.25, 0.75])
    assert bar["css"] == (
        "linear-gradient(90deg,var(--series-0) 0.0% 25.0%,var(--series-1) 25.0% 100.0%,transparent 100.0%)"
    )
    assert bar["text"] == "25 75 %"


def test_expert_shares_over_training_are_stacked():
    svg = stream.stream([1.0, 2.0], [[0.5, 0.5], [0.9, 0.1]], "conv")
    assert 'points="0.0,38.0 220.0,7.6 220.0,76.0 0.0,76.0"' in svg
    assert "expert 1 of conv: 50 % after epoch 1, 90 % after epoch 2" in svg
    assert stream.streams({"seeds": [{"curve": [{"epoch": 1.0}]}]}) == []


def test_a_map_has_all_of_its_cells():
    grid = routing.Grid(row=15, column=10, margin=0, font=0)
    svg = routing.heat_map([[0.25, 0.75], [0.5, 0.5]], ["a", "<b>"], 0.5, grid, "conv, kernels")
    assert svg.count(' mark"') == 6  # of the mean and of two classes
    assert 'data-marks="2"' in svg and "<title>&lt;b&gt;: 0.500  0.500</title>" in svg


def test_axes_of_percentages_end_at_100(synthetic):
    results = synthetic(methods=("static", "odconv"), layers=2)
    for method, top1 in zip(results["methods"], (50.0, 100.0), strict=True):
        method["top1"]["mean"] = top1
        method["seeds"][0]["curve"][-1]["test_top1"] = top1
    look = style.looks(["static", "odconv"])
    for draw, args in ((figures.accuracy_against_params, ()), (figures.learning_curve, ("top1", "Top-1"))):
        _, (panel,) = style.figure(3, 3)
        draw(panel, results["methods"], look, *args)
        assert 100 < panel.get_ylim()[1] <= 104 and max(panel.get_yticks()) == 100


@pytest.mark.parametrize(("name", "start"), [("p.png", b"\x89PNG"), ("p.svg", b"<?xml"), ("p.pdf", b"%PDF")])
def test_picture(synthetic, tmp_path, name, start):
    report.picture(synthetic(methods=("static", "odconv"), seeds=2), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_picture_is_the_same_every_time(synthetic, tmp_path):
    for name in ("a.svg", "b.svg"):
        report.picture(synthetic(methods=("static", "odconv")), tmp_path / name)
    svg = (tmp_path / "a.svg").read_text()
    assert svg == (tmp_path / "b.svg").read_text()
    assert len(ids := re.findall('id="([^"]*)"', svg)) == len(set(ids)) and " " not in "".join(ids)


def test_a_method_keeps_its_colour_whatever_else_is_in_the_report():
    names = ["static", *(method.name for method in METHODS)]
    alone = {name: style.looks([name])[name] for name in names}
    assert style.looks(reversed(names)) == alone
    assert len({(look.color, look.marker) for look in alone.values()}) == len(names)


def test_unknown_methods_get_colours_too():
    variants = style.looks(["odconv:experts=2", "odconv", "odconv:experts=8"])
    assert {look.color for look in variants.values()} == {style.looks(["odconv"])["odconv"].color}
    assert len({look.marker for look in variants.values()}) == 3
    looks = style.looks([f"new{index}" for index in range(12)])
    assert len({(look.color, look.marker) for look in looks.values()}) == 12


def test_colours_of_figures_are_told_apart_by_value():
    light = [pair[0] for pair in style.COLORS.values()]
    assert len(set(light)) == len(light)
