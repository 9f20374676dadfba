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

from convary import cli
from convary.papers import TABLES
from convary.train import read_checkpoint
from tests.data.photos import write_photos


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
        (("compare", "--recipe", "odconv-resnte"), "did you mean 'odconv-resnet'"),
        (("compare", "--recipe", "odconv-resnet", "--epochs", "2"), "anneal_epochs must be between 0 and epochs=2"),
    ],
)
def test_bad_input_is_one_line(run, argv, message):
    code, _, err = run(*argv)
    assert code == 2 and message in err and err.count("\n") == 1


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
    assert [row["name"] for row in json.loads((tmp_path / "killed" / "tables.json").read_text())["rows"]]
    assert len(list((tmp_path / "killed").glob("*/report.html"))) == 1
