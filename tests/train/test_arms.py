# SPDX-License-Identifier: Apache-2.0
"""What is compared beside the methods: static networks of other widths, neutral starts, and several runs at a time."""

import json
import multiprocessing
import subprocess
import sys
import time

import psutil
import pytest
import torch

import convary as cv
from convary.bench.timing import Timing
from convary.data import load
from convary.errors import CheckpointError, ConfigError, ConvaryError
from convary.models import SE, attend, build
from convary.nn import DynamicConv, Router
from convary.train import CompareConfig, Progress, compare, widths
from convary.train.arms import read_arm
from convary.train.evaluation import score
from convary.train.networks import architecture, start_weights
from convary.train.paired import paired, student


def test_small_networks_have_the_published_sizes_and_widths():
    assert sum(p.numel() for p in build("convnet_nano", 10, 1, (28, 28)).parameters()) == 3332
    assert sum(p.numel() for p in build("one_conv", 4, 1, (16, 16)).parameters()) == 64
    wide = build("convnet_nano@2", 10, 1, (28, 28))
    assert [m.out_channels for m in wide.modules() if isinstance(m, torch.nn.Conv2d)] == [12, 16, 24, 32]
    for name in ("mobilenet_v2_tiny", "resnet20", "torchvision:mobilenet_v2"):
        narrow, usual = build(f"{name}@0.5", 10), build(name, 10)
        assert sum(p.numel() for p in narrow.parameters()) < 0.6 * sum(p.numel() for p in usual.parameters())
    for name in ("timm:resnet10t@0.5", "torchvision:resnet18@2"):
        with pytest.raises(ConfigError, match="has no width to choose"):
            build(name, 10)


@pytest.mark.parametrize("axis", ["macs", "params"])
def test_a_static_network_as_expensive_as_a_method(axis):
    name, data = f"static@{axis}:odconv", load("fashion-mnist-mini")
    config = CompareConfig(model="convnet_nano", where="all & ~first", methods=("static", name, "odconv"))
    built = {arm.name: architecture(arm, config, data, 0).build().eval() for arm in config.arms().values()}
    x = torch.zeros(1, 1, 28, 28)

    def cost(model):
        found = cv.summary(model, x)
        return found.params if axis == "params" else found.convolution + found.routing + found.assembly + found.other

    assert cost(built["static"]) < 0.95 * cost(built["odconv"])
    assert cost(built[name]) == pytest.approx(cost(built["odconv"]), rel=0.04)  # as near as whole channels allow


LATENCY = ("static", "odconv", "static@latency:odconv", "static@latency16:odconv")


def _at_widths(monkeypatch, ms_of_odconv):
    """Let a static network of width w take w milliseconds, and ODConv's ``ms_of_odconv``; returns what is timed."""
    timed = []

    def timing(static, other, x):
        width = next(m for m in static.modules() if isinstance(m, torch.nn.Conv2d)).out_channels / 6
        assert any(isinstance(m, DynamicConv) for m in other.modules())
        timed.append((width, len(x)))
        ratio = width / ms_of_odconv
        return Timing(ms=width, base_ms=ms_of_odconv, ratio=ratio, low=ratio, high=ratio, pairs=9)

    monkeypatch.setattr(widths, "_timing", timing)
    return timed


def test_a_static_network_that_takes_as_long_as_a_method(tmp_path, monkeypatch):
    timed = _at_widths(monkeypatch, 3.0)
    net = {"model": "convnet_nano", "where": "all & ~first", "out": tmp_path}
    config, data = CompareConfig(**net, methods=LATENCY), load("fashion-mnist-mini")
    given = config.arms(), config.out, lambda arm: architecture(arm, config, data, 0), torch.device("cpu")
    found = widths.measure_widths(*given)
    assert list(found) == list(LATENCY[2:]) and {images for _, images in timed} == {1, 16}
    assert all(entry["width"] == pytest.approx(3, rel=0.06) for entry in found.values())  # 18 channels of 6
    before = len(timed)
    assert widths.measure_widths(*given) == {} and len(timed) == before  # they are kept with the run
    made = architecture(config.arms()[LATENCY[2]], config, data, 0)
    assert made.model == f"convnet_nano@{found[LATENCY[2]]['width']:g}"
    assert config.arms()[LATENCY[3]].title == "static, latency of 16 images of ODConv"


