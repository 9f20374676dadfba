# SPDX-License-Identifier: Apache-2.0
"""The benchmark's tables: checked before they are timed, saved, told as a page."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from convary import ops
from convary.bench import fit, layers, models, tables
from convary.bench.layers import Case, LayersConfig, Shape
from convary.bench.models import ModelsConfig
from convary.bench.page import page
from convary.cli import main
from convary.errors import ConfigError
from convary.ops import cost
from convary.ops.cost.times import processor

TINY = (Shape(2, 6, 4, 5, 3), Shape(3, 8, 8, 4, 3, 8), Shape(1, 4, 6, 3, 1))
QUICK = {"threads": (1,), "seconds": 0.0}


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("factors", ["kernel", "all"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_layers_agree_and_are_timed(mode, factors, layout):
    config = LayersConfig(modes=(mode,), factors=(factors,), layouts=(layout,), **QUICK)
    rows = list(layers.measure(config, TINY))
    assert [row["layer"] for row in rows] == ["2, 6->4, 5, 3", "3, 8 depthwise, 4, 3", "1, 4->6, 3, 1"]
    for row in rows:
        assert row["error"] < 1e-5
        assert row["pairs"] >= 9
        assert 0 < row["low"] <= row["ratio"] <= row["high"]


def test_the_check_looks_at_values_and_every_gradient(monkeypatch):
    case = Case(TINY[0], "training", "all", "contiguous", None)
    assert case.error() < 1e-5
    dynamic = case.dynamic
    outputs = len(dynamic())
    assert outputs == 1 + 2 + 4  # y; x, bank; four factors
    for i in range(outputs):

        def wrong(*arguments, i=i, **options):
            results = list(dynamic(*arguments, **options))
            results[i] = results[i] + 0.01 * results[i].abs().max()
            return results

        monkeypatch.setattr(case, "dynamic", wrong)
        assert case.error() > 1e-3


SHAPES = [(1, 8, 8, 9, 3, 1, False), (2, 8, 8, 5, 3, 8, False), (2, 8, 4, 6, 1, 1, True), (3, 8, 8, 7, 3, 1, True)]


def test_costs_are_fitted_to_this_machine_and_read_from_then_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CONVARY_CACHE", str(tmp_path))
    monkeypatch.setattr(fit, "TABLE", [])
    monkeypatch.setattr(fit, "grid", lambda: SHAPES)
    monkeypatch.setattr(fit, "given", lambda: [(*SHAPES[0], "sample_conv")])
    cost.fitted.cache_clear()
    try:
        assert main(["bench", "fit", "--threads", "1", "--seconds", "0.001"]) == 0
        cost.fitted.cache_clear()
        (file,) = tmp_path.glob("cost-*.json")
        assert cost.fitted() == json.loads(file.read_text())
        assert cost.fitted()["threads"] == 1 and "grouped/dense/training" in cost.fitted()["rates"]
        assert f"wrote {file}; convary reads it from now on" in capsys.readouterr().out
        assert all(rate > 0 for rates in cost.fitted()["rates"].values() for rate in rates.values())
        assert main(["bench", "fit", "--check", "--threads", "1"]) == 0  # the table is empty here
        file.write_text("{}")
        cost.fitted.cache_clear()
        with pytest.warns(UserWarning, match="the shipped costs are used.*has no 'machine'"):
            assert cost.fitted()["threads"] == 2
    finally:
        cost.fitted.cache_clear()


def test_needs_nothing_of_what_training_needs(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.startswith("convary.train")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("accelerate", "torchmetrics"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    monkeypatch.setattr(layers.measure, "__defaults__", (TINY[:1],))
    flags = ["--threads", "1", "--modes", "inference", "--factors", "kernel", "--seconds", "0.01"]
    assert main(["bench", "layers", *flags, "--out", str(tmp_path)]) == 0
    assert "ratio" in json.loads((tmp_path / "layers.json").read_text())["rows"][0]


def test_a_wrong_line_is_not_timed(monkeypatch, capsys, tmp_path):
    mixed_conv = ops.mixed_conv
    monkeypatch.setattr(ops, "mixed_conv", lambda *arguments, **options: 1.01 * mixed_conv(*arguments, **options))
    monkeypatch.setattr(layers.measure, "__defaults__", (TINY[:1],))
    flags = ["--threads", "1", "--modes", "inference", "--factors", "kernel", "--seconds", "0.01"]
    assert main(["bench", "layers", *flags, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "WRONG: off by 1.0e-02" in told.out
    assert "1 of 1 lines disagree with the reference" in told.err
    assert "ratio" not in json.loads((tmp_path / "layers.json").read_text())["rows"][0]


def test_networks_agree_and_are_timed():
    config = ModelsConfig(
        models=("mobilenet_v2_tiny",), methods=("odconv",), batches=(1, 2), image_size=28, **QUICK
    )  # fmt: skip
    rows = list(models.measure(config))
    assert [(row["batch"], row["mode"]) for row in rows] == [
        (1, "inference"), (1, "training"), (2, "inference"), (2, "training"),
    ]  # fmt: skip
    assert all(row["error"] < models.TOLERANCE[row["mode"]] and row["ratio"] > 0 for row in rows)
    assert torch.get_num_threads() == 1


def test_networks_under_autocast_are_checked_and_compared_with_both_dtypes_of_static():
    config = ModelsConfig(
        models=("mobilenet_v2_tiny",), methods=("odconv",), batches=(2,), dtypes=("float32", "bf16"), image_size=28,
        **QUICK,
    )  # fmt: skip
    rows = list(models.measure(config))
    assert [(row["dtype"], row["mode"]) for row in rows] == [
        ("float32", "inference"), ("float32", "training"), ("bf16", "inference"), ("bf16", "training"),
    ]  # fmt: skip
    assert all(("float32" in row) == (row["dtype"] == "bf16") and row["ratio"] > 0 for row in rows)
    assert rows[2]["error"] > 10 * rows[0]["error"]  # it was autocast that was checked


def test_a_network_that_computes_something_else_is_found():
    class Skewed(torch.nn.Module):
        def forward(self, x):
            return 1.01 * x if x.dtype is torch.float32 else x

    _, dynamic = models.networks("mobilenet_v2_tiny", "condconv", 28)
    check = models.Check(dynamic, 28, most=5)
    for batch in (1, 2, 5):
        errors = check.errors(batch)
        assert errors["inference"] < 1e-5 and errors["training"] < 1e-2
    dynamic.classifier = torch.nn.Sequential(dynamic.classifier, Skewed())
    assert models.Check(dynamic, 28, most=1).errors(1)["inference"] > 1e-3


@pytest.mark.slow
def test_peak_memory_of_a_network():
    config = ModelsConfig(
        models=("mobilenet_v2_tiny",), methods=("dyconv",), batches=(8,), threads=(1,), image_size=64
    )  # fmt: skip
    (row,) = models.measure_memory(config)
    assert row["dynamic"] > row["static"] > 1e6
    static, dynamic = models.networks("mobilenet_v2_tiny", "dyconv", 64)
    more = sum(p.numel() for p in dynamic.parameters()) - sum(p.numel() for p in static.parameters())
    assert row["extra_parameters"] == 4 * more


def rows_of_models(ratio):
    timing = {"ratio": ratio, "low": 0.9 * ratio, "high": 1.1 * ratio, "ms": 10 * ratio, "base_ms": 10.0, "error": 1e-6}
    what = {"model": "torchvision:resnet18", "method": "odconv", "batch": 16, "mode": "inference", "threads": 2}
    return [{**what, **timing}]


def write(path, kind, rows, **more):
    machine = {
        "cpu": "a CPU",
        "cores": 2,
        "memory_gb": 8.0,
        "os": "Linux",
        "torch": "2",
        "convary": "0",
        "native": "avx2",
    }
    path.write_text(json.dumps({"schema": 1, "kind": kind, "machine": machine, "rows": rows, **more}))


@pytest.mark.parametrize(("ratio", "reached"), [(1.0, "aim"), (1.2, "must"), (1.3, "**missed**")])
def test_page_says_where_we_lose(ratio, reached, tmp_path):
    memory = {"model": "torchvision:resnet18", "method": "odconv", "batch": 16, "threads": 2, "static": 500_000_000,
              "dynamic": 720_000_000, "extra_parameters": 100_000_000}  # fmt: skip
    write(tmp_path / "models.json", "models", rows_of_models(ratio), memory=[memory])
    write(tmp_path / "layers.json", "layers", [])
    (tmp_path / "notes.md").write_text("Why: the bank.\n")
    text = page(tmp_path)
    assert f"| resnet18 | odconv | 16 | inference | 2 | {ratio:.2f} |" in text
    assert f"| {reached} |" in text
    missed = f"- resnet18, odconv, batch 16, inference: {ratio:.2f} [{0.9 * ratio:.2f}, {1.1 * ratio:.2f}]"
    assert (missed in text) == (0.9 * ratio > 1 or reached == "**missed**")
    assert ("Missed:" in text) == (reached == "**missed**")
    assert "Why: the bank." in text
    assert "| 500 | 720 | 200 | 4.0% | aim |" in text


def test_the_page_is_what_the_committed_measurements_make():
    root = Path(__file__).parents[2]
    text = page(root / "benchmarks" / "results")
    assert text == (root / "docs" / "benchmarks.md").read_text(), "run convary bench page"
    overview, folded = text.partition("## Half precision")[0], text.partition("<details")[2]
    assert "| resnet18 | odconv | **1.10** (3.36) | **1.12** (4.40) | 1.26 | 1.58 |" in overview
    assert overview.count("\n|") == 8 and folded.count("</details>") == 9


def test_page_wants_both_tables(tmp_path):
    with pytest.raises(ConfigError, match=r"models.json is missing; run convary bench models --out"):
        page(tmp_path)
    (tmp_path / "models.json").write_text("[]")
    with pytest.raises(ConfigError, match="is not a result of convary bench"):
        page(tmp_path)


def test_page_tells_of_wrong_lines_and_missed_memory(tmp_path):
    memory = {"model": "torchvision:resnet18", "method": "odconv", "batch": 16, "threads": 2, "static": 500_000_000,
              "dynamic": 800_000_000, "extra_parameters": 100_000_000}  # fmt: skip
    (row,) = rows_of_models(1.0)
    wrong = {name: row[name] for name in ("model", "method", "batch", "mode", "threads")} | {"error": 0.25}
    write(tmp_path / "models.json", "models", [wrong], memory=[memory])
    write(tmp_path / "layers.json", "layers", [])
    text = page(tmp_path)
    assert "- resnet18, odconv, batch 16, inference: **wrong**, off by 2e-01; not timed" in text
    assert "- resnet18, odconv: peak memory of training" in text


def test_page_has_half_precision_of_another_machine(tmp_path, capsys):
    write(tmp_path / "models.json", "models", rows_of_models(1.0))
    write(tmp_path / "layers.json", "layers", [])
    assert "Half precision" not in page(tmp_path)
    flags = ["--models", "mobilenet_v2_tiny", "--methods", "odconv", "--batches", "1", "--modes", "inference"]
    flags += ["--dtypes", "bf16", "--threads", "1", "--image-size", "28", "--seconds", "0.01", "--no-memory"]
    assert main(["bench", "models", *flags, "--out", str(tmp_path)]) == 0
    assert "mobilenet_v2_tiny         odconv    bf16" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "models-bf16.json").read_text())["rows"]
    told = page(tmp_path).partition("## Half precision")[2].partition("##")[0]
    assert f"| mobilenet_v2_tiny | odconv | 1 | inference | 1 | {row['ratio']:.2f} |" in told
    assert f"| {row['float32']['ratio']:.2f} (" in told
    assert processor() in told


def test_page_wants_one_machine(tmp_path):
    write(tmp_path / "models.json", "models", [])
    write(tmp_path / "layers.json", "layers", [])
    content = json.loads((tmp_path / "layers.json").read_text())
    content["machine"]["cpu"] = "another"
    (tmp_path / "layers.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="layers.json was measured with cpu 'another', models.json with 'a CPU'"):
        page(tmp_path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["layer"], "convary bench knows layers, models, fit, page; got 'layer'; did you mean 'layers'?"),
        (["layers", "--strategy", "nativ"], "no strategy 'nativ'"),
        (["layers", "--threads", "0"], "--threads must be from 1 to 1024; got 0"),
        (["models", "--batches", "0"], "--batches must be above 0; got 0"),
        (["layers", "--device", "gpu"], "torch knows no device 'gpu' to compute on; use cpu or cuda"),
        (["models", "--device", "cuda:77"], "there is no device 'cuda:77' here"),
        (["models", "--mode", "compiled", "--layout", "channels_last"], "leave out --against, --dtypes and --layout"),
        (["models", "--methods", "odconvv"], "odconv"),
    ],
)
def test_bad_flags_are_one_line(argv, message, capsys):
    assert main(["bench", *argv]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_help(capsys):
    assert main(["bench"]) == 0
    assert "whole networks" in capsys.readouterr().out


def test_targets_are_for_two_threads():
    row = {"layer": "", "mode": "training", "threads": 2, "layout": "contiguous", "ratio": 1.7}
    assert tables.verdict("layers", row) == "must"
    assert tables.verdict("layers", row | {"threads": 1}) == ""
    assert tables.verdict("layers", row | {"layout": "channels_last"}) == ""


def test_layers_in_half_precision_are_their_own_table_of_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(layers.measure, "__defaults__", (TINY[:1],))
    flags = ["--threads", "1", "--modes", "training", "--factors", "all", "--dtypes", "bf16", "--seconds", "0.01"]
    assert main(["bench", "layers", *flags, "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "layers-bf16.json").read_text())
    (row,) = content["rows"]
    assert row["dtype"] == "bf16" and 1e-4 < row["error"] < layers.TOLERANCE["bf16"]
    assert content["machine"]["device"] == processor()
    write(tmp_path / "models.json", "models", rows_of_models(1.0))
    write(tmp_path / "layers.json", "layers", [])
    told = page(tmp_path).partition("Layers in half precision")[2]
    assert f"| training | all | contiguous | bf16 | 1 | {row['strategy']} | {row['ratio']:.2f} |" in told


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", TINY, ids=str)
def test_all_tensors_of_a_layer_are_on_the_device(shape, layout):
    """One left on the CPU raises. The meta device has gradients, fake CUDA tensors copies to the CPU."""
    case = Case(shape, "training", "all", layout, None, "bf16", torch.device("meta"))
    for y, *gradients in (case.static(), case.dynamic("grouped"), case.dynamic("bmm", samples=1)):
        assert {(t.device.type, t.dtype) for t in (y, *gradients)} == {("meta", torch.bfloat16)}
    with FakeTensorMode(allow_non_fake_inputs=False):
        case = Case(shape, "inference", "all", layout, None, "bf16", torch.device("cuda", 0))
        assert {str(t.device) for t in (*case.static(), *case.dynamic("grouped"))} == {"cuda:0"}
        assert {(str(t.device), t.dtype) for t in case.truth()} == {("cpu", torch.float64)}


def test_a_network_is_checked_on_its_device():
    """Its own numbers and images are there, and float64 stays on the CPU."""
    static, _ = models.networks("convnet_nano", "static", 28)
    check = models.Check(static, 28, 2, torch.device("meta"), "channels_last")
    assert {p.device.type for p in check.model.parameters()} == {"meta"} == {check.images.device.type}
    assert {(p.device.type, p.dtype) for p in check.exact.parameters()} == {("cpu", torch.float64)}
    assert check.images.is_contiguous(memory_format=torch.channels_last)


def test_where_float32_may_be_tf32_static_says_what_is_allowed():
    assert models._allowed({"inference": 1e-5, "training": 0.1}, "float32") == pytest.approx(
        {"inference": models.TOLERANCE["inference"], "training": 0.15}
    )
    assert models._allowed({"inference": 1e-5, "training": 0.1}, "bf16")["inference"] == pytest.approx(1.5e-5)


def test_what_was_measured_on_a_gpu_is_a_part_of_its_own(tmp_path):
    """Ratios of one device next to those of another would be read as one table."""
    write(tmp_path / "models.json", "models", rows_of_models(1.0))
    write(tmp_path / "layers.json", "layers", [])
    plain = page(tmp_path)
    row = rows_of_models(9.25)[0] | {"dtype": "bf16", "layout": "channels_last"}
    wrong = {k: v for k, v in row.items() if k not in ("ratio", "low", "high", "ms", "base_ms")} | {"method": "dyconv"}
    memory = {"model": "torchvision:resnet18", "method": "odconv", "batch": 16, "threads": 2, "static": 500_000_000,
              "dynamic": 720_000_000, "extra_parameters": 100_000_000}  # fmt: skip
    options = {"against": "static", "mode": "eager", "device": "cuda"}
    for name, rows, device in (("cuda", [row, wrong], "a GPU"), ("cuda-grouped", [row | {"ratio": 0.125}], "a GPU")):
        write(tmp_path / f"models-{name}.json", "models", rows, options=options, memory=[memory])
        content = json.loads((tmp_path / f"models-{name}.json").read_text())
        content["machine"]["device"] = device
        (tmp_path / f"models-{name}.json").write_text(json.dumps(content))
    text = page(tmp_path)
    assert text.startswith(plain.rstrip("\n"))
    told = text[len(plain) :]
    assert told.count("## a GPU") == 1
    assert "| resnet18 | odconv | inference | channels_last | bf16 | 16 | 9.25 |" in told and "| 0.12 |" in told
    assert "| wrong | error 1e-06 |" in told and "| resnet18 | odconv | 16 | 500 | 720 |" in told
