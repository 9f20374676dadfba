# SPDX-License-Identifier: Apache-2.0
"""``compare`` end to end, and what ``eval`` and ``predict`` make of its checkpoints; ``data``."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import time

import pytest
import torch
from PIL import Image

from convary._cli import compare as compare_command
from convary._cli.parse import parse
from convary.data import load as load_data
from convary.data.image import read_image
from convary.train import CompareConfig, load_model, measure
from tests.cli.calls import command_line, environment, one_line
from tests.report.conftest import synthetic_results


def test_more_images_at_a_time_than_there_are(run, images, tmp_path):
    words = f"--data folder:{images} --image-size 16 --model mobilenet_v2_tiny --epochs 1 --batch-size 100000000"
    flags = "--methods static --measure-seconds 0.01 --threads 1 --cpu"
    assert run("compare", *words.split(), *flags.split(), "--out", tmp_path / "out")[0] == 0


def test_data_lists_the_sets(run, tmp_path):
    code, out, _ = run("data", "--root", tmp_path)
    assert code == 0
    assert re.search(r"fashion-mnist-mini +yes", out)
    assert re.search(r"cifar100 +no", out)
    assert "convary data NAME" in out
    for name in ("train", "test", "meta"):
        (tmp_path / "cifar-100-python").mkdir(exist_ok=True)
        (tmp_path / "cifar-100-python" / name).touch()
    assert re.search(r"cifar100 +yes", run("data", "--root", tmp_path)[1])


def test_data_describes_a_set_that_is_here(run):
    code, out, _ = run("data", "fashion-mnist-mini")
    assert code == 0
    assert "10 classes" in out
    assert "MIT" in out


def test_compare_writes_results_and_report_and_prints_the_table(finished):
    out, code, said = finished
    assert code == 0
    results = json.loads((out / "results.json").read_text())
    assert [method["name"] for method in results["methods"]] == ["static", "dyconv"]
    assert "std needs at least 2 seeds" in (out / "report.html").read_text()
    assert re.search(r"^DyConv +\d+\.\d\d +[+−]\d", said, re.MULTILINE)
    assert str(out / "report.html") in said
    assert "DyConv, seed 0: epoch 1/1" in said


def test_a_finished_comparison_is_only_shown_again(run, finished, tiny):
    out = finished[0]
    before = (out / "results.json").read_bytes()
    code, said, _ = run("compare", *tiny, "--out", out)
    assert code == 0
    assert "DyConv" in said
    assert "epoch" not in said
    assert (out / "results.json").read_bytes() == before


def test_trained_weights_and_then_one_more_seed_by_commands_alone(run, finished, tiny, images, tmp_path):
    """What is taken is said before anything is trained; a second seed keeps the first."""
    weights, out = finished[0] / "static" / "seed-0" / "checkpoint.pt", tmp_path / "tuned"
    words = ["compare", *tiny, "--weights", weights, "--out", out]
    code, said, err = run(*words)
    assert code == 0, err
    taken = rf"^weights  (\d+) of \1 tensors from {re.escape(str(weights))}; images are 16x16, mean"
    assert re.search(taken, said, re.MULTILINE)
    assert "2 trainings of 3 steps each, about" in said
    first = json.loads((out / "results.json").read_text())
    assert f"tensors from {weights}" in (out / "report.html").read_text() and first["run"]["lr"] == [0.001]
    code, said, _ = run(*words, "--seeds", 2)
    assert code == 0 and "4 trainings of 3 steps each, 2 of them done before, about" in said
    assert "seed 0: epoch" not in said and said.count("seed 1: epoch 1/1") == 2
    second = json.loads((out / "results.json").read_text())
    assert [method["seeds"][0] for method in second["methods"]] == [method["seeds"][0] for method in first["methods"]]
    code, _, err = run(*words, "--lr", 0.01)
    assert code == 2 and "another run: lr 0.001 there and 0.01 here; give the settings" in one_line(err)
    code, _, err = run(*words, "--methods", "static", "static@1.25")
    assert code == 2 and "static@1.25 cannot start from the weights" in one_line(err)
    dynamic = out / "dyconv" / "seed-1" / "checkpoint.pt"
    photo = images / "test" / "dark" / "1.png"
    assert run("predict", dynamic, photo, "--cpu")[0] == 0
    assert run("export", dynamic, "--out", tmp_path / "tuned.onnx", "--image")[0] == 0
    assert run("predict", tmp_path / "tuned.onnx", photo, "--cpu")[1].startswith(str(photo))


def test_a_folder_of_another_run_is_refused(run, finished, tiny):
    out = finished[0]
    code, _, err = run("compare", *tiny, "--lr", 0.02, "--out", out)
    assert code == 2
    assert "is the folder of another run: lr 0.01 there and 0.02 here" in one_line(err)


def test_eval_prints_top1_and_classes(run, finished):
    out = finished[0]
    top1 = json.loads((out / "results.json").read_text())["methods"][1]["top1"]["mean"]
    code, said, _ = run("eval", out / "dyconv" / "seed-0" / "checkpoint.pt")
    assert code == 0
    assert f"top-1 {top1:.2f} %" in said
    assert "bright" in said
    assert "dark" in said


def test_few_test_images_are_called_few(run, finished):
    out, _, compared = finished
    few = json.loads((out / "results.json").read_text())["data"]["test"]
    _, evaluated, _ = run("eval", out / "static" / "seed-0" / "checkpoint.pt")
    for words in (evaluated, compared):
        said = f"Only {few} test images: one image is {100 / few:.2g} points, so nothing can be concluded."
        assert said in " ".join(words.split())


def test_predict_says_the_classes_of_photographs(run, finished, images):
    """Those that the network says in evaluation, whatever is given of its folder; a photograph may have any size."""
    out = finished[0]
    photos = [images / "test" / name / "1.png" for name in ("dark", "bright")]
    code, said, _ = run("predict", out / "dyconv" / "seed-0" / "checkpoint.pt", *photos, "--cpu")
    said_of_all = said
    assert code == 0
    model, data = load_model(out / "dyconv" / "seed-0" / "checkpoint.pt"), load_data(f"folder:{images}", image_size=16)
    for photo, line in zip(photos, said.splitlines(), strict=True):
        with torch.no_grad():
            scores = model(data.normalise(read_image(photo, size=16)[None])).softmax(1)[0]
        best = int(scores.argmax())
        assert line.startswith(f"{photo}  {data.classes[best]} {scores[best]:.2f}, {data.classes[1 - best]} ")
    for folder in (out / "dyconv", out / "dyconv" / "seed-0"):
        assert run("predict", folder, *photos, "--cpu")[:2] == (0, said)
    code, said, _ = run("predict", out / "dyconv", images / "test" / "dark", "--cpu")
    assert code == 0
    assert [line.split("  ")[0] for line in said.splitlines()] == [str(images / f"test/dark/{i}.png") for i in range(4)]
    code, _, err = run("predict", out / "dyconv", images / "test", "--cpu")
    assert code == 2 and f"the folder {images / 'test'} has no images" in one_line(err)
    code, _, err = run("predict", out, photos[0])
    assert code == 2 and "has several classifiers; give one, such as" in err and "seed-0/checkpoint.pt" in err
    code, _, err = run("predict", out / "dyconv", out / "results.json", "--cpu")
    assert code == 2 and "results.json is not a readable image" in one_line(err)
    code, some, err = run("predict", out / "dyconv", photos[0], out / "results.json", *photos[1:], "--cpu")
    assert (code, some) == (2, said_of_all) and "results.json is not a readable image" in one_line(err)


@pytest.mark.parametrize("parts", [{"train": 4, "test": 2}, {"": 10}], ids=["apart", "mixed"])
def test_few_photos_to_test_on_are_told_with_the_way_to_more(run, tmp_path, parts):
    for part, count in parts.items():
        for name in ("cat", "dog"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")
    code, said, _ = run("data", f"folder:{tmp_path}")
    assert code == 0 and re.search(r"One of \d test images is \d\d(\.\d)? points of accuracy", said)
    assert (": keep more for testing. Folders train/CLASS" in said) == ("" in parts)  # who has them needs no telling


def test_eval_of_a_truncated_checkpoint(run, finished, tmp_path):
    whole = (finished[0] / "static" / "seed-0" / "checkpoint.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    code, _, err = run("eval", tmp_path / "cut.pt")
    assert code == 2
    assert f"{tmp_path}/cut.pt is truncated" in one_line(err)


def test_ctrl_c_before_the_first_step_says_that_nothing_was_done(run, tiny, tmp_path, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("convary.train.compare", interrupted)
    code, _, err = run("compare", *tiny, "--out", tmp_path / "out")
    assert code == 130 and "interrupted; nothing was done yet. Start again with: convary compare" in err


def test_ctrl_c_while_times_are_measured_leaves_scores_and_report(run, tiny, tmp_path, monkeypatch):
    out, latency = tmp_path / "out", measure.latency

    def interrupted(*args):
        assert "not measured" in (out / "report.html").read_text(), "the report is there before"
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "latency", interrupted)
    code, said, err = run("compare", *tiny, "--out", out, "--watch")
    assert code == 130 and "Traceback" not in err and "so far without times and memory" in said
    told = f"all but times and memory (results.json and report.html) is saved in {out}. Resume with: convary compare"
    assert told in err
    assert "not measured" in (out / "report.html").read_text(), "the page that is watched does not take its place"
    monkeypatch.setattr(measure, "latency", latency)
    code, said, _ = run("compare", *shlex.split(err.partition("Resume with: ")[2])[2:])
    assert code == 0 and "epoch" not in said and "measuring 2/2: latency of dyconv" in said
    assert "not measured" not in said and "not measured" not in (out / "report.html").read_text()


def test_no_seconds_measure_no_times(run, tiny, tmp_path):
    code, said, _ = run("compare", *tiny, "--measure-seconds", "0", "--out", tmp_path / "out")
    assert code == 0 and "measuring and the report" not in said and "training step of" not in said
    assert re.search(r"^DyConv .* not measured *$", said, re.MULTILINE) and "times are not measured" in said


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_resume(tiny, tmp_path):
    out = tmp_path / "out"
    words = ["compare", *tiny, "--epochs", "500", "--out", out]
    started = subprocess.Popen(
        command_line(*words), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not (out / "static").exists() and time.monotonic() < until:
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 130
    assert "Traceback" not in err
    assert f"saved in {out}" in err
    command = shlex.split(err.partition("Resume with: ")[2])
    assert command[:2] == ["convary", "compare"]
    given = parse(CompareConfig, [str(word) for word in words[1:]], "given")
    assert parse(CompareConfig, command[2:], "resumed") == given
    assert (out / "static" / "seed-0" / "checkpoint.pt").exists()


def test_the_table_has_a_spread_for_several_seeds():
    from rich.console import Console

    ratio = {"ms": 1.0, "ratio": 1.0, "low": 1.0, "high": 1.0}
    method = {
        "name": "static",
        "title": "static",
        "citation": None,
        "layers": 0,
        "params": 10,
        "macs": {"convolution": 10, "routing": 0, "assembly": 0, "other": 0},
        "latency": [{"batch": 1, **ratio}],
        "step": {"batch": 2, **ratio},
        "top1": {"mean": 81.234, "std": 0.567},
    }
    console = Console(width=100)
    with console.capture() as said:
        console.print(compare_command.results_table({"run": {"seeds": [0, 1]}, "methods": [method]}))
    assert "81.23 ± 0.57" in said.get()
    assert "Mean ± std over 2 seeds" in said.get()


def test_the_table_shows_how_sure_times_are_where_there_is_room():
    from rich.console import Console

    results = synthetic_results(methods=("static", "odconv"))
    entry = results["methods"][1]["latency"][0]
    wide = Console(width=200).measure(compare_command.results_table(results)).maximum
    for width, room in ((wide - 1, False), (wide, True)):
        console = Console(width=width)
        with console.capture() as said:
            console.print(compare_command._fitting(results, console))
        assert (f"{entry['low']:.2f}–{entry['high']:.2f}" in said.get()) == room
        assert ("10th to 90th percentile" in " ".join(said.get().split())) == room
        assert f"{entry['ratio']:.2f}×" in said.get() and "…" not in said.get()


def test_a_terminal_of_80_columns_breaks_no_heading():
    from rich.console import Console

    results = synthetic_results(methods=("static", "dyconv", "odconv"), seeds=3)
    results["methods"][1]["title"] = "static, MACs of ODConv"
    console = Console(width=80)
    with console.capture() as said:
        console.print(compare_command._fitting(results, console))
    lines = said.get().splitlines()
    assert lines[1].split() == ["method", "top-1", "%", "static", "params", "MACs", "batch", "1", "batch", "16", "step"]
    assert "…" not in said.get() and "assembly" not in said.get() and max(map(len, lines)) <= 80


def test_times_of_a_busy_machine_are_not_shown_as_cost(tmp_path):
    from rich.console import Console

    results = synthetic_results(methods=("static", "odconv"))
    static, odconv = results["methods"]
    static["latency"][0] |= {"low": 0.96, "high": 470.32}
    static["step"] |= {"low": 0.7, "high": 1.1}
    console = Console(width=110)
    with console.capture() as said:
        compare_command._finish(results, tmp_path, console)
    told = " ".join(said.get().split())
    assert "static against itself took 0.70 to 470.32 times as long; measure again on a quiet one" in told
    row = next(line for line in said.get().splitlines() if line.startswith("ODConv"))
    assert row.split()[-5:] == ["too", "noisy", f"{odconv['latency'][1]['ratio']:.2f}×", "too", "noisy"]