@pytest.mark.slow
def test_a_comparison_with_a_static_network_of_equal_latency_grows(make):
    net = {"model": "convnet_nano", "where": "all & ~first", "image_size": 32}  # of images so large width takes time
    net |= {"methods": LATENCY[:3], "measure_seconds": 0.0}
    results = compare(config := make(**net, seeds=1))  # on a real clock
    width = json.loads((config.out / "widths.json").read_text())[LATENCY[2]]["width"]
    entry = next(entry for entry in results["methods"] if entry["name"] == LATENCY[2])
    assert entry["params"] == sum(
        p.numel() for p in build(f"convnet_nano@{width}", 4, results["data"]["shape"][0]).parameters()
    )
    grown = compare(make(**net, seeds=2, out=config.out))
    assert json.loads((config.out / "widths.json").read_text())[LATENCY[2]]["width"] == width
    assert len(grown["methods"][2]["seeds"]) == 2 and grown["methods"][2]["seeds"][0] == entry["seeds"][0]


@pytest.mark.parametrize(
    ("ms", "model", "said"),
    [
        (0.9, "convnet_nano", r"static network is no faster than odconv here \(1.11 of its latency\); leave static@l"),
        (40.0, "convnet_nano", "no static network up to 16 times as wide has the latency of odconv"),
        (3.0, "timm:resnet10t", "has no width to choose"),
    ],
)
def test_a_latency_that_no_static_network_has(make, monkeypatch, ms, model, said):
    _at_widths(monkeypatch, ms)
    with pytest.raises(ConfigError, match=said):
        compare(make(model=model, where="all & ~first", methods=LATENCY[:3]))


def test_a_width_that_nobody_measured():
    config = CompareConfig(model="convnet_nano", where="all & ~first", methods=LATENCY[:3])
    data = load("fashion-mnist-mini")
    with pytest.raises(ConfigError, match="is measured when its comparison starts"):
        architecture(config.arms()[LATENCY[2]], config, data, 0)


def test_folders_of_arms_are_names_on_every_system():
    assert read_arm("static@macs:odconv").folder == "static@macs-odconv"


def test_a_neutral_start_routes_all_images_alike_at_the_final_temperature():
    data = load("fashion-mnist-mini")
    config = CompareConfig(model="convnet_nano", where="all & ~first", methods=("dyconv", "odconv"), init="neutral")
    for arm in config.arms().values():
        model = architecture(arm, config, data, 0).build()
        found = [float(m.temperature) for m in model.modules() if isinstance(m, Router) and m.temperature is not None]
        assert set(found) == {1.0}
        for coeffs in cv.routing(model.eval(), torch.randn(5, 1, 28, 28)).values():
            assert all(torch.equal(factor, factor[:1].expand_as(factor)) for factor in coeffs.factors().values())
        banks = [m.weight for m in model.modules() if isinstance(m, DynamicConv)]
        assert len(banks) == 3 and all(bank.std(0).max() > 0 for bank in banks)  # experts stay apart


@pytest.mark.slow
def test_everything_starts_from_a_trained_network(make, tmp_path):
    net = {"model": "convnet_nano", "where": "all & ~first"}
    first = compare(make(**net, methods=("static",), out=tmp_path / "first", seeds=2))
    config = make(**net, methods=("static", "odconv"), init="upcycle", start=tmp_path / "first", seeds=2)
    data = load(config.data, image_size=config.image_size)
    for seed, trained in enumerate(first["methods"][0]["seeds"]):
        arms = config.arms().values()
        built = [architecture(arm, config, data, seed).build(start_weights(config, data, seed)) for arm in arms]
        tops = {round(score(model.eval(), data, 8, "cpu").top1, 3) for model in built}
        assert tops == {round(trained["top1"], 3)}
    results = compare(config)
    assert results["run"]["start"] == str(tmp_path / "first") and len(results["methods"][1]["paired"]["gaps"]) == 2


def test_a_start_that_cannot_be(make, tmp_path):
    net = {"model": "convnet_nano", "where": "all & ~first", "methods": ("static",)}
    compare(make(**net, out=tmp_path / "first"))
    again = {"init": "upcycle", "start": tmp_path / "first"}
    with pytest.raises(ConfigError, match=r"has model convnet_nano and this comparison convnet_nano@2; start from a"):
        compare(make(**net | again | {"model": "convnet_nano@2", "out": tmp_path / "wide"}))
    with pytest.raises(CheckpointError, match="no checkpoint .*seed-1"):
        compare(make(**net | again | {"seeds": 2, "out": tmp_path / "two"}))
    (tmp_path / "first" / "results.json").unlink()
    with pytest.raises(ConfigError, match="first is not finished, so nothing can start from it"):
        compare(make(**net | again | {"out": tmp_path / "early"}))


