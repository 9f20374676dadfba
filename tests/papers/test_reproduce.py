# SPDX-License-Identifier: Apache-2.0
"""``convary reproduce``: lists, prints, trains; what is wrong is one line."""

import csv
import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.models import get_model

from convary import cli
from convary._cli import reproduce
from convary.errors import ConfigError
from convary.methods import ODConv
from convary.papers import TABLES, table
from convary.systems import detection_rows
from convary.train import read_checkpoint
from tests.data.photos import write_photos
from tests.data.written import folder_of


@pytest.fixture
def run(capsys):
    def call(*argv):
        code = cli.main([str(word) for word in argv])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def test_without_a_table_it_lists_them(run):
    code, out, _ = run("reproduce")
    assert code == 0 and all(table.name in out for table in TABLES)


def test_without_a_table_a_format_is_of_all():
    assert len(reproduce._selected(reproduce.Reproduce(format="markdown"))) == len(TABLES)
    assert reproduce._selected(reproduce.Reproduce()) == []


def test_it_prints_a_table_in_every_format(run):
    rows = ("--rows", "softmax", "sigmoid")
    outs = [
        run("reproduce", "condconv-ablations", *rows, "--format", form) for form in ("text", "json", "csv", "markdown")
    ]
    assert all(code == 0 for code, _, _ in outs)
    text, content, lines, markdown = (out for _, out, _ in outs)
    assert "routing by a sigmoid" in text and "MobileNetV1" in text
    assert [row["published"] for row in json.loads(content)["rows"]] == [{"top1": "62.0"}, {"top1": "60.5"}]
    assert [line["published_top1"] for line in csv.DictReader(io.StringIO(lines))] == ["62.0", "60.5"]
    assert "| softmax | routing by a softmax | 60.5 |" in markdown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("reproduce", "odconv-resnte"), "did you mean 'odconv-resnet'"),
        (("reproduce", "odconv-resnet", "--rows", "resnet18-5x"), "did you mean 'resnet18-4x'"),
        (("reproduce", "--rows", "resnet18"), "the one table that they are of"),
        (("reproduce", "--data", "cifar10"), "wants a table"),
        (("reproduce", "weightnet-params", "--data", "cifar10"), "none of these rows can be trained"),
        (("reproduce", "odconv-coco", "--data", "coco:x"), "a trained resnet50, static; give --weights"),
        (("reproduce", "odconv-coco", "--data", "cifar10"), "a detector: --data coco:FOLDER trains it"),
        (("reproduce", "odconv-resnet", "--released", "x"), "--released is for ODConv in a table of speed"),
        (("reproduce", "odconv-speed", "--measure-seconds", "0"), "must be above 0"),
        (("reproduce", "odconv-coco", "--data", "coco:x", "--jobs", "2"), "--jobs is for classifiers"),
        (("reproduce", "odconv-coco", "--data", "coco:x", "--weights", "no.pt"), "there is no no.pt"),
        (("reproduce", "odconv-resnet", "--data", "cifar10", "--weights", "no.pt"), "--weights is for detectors"),
        (("compare", "--recipe", "odconv-resnte"), "did you mean 'odconv-resnet'"),
        (("compare", "--recipe", "odconv-resnet", "--epochs", "2"), "anneal_epochs must be between 0 and epochs=2"),
    ],
)
def test_bad_input_is_one_line(run, argv, message):
    code, _, err = run(*argv)
    assert code == 2 and message in err and err.count("\n") == 1


def test_a_detector_starts_from_weights_of_its_own_method_else_of_the_static_network(tmp_path):
    from convary.models.architecture import Architecture
    from convary.train.checkpoint import write_checkpoint

    own = ODConv(experts=4).to_json()
    for name, method in (
        ("static", None),
        ("odconv-experts=4", own),
        ("odconv-experts=1", ODConv(experts=1).to_json()),
    ):
        about = Architecture(
            model="torchvision:resnet50", num_classes=7, shape=(3, 32, 32), method=method, init="paper", seed=0
        )
        path = tmp_path / "runs" / name / "seed-0" / "checkpoint.pt"
        path.parent.mkdir(parents=True)
        write_checkpoint(path, {"architecture": vars(about), "model": {}})
    (tmp_path / "mobilenet_v2-7ebf99e0.pth").touch()
    coco, given = table("odconv-coco"), [tmp_path / "runs", tmp_path / "mobilenet_v2-7ebf99e0.pth"]
    planned = detection_rows.plan([coco], tmp_path / "out", tmp_path, given, 2, epochs=6, image_size=400)
    assert len(planned.runs) == 8 and not planned.left_out
    first, second = planned.runs["odconv-coco", "faster-resnet50-4x"]
    assert first.weights == tmp_path / "runs" / "odconv-experts=4" / "seed-0" / "checkpoint.pt"
    assert (first.method, first.detector, first.backbone) == ("odconv", "faster", "resnet50")
    assert (first.seed, second.seed) == (0, 1) and first.out != second.out
    assert (first.steps, first.short, first.long, first.lr) == (43_980, (400,), 666, 0.02)
    [static, _] = planned.runs["odconv-coco", "mask-resnet50"]
    assert static.method == "static" and static.weights.parts[-3] == "static"
    assert planned.runs["odconv-coco", "mask-mobilenetv2-4x"][0].weights.name.startswith("mobilenet_v2")
    mask = table("fdconv-mask").select(("odconv-4x", "static"))
    planned = detection_rows.plan([mask], tmp_path / "out", tmp_path, given, 1)
    [one] = planned.runs["fdconv-mask", "odconv-4x"]
    assert (one.name, one.lr, one.short[-1], one.weights.parts[-3]) == (
        "detection-adamw-published", 1e-4, 800, "odconv-experts=4"
    )  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"trained resnet50, kernelwarehouse; give .* a checkpoint of convary reproduce$"
    ):
        detection_rows.plan([table("kernelwarehouse-coco").select(("resnet50-1x",))], tmp_path, tmp_path, given, 1)
    with pytest.raises(ConfigError, match="faster-mobilenetv2 starts from a trained mobilenet_v2, static"):
        detection_rows.plan([coco], tmp_path / "out", tmp_path, given[:1], 1)
    with pytest.raises(ConfigError, match="trained on COCO: resnet18: a classifier"):
        detection_rows.plan([table("odconv-resnet").select(("resnet18",))], tmp_path, tmp_path, [], 1)


