# SPDX-License-Identifier: Apache-2.0
"""``convary predict``: every system draws what it makes of a file, out of its checkpoint alone; and its report."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from convary import cli
from convary.report import system as page
from convary.systems import SYSTEMS, config_of
from convary.systems import hdfnet as hdfnet_system
from convary.systems.trained import restored
from convary.train.fit import fit
from tests.data.written import gradient, write_video
from tests.models.nets import tiny_hdfnet

SMALL = {
    "dfn-moving-mnist": {"size": 16, "seen": 2, "predicted": 2, "sequences": 3, "digits": "scikit-learn"},
    "dfn-steerable": {"crops": 2},
    "dfn-video": {"hidden": 8, "kernel_size": 5, "crop": 12, "height": 24},
    "dmnet": {"channels": 4, "crop": 32},
    "hdfnet": {"size": 32},
    "condinst": {"backbone": "resnet18", "convs": 1, "mask_channels": 8, "short": (64,), "long": 128},
    "detection": {"short": (64,), "long": 96, "channels": 16, "hidden": 16, "regions": 8},
}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """HDFNet's encoders cost nothing."""
    made = lambda backbone, *, pretrained, recompute: tiny_hdfnet(recompute=recompute)  # noqa: E731
    monkeypatch.setattr(hdfnet_system, "hdfnet", made)


def trained(name, folder, **options):
    config = config_of(name)(**{"out": folder, "steps": 1, "batch_size": 1, "cpu": True, **SMALL[name], **options})
    return config, fit(config)


def own_file(folder, name):
    """A photograph with its depth, or a video."""
    if name in ("dfn-video", "dfn-moving-mnist"):
        frames = np.random.default_rng(0).integers(0, 256, (5, 32, 40, 3), dtype=np.uint8)
        return write_video(folder / "own.mkv", frames)
    Image.effect_mandelbrot((60, 44), (-2, -1, 1, 1), 50).convert("RGB").save(folder / "own.jpg")
    Image.fromarray(gradient((60, 44))).save(folder / "own_depth.png")
    return folder / "own.jpg"


SLOW = ("dmnet", "condinst", "detection")  # they score a photograph or two of full size
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in SMALL]


@pytest.mark.parametrize("name", NAMES)
def test_draws_what_it_makes_of_a_file(name, tmp_path, capsys):
    config, _ = trained(name, tmp_path / "run")
    system, model, step = restored(tmp_path / "run")
    assert step == 1 and system.config.identity() == config.load().config.identity() and not model.training
    source = own_file(tmp_path, name)
    assert cli.main(["predict", str(tmp_path / "run"), str(source), "--cpu"]) == 0
    assert "predictions/own.png" in capsys.readouterr().out
    with Image.open(tmp_path / "run" / "predictions" / "own.png") as picture:
        assert picture.width > 300 and len(set(picture.convert("L").tobytes())) > 20


def test_every_system_is_tried():
    assert {name for name in SYSTEMS if not name.endswith("-published")} == set(SMALL)