def test_paired_gaps():
    found = paired([81.0, 82.0, 84.0], [80.0, 82.5, 82.0])
    assert found["gaps"] == [1.0, -0.5, 2.0] and found["wins"] == 2
    assert found["mean"] == pytest.approx(0.8333, abs=1e-4) and found["std"] == pytest.approx(1.2583, abs=1e-4)
    assert found["high"] - found["mean"] == pytest.approx(4.303 * 1.2583 / 3**0.5, abs=1e-3)
    assert paired([81.0], [80.0]) is None


@pytest.mark.parametrize(("freedom", "right"), [(1, 12.706), (7, 2.365), (30, 2.042), (31, 2.0395), (60, 2.0003)])
def test_students_t(freedom, right):
    assert student(freedom) == pytest.approx(right, abs=5e-4)


def test_the_control_needs_both_rules():
    data = load("control")
    assert (len(data.train.labels), len(data.test.labels), data.shape) == (6400, 4000, (1, 16, 16))
    assert torch.equal(data.train.images, load("control").train.images)
    means = data.train.images.float().mean((1, 2, 3))
    assert 0.45 < float((means > 127).float().mean()) < 0.55
    assert data.train.labels.bincount().min() > 1400


@pytest.mark.slow
def test_a_killed_job_is_told_and_goes_on(make, tmp_path):
    config = make(methods=("static", "odconv"), model="convnet_nano", where="all & ~first", jobs=2, threads=1)

    class Killing(Progress):
        def on_step(self, run, step):
            for child in multiprocessing.active_children():
                child.kill()

    with pytest.raises(ConvaryError, match=r"was killed, perhaps for want of memory.*fewer --jobs than 2"):
        compare(config, Killing())
    assert [entry["name"] for entry in compare(config)["methods"]] == ["static", "odconv"]


ORPHANS = """
import json, multiprocessing, sys
from convary.bench.timing import Timing
from convary.train import CompareConfig, Progress, compare, widths

class Told(Progress):
    def on_step(self, run, step):
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)

if __name__ == "__main__":
    config = json.loads(sys.argv[1])
    compare(CompareConfig(**config), Told())
"""


@pytest.mark.slow
def test_a_killed_comparison_leaves_no_job_behind(make, tmp_path):
    config = make(methods=("static", "odconv"), epochs=1000, jobs=2, threads=1, save_every=1000.0)
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    command = [sys.executable, script, json.dumps(config.to_dict())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
    assert len(pids) == 2
    until = time.monotonic() + 30
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert any(config.out.rglob("checkpoint.pt"))  # saved before they ended


@pytest.mark.slow
def test_jobs_give_what_one_after_the_other_gives(make, tmp_path):
    options = {"methods": ("static", "odconv", "static@1.5"), "model": "convnet_nano", "where": "all & ~first"}
    one = compare(make(**options, seeds=2, threads=1, out=tmp_path / "one"))
    two = compare(make(**options, seeds=2, threads=1, jobs=2, out=tmp_path / "two"))
    for a, b in zip(one["methods"], two["methods"], strict=True):
        assert a["top1"] == b["top1"] and a.get("paired") == b.get("paired")
        assert [s["top1"] for s in a["seeds"]] == [s["top1"] for s in b["seeds"]]
    assert two["methods"][0].get("paired") is None and len(two["methods"][1]["paired"]["gaps"]) == 2


@pytest.mark.slow
def test_comparators_train_and_are_measured(make):
    names = ("static", "se", "cbam", "eca", "we")
    results = compare(make(methods=names, model="resnet20@0.25", epochs=1))
    entries = {entry["name"]: entry for entry in results["methods"]}
    assert list(entries) == list(names) and all(entry["diagnosis"] is None for entry in entries.values())
    assert entries["we"]["params"] == entries["static"]["params"]  # as shipped
    assert entries["se"]["params"] > entries["eca"]["params"] > entries["static"]["params"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"methods": ("we",), "init": "upcycle"}, "we cannot start as what the static network computes"),
        ({"methods": ("odconv",), "init": "neutral", "anneal_epochs": 1.0}, "leave anneal_epochs out"),
    ],
)
def test_arms_that_cannot_be(options, said):
    with pytest.raises(ConfigError, match=said):
        CompareConfig(**options)


def test_networks_without_a_place_or_a_width_are_named():
    for name in ("torchvision:mobilenet_v3_small", "timm:mobilenetv3_small_050"):
        with pytest.raises(ConfigError, match="no place for SE|attentions of its own"):
            attend(build(name, 10), SE())
    with pytest.raises(ConfigError, match="leaves nothing of a layer of 6 channels"):
        build("convnet_nano@0.01", 10)
    config = CompareConfig(model="convnet_nano", methods=["static", "eca", "static@macs:eca"])
    with pytest.raises(ConfigError, match="no wider network is nearer"):
        architecture(config.arms()["static@macs:eca"], config, load("fashion-mnist-mini"), 0)