@pytest.mark.slow
def test_a_detector_is_trained_and_stands_beside_what_is_published(run, tmp_path):
    (tmp_path / "coco").mkdir()
    coco = folder_of(folder_of(tmp_path / "coco"), part="val2017")
    torch.save(get_model("mobilenet_v2", weights=None).state_dict(), tmp_path / "mobilenet_v2-x.pth")
    argv = (
        "reproduce", "odconv-coco", "--rows", "mask-mobilenetv2-4x", "--data", f"coco:{coco}", "--weights",
        tmp_path / "mobilenet_v2-x.pth", "--out", tmp_path / "out", "--epochs", 0, "--batch-size", 1, "--image-size",
        64, "--cpu", "--workers", 1,
    )  # fmt: skip
    code, out, err = run(*argv)
    assert code == 0, err
    assert "mask AP" in out and "reached" in out and "1 steps instead of 87960" in out
    [row] = json.loads((tmp_path / "out" / "tables.json").read_text())["rows"]
    assert 0 <= row["reached"]["mask_ap"] <= 100 and row["published"]["mask_ap"] == "33.0"


@pytest.mark.slow
def test_rows_are_trained_and_stand_beside_what_is_published(run, tmp_path):
    rng = torch.Generator().manual_seed(0)
    for part, count in (("train", 8), ("val", 4)):
        for label, base in (("dark", 60), ("light", 180)):
            folder = tmp_path / "images" / part / label
            folder.mkdir(parents=True)
            for i in range(count):
                noise = torch.randn(40, 40, 3, generator=rng) * 20 + base
                Image.fromarray(noise.clamp(0, 255).byte().numpy()).save(folder / f"{i}.jpg")
    argv = (
        "reproduce", "odconv-resnet", "--rows", "resnet18-1x", "--data", f"folder:{tmp_path / 'images'}", "--out",
        tmp_path / "out", "--epochs", 1, "--anneal-epochs", 1, "--batch-size", 8, "--image-size", 32, "--cpu",
    )  # fmt: skip
    code, out, _ = run(*argv)
    assert code == 0 and "73.05" in out and "reached" in out
    assert "epochs 1 instead of 100" in out
    [folder] = [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
    run_entry = json.loads((folder / "results.json").read_text())["run"]
    assert run_entry["recipe"] == "odconv-resnet"
    assert "epochs 1 instead of 100" in (folder / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "tables.json").read_text())["rows"][0]["reached"]["seeds"] == 1
    again = run(*argv)  # nothing is trained again
    assert again[0] == 0 and "epoch 1/1" not in again[1]


def launched(*argv: object) -> list[subprocess.Popen]:
    """Two processes of one launcher."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    usual = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    usual |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "convary", *map(str, argv)]
    return [
        subprocess.Popen(command, env=usual | {"RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.DEVNULL)
        for rank in ("0", "1")
    ]


@pytest.mark.slow
@pytest.mark.sweep
def test_an_imagenet_of_a_hundred_classes_on_two_processes_killed_and_resumed(tmp_path):
    images = write_photos(tmp_path / "images", 100, 16, 4, size=(64, 48))
    argv = (
        "reproduce", "odconv-mobilenetv2", "--rows", "mobilenetv2-0.5", "mobilenetv2-0.5-1x", "mobilenetv2-0.5-4x",
        "--data", f"folder:{images}", "--epochs", 1, "--anneal-epochs", 1, "--batch-size", 128, "--image-size", 32,
        "--workers", 1, "--cpu", "--out",
    )  # fmt: skip
    assert [process.wait(1200) for process in launched(*argv, tmp_path / "whole")] == [0, 0]
    killed = launched(*argv, tmp_path / "killed")
    while not list((tmp_path / "killed").glob("*/static/seed-0/checkpoint.pt")) and killed[0].poll() is None:
        time.sleep(0.1)
    for process in killed:
        process.kill()
        process.wait()
    assert not list((tmp_path / "killed").glob("*/results.json")), "killed before its end"
    assert [process.wait(1200) for process in launched(*argv, tmp_path / "killed")] == [0, 0]
    whole, again = (sorted((tmp_path / name).glob("*/*/seed-0/checkpoint.pt")) for name in ("whole", "killed"))
    assert len(whole) == len(again) == 3
    for one, other in zip(whole, again, strict=True):
        one, other = read_checkpoint(one), read_checkpoint(other)
        assert one["step"] == other["step"] == 12
        assert all(torch.equal(value, other["model"][name]) for name, value in one["model"].items())
        assert one["curve"][-1]["scores"] == other["curve"][-1]["scores"]
    rows = json.loads((tmp_path / "killed" / "tables.json").read_text())["rows"]
    assert {"mobilenetv2-0.5", "mobilenetv2-0.5-1x", "mobilenetv2-0.5-4x"} <= {row["row"] for row in rows}
    assert len(list((tmp_path / "killed").glob("*/report.html"))) == 1
