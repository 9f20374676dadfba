# SPDX-License-Identifier: Apache-2.0
"""The page: complete, honest, self-contained, whole or not written at all."""

from __future__ import annotations

import copy
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from convary import report
from convary.errors import ConvaryError
from convary.report import figures, network, routing, tables
from convary.text import spell


class Page(HTMLParser):
    """Ids, references and text of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.ids, self.references, self.words, self.open = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href", "srcset", "data"):
                self.references.append(value)

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def html(synthetic, tmp_path_factory):
    """The page of some synthetic results, made once for equal ones."""
    path, made = tmp_path_factory.mktemp("report") / "report.html", {}

    def make(results=None, **kwargs):
        results = results or synthetic(**kwargs)
        if (key := json.dumps(results)) not in made:
            report.write(results, path)
            made[key] = path.read_text()
        return made[key]

    return make


def test_the_page_needs_nothing_from_outside(html):
    page = Page(text := html())
    ids = {f"#{name}" for name in page.ids}
    assert all(reference in ids or reference.startswith("data:") for reference in page.references)
    assert page.open.count("script") == 1
    assert not re.search(r"<(script|link)[^>]* (src|href)=\"(?!data:)", text)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_the_script_is_small():
    code = (Path(report.__file__).parent / "templates" / "report.js").read_bytes()
    assert len(code) < 6400
    for word in (b"fetch(", b"XMLHttpRequest", b"http", b"eval(", b"innerHTML", b"localStorage"):
        assert word not in code


def test_points_say_network_and_value(html, synthetic):
    results = synthetic(methods=("static", "odconv"), seeds=2)
    text = html(results)
    titles = re.findall(r"<title>([^<]*)</title>", text)
    odconv = next(method for method in results["methods"] if method["name"] == "odconv")
    mean = sum(seed["curve"][-1]["test_top1"] for seed in odconv["seeds"]) / 2
    assert f"ODConv, test top-1 {mean:.2f} % after epoch 3" in titles
    assert any(title.startswith(f"ODConv: {odconv['top1']['mean']:.2f} ±") for title in titles)
    layer = odconv["routing"][0]["layer"]
    assert any(title.startswith(f"ODConv, {layer}: ") and title.endswith("% between classes") for title in titles)


def test_every_figure_has_a_name_and_knows_its_networks(html):
    text = html(methods=("static", "odconv"))
    assert all(
        re.search('role="img" aria-label="[^"]', tag) for tag in re.findall("<svg(?! class=.symbols)[^>]*>", text)
    )
    assert (
        {"static", "odconv"}
        == set(re.findall('<g data-m="([^"]*)"', text))
        == set(re.findall('span data-m="([^"]*)"', text))
    )


def test_the_table_has_throughput_time_and_size(html, synthetic):
    results = synthetic(methods=("static", "odconv"))
    text, odconv = Page(html(results)).text, results["methods"][1]
    entry = odconv["latency"][1]
    assert f"{16_000 / entry['ms']:,.0f} images/s" in text and "41 kB file" in text
    assert spell(odconv["seeds"][0]["curve"][-1]["seconds"]) in text


def test_each_expert_has_its_images(html, synthetic):
    results = synthetic(methods=("static", "odconv"))
    page, layer = html(results), results["methods"][1]["experts"][0]
    index, share = layer["images"][2][0], layer["shares"][2][0]
    label = results["data"]["classes"][results["pictures"][str(index)]["label"]]
    assert f"{label}, test image {index}: {100 * share:.0f} % of the mixture is expert 3" in page
    assert page.count('<div class="expert">') == 4 * len(results["methods"][1]["experts"])
    assert page.count("data:image/png;base64,") == len(results["pictures"]), "every picture is there once"


def test_paths_are_shown_at_every_temperature(html):
    page = html(methods=("static", "odconv"))
    assert re.findall('data-t="([^"]*)" class="([^"]*)"', page) == [("30", "kept"), ("5.48", "kept"), ("1", "kept")]
    assert 'data-t="' not in html(methods=("static", "condconv"))


def test_confusions_are_drawn_and_told(html, synthetic):
    results = synthetic(methods=("static",))
    results["methods"][0]["confusion"][6][0] = 77
    page = html(results)
    assert "Shirt taken for T-shirt/top: 77 of " in Page(page).text
    assert page.count("taken for") >= 90


def test_no_confusion_is_said(html, synthetic):
    results = synthetic(methods=("static",))
    said = "No mistakes in seed 0."
    assert said not in html(results)
    matrix = results["methods"][0]["confusion"]
    results["methods"][0]["confusion"] = [
        [sum(row) * (i == j) for j in range(len(row))] for i, row in enumerate(matrix)
    ]
    page = html(results)
    assert said in Page(page).text and "Rows are true classes" not in page


def test_where_networks_differ_is_counted(html):
    text = Page(html(methods=("static", "odconv"))).text
    assert "Only ODConv is right: 12 of 2,000" in text and "Only static is right: 9 of 2,000" in text


def test_the_plan_is_drawn_on_the_network(html, synthetic):
    results = synthetic(methods=("static", "odconv"))
    text, rows = Page(html(results)).text, results["methods"][1]["plan"]
    assert f"{len(rows) - 1} of {len(rows)} layers are dynamic" in text and "the first convolution" in text
    first, second = network.networks(results["methods"])[0]["layers"][:2]
    assert (first["depth"], second["depth"]) == (0, second["added"] / max(r["params_after"] - 1152 for r in rows))


def test_results_of_an_earlier_version_make_a_page(html, synthetic):
    older = copy.deepcopy(synthetic(methods=("static", "odconv"), layers=4))
    del older["pictures"]
    for method in older["methods"]:
        for name in ("plan", "bytes", "memory", "confusion", "experts", "paths", "differs", "diagnosis"):
            method.pop(name, None)
        for point in method["seeds"][0]["curve"]:
            point.pop("experts", None)
    page = html(older)
    assert 'id="routing"' in page and 'id="images"' not in page and 'id="network"' not in page


def test_tables_stay_tables(html):
    assert not re.search("<table[^>]* data-marks", html()), "the script would make a group of it"


def test_ids_are_unique_over_all_figures(html):
    page = Page(html())
    assert len(page.ids) == len(set(page.ids))


def test_every_method_is_there_with_its_numbers_and_its_citation(html, synthetic):
    results, text = synthetic(seeds=3), Page(html(seeds=3)).text
    for method in results["methods"]:
        assert method["title"] in text
        assert f"{method['top1']['mean']:.2f}" in text
        assert f"± {method['top1']['std']:.2f}" in text
        assert method["citation"] is None or method["citation"] in text
    for entry in results["methods"][1]["latency"]:
        assert f"{entry['low']:.2f}–{entry['high']:.2f}" in text


def test_the_run_the_data_and_the_machine_are_told(html, synthetic):
    results = synthetic(methods=("static",))
    text = Page(html(results)).text
    for value in (results["run"]["command"], "MIT", results["machine"]["cpu"], "2.14.1", "weight decay", "4e-05"):
        assert value in text


def test_one_seed_is_called_one_seed(html):
    text = Page(html()).text
    assert "std needs at least 2 seeds" in text
    assert "±" not in text.split("What accuracy costs")[0]
    assert "Three epochs are three epochs" in text


def test_several_seeds_have_a_spread(html):
    text = Page(html(seeds=3)).text
    assert "std needs at least 2 seeds" not in text
    assert "sample standard deviation over 3 seeds" in text


def test_temperature_is_drawn_only_where_it_is_annealed(html):
    assert "Router temperature" in html(methods=("static", "odconv"))
    assert "Router temperature" not in html(methods=("static", "condconv"))
    assert "Hollow points" not in html(methods=("static", "condconv"))


@pytest.mark.parametrize("methods", [("static",), ("odconv",), ("static", "dynet"), ("dyconv", "static")])
def test_any_choice_of_methods_makes_a_page(html, methods):
    assert "What was run" in html(methods=methods, layers=4)


def test_the_diagnosis_is_drawn_with_its_advice(html, synthetic):
    page = html()
    assert len(re.findall(', diagnosed"', page)) == 4
    assert "expert 4 is dead; experts 1 and 2 are equal" in page
    assert "SYNTHETIC advice: use &lt;fewer&gt; experts." in page
    older = copy.deepcopy(synthetic(methods=("static", "odconv"), layers=4))
    for method in older["methods"]:
        method.pop("diagnosis")
    assert 'id="diagnosis"' not in html(older)  # results.json of an earlier version


@pytest.mark.parametrize("layers", [1, 2, 40])
def test_first_middle_and_last_layer_are_drawn_large(html, layers):
    text = html(methods=("static", "dyconv"), layers=layers)
    assert text.count('<div class="card">') == min(layers, 3)
    assert text.count('<div class="thumb">') == max(layers - 3, 0)


def test_many_classes_stay_a_page_of_bounded_size(html, synthetic):
    results = synthetic(methods=("static", "odconv"), layers=4)
    results["data"]["classes"] = [f"class {index}" for index in range(1000)]
    for entry in results["methods"][1]["routing"]:
        entry["by_class"] = (entry["by_class"] * 100)[:1000]
    text = html(results)
    assert len(text) < 6e6
    assert f"first {routing.MOST_CLASSES} of 1000 classes" in text


def test_text_from_the_results_is_escaped(html, synthetic):
    results = synthetic(methods=("static", "odconv"), layers=4)
    results["data"]["title"] = results["data"]["classes"][0] = "<b>&amp;"
    assert "<b>&amp;" not in html(results)


def test_no_pairs_of_filters_and_flat_coefficients_are_fine(html, synthetic):
    results = synthetic(methods=("static", "dyconv"), layers=4)
    results["methods"][0]["correlation"] |= {"bands": [0, 0, 0, 0], "layers": []}
    for entry in results["methods"][1]["routing"]:
        entry |= {"by_class": [[0.25] * 4] * 10, "between_class_std": 0.0, "within_class_std": 0.0}
    assert "Kernel correlation" in html(results)


def test_too_few_images_of_a_class_give_no_share(html, synthetic):
    results = synthetic(methods=("static", "odconv"), layers=2)
    for entry in results["methods"][1]["routing"]:
        entry["share"] = None
    text = html(results)
    assert "needs several test images of each class" in text
    assert "Share of routing variance" not in text
    for entry in results["methods"][1]["routing"]:
        entry["share"] = 0.07
    text = html(results)
    assert "needs several test images" not in text and ">7 %" in text


def test_a_failed_write_leaves_the_old_page_and_nothing_else(synthetic, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ConvaryError, match="No space left"):
        report.write(synthetic(methods=("static",)), path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_curve_of_one_epoch_has_one_tick():
    curve = [{"epoch": 1, "test_loss": 1.0, "train_loss": 1.5, "temperature": None}]
    for epochs, ticks in ((1, [1]), (3, [1, 2, 3])):
        method = {"seeds": [{"curve": [curve[0] | {"epoch": at + 1} for at in range(epochs)]}]}
        panel = Figure().subplots()
        figures._epochs(panel, [method])
        low, high = panel.get_xlim()
        assert [tick for tick in panel.get_xticks() if low <= tick <= high] == ticks


def test_tiny_networks_keep_their_digits(html, synthetic):
    """A layer of 518 parameters is not 0.000 millions."""
    results = synthetic()
    for method in results["methods"]:
        method["params"], method["macs"] = 518, dict.fromkeys(method["macs"], 16)
        method["latency"][0]["ms"] = 0.027
    shown = Page(html(results)).text
    assert "0.000518" in shown and "0.000016" in shown and "27.0 µs" in shown


@pytest.mark.parametrize(("low", "high", "noisy"), [(0.8, 1.25, False), (0.79, 1.0, True), (1.0, 1.26, True)])
def test_latencies_of_a_busy_machine_are_no_cost(html, synthetic, low, high, noisy):
    results = synthetic(methods=("static", "odconv"), layers=4)
    static, odconv = results["methods"]
    static["latency"][0] |= {"low": low, "high": high}
    odconv["latency"][0] |= {"ratio": 54.93, "low": 54.1, "high": 55.8}
    shown = html(results)
    text = " ".join(Page(shown).text.split())
    assert ("too noisy" in text) == noisy == ("54.93×" not in text)
    assert (f"static against itself took {low:.2f} to {high:.2f} times as long" in text) == noisy
    assert f"{odconv['latency'][1]['ratio']:.2f}×" in text, "the other batch is as quiet as it was"
    drawn = set(re.findall(r"against latency at batch (\d+)", shown))
    assert drawn == ({"16"} if noisy else {"1", "16"}) and ("were too noisy are left out" in text) == noisy
    assert ('data-v="54.93"' not in shown) == noisy


@pytest.mark.parametrize(
    ("init", "name", "noted"),
    [("upcycle", "odconv", True), ("paper", "odconv", False), ("paper", "odconv:experts=2,init=upcycle", True),
     ("upcycle", "odconv:init=neutral", False)],
)  # fmt: skip
def test_layers_that_started_upcycled_are_not_blamed_for_it(html, synthetic, init, name, noted):
    results = synthetic(methods=("static", "odconv"), layers=4)
    results["run"]["init"], results["methods"][1]["name"] = init, name
    for layer in results["methods"][1]["diagnosis"]["layers"]:
        layer["variation"] = 0.001
    page = html(results)
    assert "4 of 4 layers ignore their input" in page
    assert ("<small>a layer that was just upcycled starts so and learns it</small>" in page) == noted


def test_times_that_were_not_measured_are_said_to_be(html, synthetic, tmp_path):
    results = synthetic(methods=("static", "odconv"), layers=4)
    whole = html(results)
    for entry in results["methods"]:
        entry |= {"latency": [], "step": None, "memory": None}
    page = html(results)
    assert page.count(">not measured</td>") == 2 and "Latency, training step and memory are not measured" in page
    assert "measured on the machine below" not in page and "of memory" not in page and "against latency" not in page
    assert "not measured" not in whole and "measured on the machine below" in whole
    report.picture(results, tmp_path / "cost.svg")


def test_no_latency_is_drawn_where_all_are_too_noisy(html, synthetic, tmp_path):
    results = synthetic(methods=("static", "odconv"), layers=4)
    for entry in results["methods"][0]["latency"]:
        entry["high"] = 3.0
    shown = html(results)
    assert "against latency" not in shown and "Horizontal bars" not in shown
    report.picture(results, tmp_path / "cost.svg")
    assert "horizontal bars" not in tables.picture_note(results)
