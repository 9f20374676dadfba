# SPDX-License-Identifier: Apache-2.0
"""Published tables as data: every row is whole, ours agrees, and nothing recalled is printed."""

import csv
import dataclasses
import io
import json

import pytest
import torch
from scripts import paper_tables

from convary.errors import ConfigError
from convary.methods import METHODS
from convary.models import create
from convary.papers import COUNTS, TABLES, Published, Row, check, count, page, table
from convary.papers.ours import stride_first
from convary.selector import selector
from convary.train.recipe_page import as_markdown
from convary.train.recipes import RECIPES
from convary.train.reproduce import whole_page

ROWS = [(table, row) for table in TABLES for row in table.rows]
UNITS = {"params": "MG", "added": "MG", "madds": "MG"}


def test_names_are_unique():
    assert len({table.name for table in TABLES}) == len(TABLES)
    for found in TABLES:
        assert len({row.name for row in found.rows}) == len(found.rows)
        assert found.source.url.startswith("https://") and found.source.paper and found.source.place


@pytest.mark.parametrize(("found", "row"), ROWS, ids=lambda v: v.name)
def test_a_row_is_whole(found, row):
    assert row.recipe is None or row.recipe in RECIPES
    assert row.count is None or row.count in COUNTS
    reasons = [row.obstacle, row.untrained, row.recipe, row.detector]
    assert sum(map(bool, reasons)) == 1 or row.obstacle, "it can be trained, or says what is missing"
    assert row.obstacle or row.network or row.detector, "it has a network, or says why not"
    assert bool(row.detector) == bool(row.backbone)
    assert not (row.method and row.conversions)
    for config, where in row.conversions or ((row.method, row.where),):
        selector(where, config if isinstance(config, METHODS) else METHODS[0]())
    for name, number in row.published.items():
        assert float(number.rstrip("MG")) > 0
        assert number[-1] in UNITS.get(name, "0123456789")
    assert not {name for name, _ in row.published.items()} & {name for name, _ in row.recalled.items()}


def test_static_networks_have_the_published_multiply_adds():
    rows = [row for row in table("odconv-resnet").rows if row.is_static]
    assert len(rows) == 3
    for row in rows:
        assert check.madds_check(row, count(row)) == check.PRINTED
        assert check.params_check(row, count(row)) == check.EXACT


def test_resnet_v1_strides_first_and_costs_231_million_less():
    row = next(row for row in table("odconv-resnet").rows if row.name == "resnet50")
    released = Row(name="v1.5", title="", network=row.network)
    assert count(released).convolution - count(row).convolution == 231_211_008
    model = create("torchvision:resnet50")
    stride_first(model)
    strides = [(block.conv1.stride, block.conv2.stride) for block in (model.layer2[0], model.layer2[1])]
    assert strides == [((2, 2), (1, 1)), ((1, 1), (1, 1))]
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_ours_is_that_of_a_real_network():
    import convary as cv

    row = table("odconv-resnet").select(("resnet18-1x",)).rows[0]
    model = cv.convert(create("torchvision:resnet18"), cv.ODConv(experts=1), upcycle=False)
    costs = cv.summary(model, torch.zeros(1, 3, 224, 224))
    ours = count(row)
    assert (ours.params, ours.convolution) == (costs.params, costs.convolution)
    assert (ours.routing, ours.assembly) == (costs.routing, costs.assembly)
    assert ours.added == ours.params - COUNTS["static_resnet18"]


@pytest.mark.parametrize("row", table("dynet-imagenet").rows, ids=lambda row: row.name)
def test_our_reading_of_dynets_networks_costs_what_is_published(row):
    ours, published = count(row), float(row.published.madds.removesuffix("M"))
    cost = (ours.convolution + ours.routing + ours.assembly) / 1e6
    assert cost == pytest.approx(published, rel=0.06 if row.name == "dy-mobile" else 0.05 if row.is_static else 0.006)


def test_weightnets_networks_have_the_widths_of_the_released_ones():
    for row, width in zip(table("weightnet-params").rows[::2], (48, 112, 176, 248), strict=True):
        assert check.params_check(row, count(row)) == check.PRINTED
        with torch.device("meta"):
            net = create(row.network)
        stages = [getattr(net, f"stage{i}")[-1].branch2[-3].out_channels * 2 for i in (2, 3, 4)]
        assert stages == [width, 2 * width, 4 * width] and net.fc.in_features == 1024


@pytest.mark.slow
def test_kernel_warehouses_half_sized_mobilenetv2_takes_three_conversions():
    row = table("kernelwarehouse-mobilenetv2").select(("mobilenetv2-0.5-1/2x",)).rows[0]
    assert len(row.conversions) == 3
    assert check.params_check(row, count(row)) == check.EXACT


