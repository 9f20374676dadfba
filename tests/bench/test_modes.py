# SPDX-License-Identifier: Apache-2.0
"""``convary bench models --mode``: right before it is timed, and a column of the page."""

import contextlib
import dataclasses
import json

import pytest
import torch

from convary.bench import engines, modes, page_modes, timing
from convary.bench.engines import ENGINES
from convary.bench.modes import ModesConfig, measure
from convary.cli import main

TINY = {"models": ("convnet_nano",), "methods": ("condconv",), "batches": (1,), "threads": (1,)}
CONFIG = ModesConfig(**TINY, image_size=28, seconds=0.0)
FLAGS = "--models convnet_nano --methods condconv --batches 1 --threads 1 --image-size 28 --seconds 0.01".split()


@pytest.fixture
def alone(monkeypatch):
    """Beside eager, onnxruntime only: to compile takes half a minute, and each runtime writes files of its own."""
    pytest.importorskip("onnxruntime")
    for name in ENGINES.keys() - {"onnxruntime"}:
        monkeypatch.delitem(ENGINES, name)
    monkeypatch.setattr(modes, "prepared", contextlib.nullcontext)


def test_files_are_checked_and_timed_and_told(alone, tmp_path, capsys):
    assert main(["bench", "models", "--mode", "onnxruntime", *FLAGS, "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    content = json.loads((tmp_path / "models-onnxruntime.json").read_text())
    assert [row["form"] for row in content["rows"]] == list(ENGINES["onnxruntime"].forms)
    for row in content["rows"]:
        assert row["error"] < 1e-2 and 0 < row["low"] <= row["ratio"] <= row["high"] and row["pairs"] >= 9
        assert row["fastest"]["by"] in ("eager", *ENGINES) and f"{row['ratio']:.2f}" in told
        assert row["nodes"] > row["base_nodes"] > 0 and row["made_seconds"] > 0
    eager = {"model": "convnet_nano", "method": "condconv", "batch": 1, "mode": "inference", "threads": 1}
    brief = page_modes.part({"onnxruntime": content}, {"rows": [eager | {"ratio": 1.25}]})
    best = min(content["rows"][:3], key=lambda row: row["ratio"])
    assert f"| convnet_nano | condconv | 1.25 | {best['ratio']:.2f}, {best['form']}" in brief
    assert page_modes.lines(content).count("\n") == 2 + len(content["rows"])


def test_what_is_wrong_is_not_timed(alone, monkeypatch):
    good = ENGINES["onnxruntime"]

    def wrong(*arguments):
        call, nodes = good.make(*arguments)
        return lambda: call() + 1, nodes

    monkeypatch.setitem(ENGINES, "onnxruntime", dataclasses.replace(good, make=wrong))
    (row,) = measure(dataclasses.replace(CONFIG, forms=("any",)))
    assert row["error"] > 0.1 and "ratio" not in row
    assert "wrong, off by" in page_modes.lines({"rows": [row]})


def test_forms_for_one_image_are_left_out_of_others(alone, monkeypatch):
    form = dataclasses.replace(ENGINES["onnxruntime"].forms["any"], one_image=True)
    forms = {"any": ENGINES["onnxruntime"].forms["any"], "single": form}
    engine = dataclasses.replace(
        ENGINES["onnxruntime"], forms=forms, make=lambda model, x, *_: (lambda: model(x), 1)
    )  # no file, whose writing takes two seconds
    monkeypatch.setitem(ENGINES, "onnxruntime", engine)
    for change, want in (
        ({}, ["any", "single"]),
        ({"batches": (2,)}, ["any"]),
        ({"free_batch": True}, ["any", "single"]),
    ):
        assert [row["form"] for row in measure(dataclasses.replace(CONFIG, **change))] == want


def test_a_file_for_any_batch(alone):
    (row,) = measure(dataclasses.replace(CONFIG, forms=("convary",), free_batch=True))
    assert row["free"] and row["error"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("mode", ENGINES)
def test_every_mode(mode, monkeypatch):
    if (reason := engines.obstacle(mode)) is not None:
        pytest.skip(reason)
    for name in ENGINES.keys() - {mode}:  # which write or compile the static network to find its fastest mode
        monkeypatch.delitem(ENGINES, name)
    before = torch.get_num_threads()
    rows = list(measure(dataclasses.replace(CONFIG, mode=mode)))
    forms, modes = ENGINES[mode].forms, set(CONFIG.modes) & set(ENGINES[mode].modes)
    assert len(rows) == sum(len(modes & set(form.tolerance)) for form in forms.values())
    assert all("ratio" in row and "fastest" in row for row in rows)
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_the_smallest_line_of_the_page(alone):
    """MobileNetV2 with CondConv at 224x224, one image, in onnxruntime's own form; how fast is for benchmarks."""
    one = {"methods": ("condconv",), "batches": (1,), "modes": ("inference",), "threads": (1,), "seconds": 0.0}
    (row,) = measure(ModesConfig(models=("torchvision:mobilenet_v2",), forms=("onnxruntime",), **one))
    assert row["error"] < 1e-4 and row["nodes"] < 260 and row["ratio"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--mode onnx", "invalid choice 'onnx'"),
        ("--mode openvino --forms convary", "--mode openvino has the forms any, openvino; got convary"),
        (
            "--mode openvino --forms openvino --batches 1 2",
            "--forms openvino is for one image or any number: give --batches 1",
        ),
        ("--mode aoti --modes training", "--mode aoti has no training; choose --modes inference"),
        ("--mode compiled --dtypes bf16", "is against static, in float32, contiguous; leave out --against, --dtypes"),
        ("--mode openvino --device cuda:9", "there is no device 'cuda:9'"),
        ("--forms any", "--forms and --free-batch are of files; choose --mode onnxruntime"),
    ],
)
def test_bad_flags_are_one_line(words, message, capsys):
    assert main(["bench", "models", *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_files_of_cpu_runtimes_are_not_asked_of_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(timing, "device_here", lambda name: torch.device(name, 0))
    assert main(["bench", "models", "--mode", "openvino", "--device", "cuda"]) == 2
    assert "--mode openvino runs on CPUs; on --device cuda run the modes eager, compiled" in capsys.readouterr().err