@pytest.mark.parametrize("name", NAMES)
def test_every_score_says_what_it_is(name, tmp_path):
    system = config_of(name)(out=tmp_path, **SMALL[name]).load()
    with torch.no_grad():
        scores = system.scores(system.model().eval(), torch.device("cpu"))
    meanings = [system.measures[score.split()[-1]] for score in scores]
    assert all(re.search("higher is better|lower is better|to compare with", meaning) for meaning in meanings)
    assert system.scored_on.startswith("Scored on ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere", "a.jpg"], "no folder nowhere of a trained system.*or give a system: dfn-moving-mnist"),
        (
            ["runs/mine/odconv/seed-0/checkpoint.pt", "own.jpg"],
            "no file runs/mine/odconv/seed-0/checkpoint.pt; "
            "did you mean 'runs/mine/odconv-experts=2/seed-0/checkpoint.pt'",
        ),
        (["runs/min", "own.jpg"], "no folder runs/min; did you mean 'runs/mine'"),
        (["far/away/checkpoint.pt", "own.jpg"], "no file far/away/checkpoint.pt; give OUT/METHOD/seed-N/checkpoint.pt"),
        (["hdfnet", "a.jpg"], "no folder runs/hdfnet.*run convary train hdfnet"),
        (["empty", "own.jpg"], "no checkpoint empty/checkpoint.pt; convary train writes OUT/checkpoint.pt"),
        (["empty", "a.jpg"], "no file a.jpg"),
        (["empty", "own.jpg", "own_depth.png", "b/own.png"], "same name but for folder and ending"),
        (["empty", "b/own.png", "--out", "b"], "would take the place of .*own.png"),
    ],
)
def test_what_is_wrong_is_one_line(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_file(tmp_path, "hdfnet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "b").mkdir()
    for arm in ("static", "odconv-experts=2"):
        (tmp_path / f"runs/mine/{arm}/seed-0").mkdir(parents=True)
        (tmp_path / f"runs/mine/{arm}/seed-0/checkpoint.pt").touch()
    (tmp_path / "b" / "own.png").write_bytes((tmp_path / "own_depth.png").read_bytes())
    assert cli.main(["predict", *argv]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_depth_may_lie_in_a_folder_of_its_own(tmp_path, capsys):
    trained("hdfnet", tmp_path / "run")
    own_file(tmp_path, "hdfnet")
    for folder, old, new in (("RGB", "own.jpg", "own.jpg"), ("Depth", "own_depth.png", "own.png")):
        (tmp_path / "set" / folder).mkdir(parents=True)
        (tmp_path / old).rename(tmp_path / "set" / folder / new)
    photo = tmp_path / "set" / "RGB" / "own.jpg"
    assert cli.main(["predict", str(tmp_path / "run"), str(photo), "--cpu"]) == 0
    (tmp_path / "set" / "Depth" / "own.png").unlink()
    assert cli.main(["predict", str(tmp_path / "run"), str(photo), "--cpu"]) == 2
    assert "no depth for" in capsys.readouterr().err


def test_the_report_has_scores_meanings_pictures_and_curves(tmp_path):
    _, results = trained("hdfnet", tmp_path, steps=4, evaluate_every=2)
    html = page.page(results, tmp_path)
    assert "Scored on the photograph that it was trained on" in html and "mean absolute error; lower is better" in html
    assert html.count("data:image/png;base64,") == 1 and html.count("<svg") == 1 + len(results["scores"])
    assert f"{results['scores']['max_f']:.4f}" in html and "bce " in html and "<span>hdfnet</span>" in html
    assert not re.search(r'(src|href)="http', html)


def test_the_page_can_be_watched(tmp_path, monkeypatch):
    pages, write = [], page.write

    def kept(results, folder, path, **how):
        write(results, folder, path, **how)
        pages.append(path.read_text())

    monkeypatch.setattr(page, "write", kept)
    argv = ["train", "hdfnet", "--out", str(tmp_path), "--steps", "4", "--evaluate-every", "2", "--size", "32", "--cpu"]
    assert cli.main([*argv, "--watch"]) == 0
    first, *_, last = pages
    assert 'http-equiv="refresh"' in first and "step 2 of 4" in first and "data:image/png" in first
    assert 'http-equiv="refresh"' not in last and "4 steps" in last and last.count("<svg") > first.count("<svg")


def test_the_terminal_says_what_was_scored_and_how_to_go_on(tmp_path, capsys):
    argv = ["train", "hdfnet", "--out", str(tmp_path), "--steps", "1", "--size", "32", "--cpu"]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "mean absolute error; lower is better" in out and "this shows that it can learn" in out
    assert f"convary predict {tmp_path} FILE" in out and (tmp_path / "report.html").stat().st_size > 20_000
    assert cli.main(argv) == 0, "a finished run is shown again"