RECALLED = table("odconv-paper").select(("resnet18-1x", "resnet101"))


@pytest.mark.parametrize("form", page.FORMATS)
def test_recalled_numbers_are_never_printed(form):
    number = RECALLED.rows[0].recalled.top1
    assert number == "73.41"
    printed = page.FORMATS[form]([(RECALLED, page.records(RECALLED))])
    assert number not in printed and "77.41" in printed
    assert "recalled" in printed


def test_formats_say_the_same():
    small = table("odconv-resnet").select(("resnet18", "resnet18-1x"))
    found = [(small, page.records(small))]
    lines = list(csv.DictReader(io.StringIO(page.FORMATS["csv"](found))))
    content = json.loads(page.FORMATS["json"](found))
    assert [line["our_params"] for line in lines] == ["11689512", "11943944"]
    assert [row["ours"]["params"] for row in content["rows"]] == [11689512, 11943944]
    assert content["rows"][1]["published"]["top1"] == "73.05" and content["rows"][1]["method"]["experts"] == 1
    assert "| resnet18-1x | + ODConv (1x) | 11.94M | 1.838G | 73.05 |" in page.FORMATS["markdown"](found)
    assert "73.05" in page.FORMATS["text"](found)


def test_what_was_reached_stands_beside_what_was_published():
    small = table("odconv-resnet").select(("resnet18", "resnet18-1x"))
    reached = {
        (small.name, "resnet18-1x"): {
            "top1": 71.5, "std": 0.25, "seeds": 3, "data": "folder:/imagenet",
            "training": "odconv-resnet; without crops"
        }
    }  # fmt: skip
    found = page.records(small, reached)
    printed = page.text(small, found)
    assert "73.05" in printed and "71.50 ± 0.25" in printed
    assert "Reached on folder:/imagenet by odconv-resnet; without crops." in printed
    assert "71.5" in page.as_csv(found) and found[0]["reached"] is None


def test_where_errors_are_published_the_error_is_what_was_reached():
    small = table("dynet-imagenet").select(("resnet18",))
    found = {"top1": 68.25, "std": 0.5, "seeds": 3, "data": "x", "training": "odconv-resnet"}
    printed = page.text(small, page.records(small, {(small.name, "resnet18"): found}))
    assert "31.75 ± 0.50" in printed and "68.25" not in printed


def test_agreement_counts_what_differs():
    small = table("odconv-resnet").select(("resnet18",))
    static = dataclasses.replace(small.rows[0], count=None)
    rows = (
        *small.rows,
        static,
        dataclasses.replace(static, published=Published(params="11.70M", madds="1.9G")),
        dataclasses.replace(static, network=None, obstacle="none"),
    )
    lines = page.agreement(page.records(dataclasses.replace(small, rows=rows)))
    assert "1 of 1 rows whose authors' network was counted are exact (0 of" in lines[0] and "1 of 2 agree" in lines[0]
    assert "2 of 3 agree" in lines[1] and lines[2].startswith("1 of 4 rows have no network")
    assert lines[3].startswith("`--data` trains 3 of 4 rows by their own recipe; 0 have") and "1 are not" in lines[3]


def test_a_printed_number_that_the_count_contradicts_is_told():
    row = table("kernelwarehouse-resnet").select(("resnet18-1/4x",)).rows[0]
    assert check.params_check(row, count(row)) == check.EXACT_ALONE


@pytest.mark.parametrize(("name", "hint"), [("odconv-resnte", "odconv-resnet"), ("dcd-imagnet", "dcd-imagenet")])
def test_an_unknown_table_gets_the_nearest_name(name, hint):
    with pytest.raises(ConfigError, match=f"did you mean '{hint}'"):
        table(name)


def test_an_unknown_row_gets_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'resnet18-4x'"):
        table("odconv-resnet").select(("resnet18-5x",))


def test_the_page_has_every_table_and_no_other():
    text = paper_tables.PAGE.read_text()
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert titles == [*(found.title for found in TABLES), "Recipes"], "run python scripts/paper_tables.py"
    for name in ("weightnet-params", "condconv-ablations", "cgc-imagenet"):
        found = table(name)
        assert page.markdown(found, page.records(found)) in text, "run python scripts/paper_tables.py"
    assert text.endswith(as_markdown()), "run python scripts/paper_tables.py"


@pytest.mark.slow
@pytest.mark.long
def test_the_page_is_what_the_script_writes():
    assert whole_page() == paper_tables.PAGE.read_text(), "run python scripts/paper_tables.py"
