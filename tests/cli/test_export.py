# SPDX-License-Identifier: Apache-2.0
"""``export``, of what ``convert`` and ``compare`` wrote and of a network by name."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import convary
from convary import _export, _runtimes
from convary._cli import export, run_file
from convary._cli.run_file import outcomes
from convary._runtimes import Runtime
from convary.bench import timing
from convary.data.photo_format import KEY
from convary.train.classifier import Classifier
from tests.cli.calls import one_line

EXPORTED = {
    "any.onnx": ["--dynamic", "0"],
    "one.onnx": ["--image"],
    "two.onnx": ["--dynamic"],  # of two images at a time, and no other number
    "any.pt2": ["--dynamic", "0"],
    "two.pt2": ["--dynamic"],
}


@pytest.mark.parametrize("name", EXPORTED)
def test_predict_says_the_same_by_an_exported_file(run, finished, images, tmp_path, name):
    checkpoint = finished[0] / "dyconv" / "seed-0" / "checkpoint.pt"
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    out = tmp_path / name
    code, told, _ = run("export", checkpoint, "--out", out, "--no-run", *EXPORTED[name])
    assert code == 0 and f"it knows its 2 classes: convary predict {out} PHOTO..." in " ".join(told.split())
    photos = [images / "test" / kind / "1.png" for kind in ("dark", "bright")]
    want, got = (run("predict", file, *photos, "--cpu") for file in (checkpoint, out))
    assert got == want and got[0] == 0


@pytest.mark.parametrize("name", ["one.onnx", "one.pt2"])
def test_explain_says_what_would_be_written(run, finished, tmp_path, name):
    checkpoint = finished[0] / "dyconv" / "seed-0" / "checkpoint.pt"
    if name.endswith(".onnx"):
        pytest.importorskip("onnxscript")
    out = tmp_path / name
    code, planned, _ = run("export", checkpoint, "--out", out, "--image", "--explain")
    assert code == 0 and not list(tmp_path.iterdir())
    told = run("export", checkpoint, "--out", out, "--image", "--no-run")[1]
    assert "grouped (mixed_conv)" in planned and "multiply-adds" in planned
    (size,) = re.findall(r"\(([\d,]+ KiB.*)\)", told)
    assert planned.splitlines()[:-1] == told.splitlines()[: planned.count("\n") - 1]
    assert planned.splitlines()[-1] == f"{out} would have {size}; nothing was written"


def test_an_exported_file_of_other_images_says_their_size(run, finished, images, tmp_path):
    words = ("--no-run", "--image", finished[0] / "static" / "seed-0" / "checkpoint.pt")
    assert run("export", *words, "--shape", 3, 32, 32, "--out", tmp_path / "large.pt2")[0] == 0
    assert Classifier(tmp_path / "large.pt2").format.shape == (3, 32, 32)
    assert run("predict", tmp_path / "large.pt2", images / "test" / "dark" / "1.png", "--cpu")[0] == 0
    told = run("export", *words, "--shape", 3, 32, 16, "--out", tmp_path / "long.pt2")[1]
    assert "photographs are seen as squares, which --shape is not" in " ".join(told.split())
    with pytest.raises(convary.CheckpointError, match="does not say its classes"):
        Classifier(tmp_path / "long.pt2")


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_predict_of_a_file_that_says_no_classes(run, images, tmp_path, suffix):
    photo, net = images / "test" / "dark" / "1.png", torch.nn.Flatten()
    broken, bare, odd = (tmp_path / f"{name}.{suffix}" for name in ("broken", "bare", "odd"))
    broken.write_text("no network")
    convary.export(net, (1, 3, 4, 4), bare, dynamic=())
    convary.export(net, (1, 3, 4, 4), odd, dynamic=(), notes={KEY: "{}"})
    wanted = {
        broken: f"{broken} can't be read as .{suffix}: .*; export it again",
        bare: f"{bare} does not say its classes; export it from a checkpoint of convary compare, or with convary",
        odd: "'{}' does not say how photographs are read; export the file again",
    }
    for file, message in wanted.items():
        code, told, err = run("predict", file, photo, "--cpu")
        assert (code, told) == (2, "") and re.search(message, one_line(err))


def told_change(told: str) -> float:
    return float(re.search(r"scores within (\S+) of the network's", " ".join(told.split()))[1])


def test_a_torch_program_is_timed_by_one_thread(tmp_path, monkeypatch):
    seen, net = [], torch.nn.Sequential(convary.CondConv2d(1, 2, 3, experts=2)).eval()
    x, path, before = torch.randn(1, 1, 8, 8), tmp_path / "net.pt2", torch.get_num_threads()

    def noted(ours, base, seconds, clock):
        assert ours().shape == base().shape == (1, 2, 6, 6)
        seen.append(torch.get_num_threads())
        return timing.Timing(ms=0.5123, base_ms=12.34, ratio=2.0, low=1.9, high=2.1, pairs=9)

    monkeypatch.setattr(timing, "interleave", noted)
    convary.export(net, x, path, dynamic=())
    torch.set_num_threads(2)
    try:
        (told,) = outcomes(path, net, x, ())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1]
    assert told.startswith("torch: scores within ") and told.endswith(
        " of the network's on 1 image; 512 µs, 2.00 times (1.90 to 2.10) the 12.3 ms of the static network's file"
    )


def test_each_runtime_has_a_line(tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    net, x, path = torch.nn.Sequential(convary.CondConv2d(1, 2, 3, experts=2)).eval(), torch.randn(1, 1, 8, 8), tmp_path
    convary.export(net, x, path / "net.onnx", dynamic=())

    def refuse(path, threads):
        raise KeyError("Node node_conv2d is not implemented")

    known = {
        "onnxruntime": Runtime("torch", lambda path, threads: net, lambda: ()),
        "OpenVINO": Runtime("no_such_module", refuse, lambda: ()),
        "OpenCV": Runtime("torch", refuse, lambda: (KeyError,)),
    }
    monkeypatch.setattr(_runtimes, "_ONNX", known)
    monkeypatch.setattr(run_file, "SECONDS", 0.0)
    good, absent, refused = outcomes(path / "net.onnx", net, x, ())
    assert good.startswith("onnxruntime: scores within ") and "of the static network's file" in good
    assert absent == "OpenVINO: not run, for it is not installed"
    assert re.fullmatch(r"OpenCV: does not take it: 'Node node_conv2d is not implemented' \(layer '0'\)", refused)
    net = torch.nn.Sequential(*(convary.CondConv2d(1, 1, 3, experts=2) for _ in range(2))).eval()
    convary.export(net, x, path / "two.onnx", dynamic=())
    words = "parse error in (onnx_node!node_conv2d_1)"  # and not in node_conv2d, whose name begins alike
    assert _runtimes._words(KeyError(words), path / "two.onnx") == f"{words!r} (layer '1')"
    known["onnxruntime"] = Runtime("torch", lambda path, threads: lambda x: net(x)[:0], lambda: ())
    assert "onnxruntime: WRONG, it answers (0, 1, 4, 4) where the network answers (1, 1, 4, 4)" in next(
        outcomes(path / "net.onnx", net, x, ())
    )
    known["onnxruntime"] = Runtime("torch", lambda path, threads: lambda x: net(x)[:2], lambda: ())
    free = outcomes(path / "net.onnx", net, x, (0,))
    assert "on 1 image, but WRONG for 3, where it answers (2, 1, 4, 4) and the network (3, 1, 4, 4); " in next(free)
    (only,) = outcomes(path / "net.onnx", net, x, (), "onnxruntime")
    assert only.startswith("onnxruntime: ")
    (only,) = outcomes(path / "net.onnx", net, x, (), "openvino")
    assert only == "OpenVINO: not run, for it is not installed"


@pytest.mark.slow
def test_export_of_what_convert_and_compare_wrote(run, finished, tmp_path):
    words = ("--model", "timm:test_byobnet", "--method", "odconv", "--experts", 2, "--weights", "random")
    assert run("convert", *words, "--where", "last", "--out", tmp_path / "model.pt")[0] == 0
    checkpoint = finished[0] / "dyconv" / "seed-0" / "checkpoint.pt"
    sources = {
        "free.pt2": (tmp_path / "model.pt", "--shape", 3, 64, 64, "--dynamic", 0),
        "fixed.pt2": (checkpoint, "--strategy", "outputs", "--dynamic"),
    }
    for name, source in sources.items():
        code, told, error = run("export", *source, "--out", tmp_path / name)
        assert (code, error) == (0, "")
        told = " ".join(told.split())
        assert f"wrote {tmp_path / name} (" in told and "of the static network's file" in told
        form = {"free.pt2": "bmm (mixed_conv): mixed kernels", "fixed.pt2": "outputs (mixed_conv): a convolution per"}
        assert form[name] in told and told_change(told) < 1e-4
        batch = {"free.pt2": 1, "fixed.pt2": 2}[name]
        assert re.search(f"torch: scores within .* of the network's on {batch} image", told)
    assert torch.export.load(tmp_path / "free.pt2").module()(torch.randn(5, 3, 64, 64)).shape[0] == 5


@pytest.mark.slow
def test_export_to_onnx_is_run_by_onnxruntime(run, finished, tmp_path):
    pytest.importorskip("onnxruntime")
    checkpoint = finished[0] / "dyconv" / "seed-0" / "checkpoint.pt"
    code, told, _ = run("export", checkpoint, "--out", tmp_path / "model.onnx", "--dynamic", 0)
    assert code == 0 and "onnxruntime: scores within" in told and told_change(told) < 1e-3
    words = ("--image", "--runtime", "onnxruntime", "--no-run", "--out", tmp_path / "one.onnx")
    code, told, _ = run("export", checkpoint, *words)
    assert code == 0 and "nodes" in told and "grouped (mixed_conv)" in told and "scores within" not in told


def test_export_says_the_forms_before_it_writes(run, tmp_path, monkeypatch):
    def fails(*_):
        raise convary.ExportError("no room left")

    monkeypatch.setattr(_export, "_write", fails)
    words = ("--model", "timm:test_byobnet", "--method", "condconv", "--where", "last", "--weights", "random")
    more = ("--shape", 3, 64, 64, "--image", "--runtime", "executorch")
    code, told, error = run("export", *words, *more, "--out", tmp_path / "model.pt2")
    assert code == 2 and "1 x taps (mixed_conv): mixed kernels, a product for each tap" in told and "no room" in error


def test_export_names_the_faster_forms_after_the_default_one(run, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.setattr(export, "outcomes", lambda *_: iter(()))
    words = ("--model", "timm:test_byobnet", "--method", "condconv", "--where", "last", "--weights", "random")
    more = ("--shape", 3, 64, 64, "--image", "--out", tmp_path / "model.onnx")
    for runtime, named in (("any", True), ("openvino", False)):
        code, told, _ = run("export", *words, *more, "--runtime", runtime)
        assert code == 0 and "grouped (mixed_conv)" in told
        readers = "OpenVINO" if runtime == "openvino" else "onnxruntime and OpenVINO and OpenCV"
        cost = r"for an image \d\.\d million multiply-adds, 1\.\d\d times a static network's, and [\d.]+ MiB of weights"
        assert re.search(f"{cost} to read; for {readers}\n", told)
        assert ("faster in onnxruntime: " in told) == named
        assert ("faster in OpenVINO: --runtime openvino" in told) == named


def test_export_tells_of_a_hot_router(run, tmp_path):
    words = ("--model", "timm:test_byobnet", "--method", "kernelwarehouse", "--where", "last", "--weights", "random")
    code, told, error = run("export", *words, "--shape", 3, 64, 64, "--dynamic", 0, "--out", tmp_path / "model.pt2")
    assert (code, error) == (0, "")
    assert "note: exporting routers at temperature 1, above the final 0" in " ".join(told.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "wants FILE or --model, and not both"),
        ("{tmp}/none.pt --model timm:test_byobnet", "wants FILE or --model, and not both"),
        ("{tmp}/none.pt --method odconv", "none.pt says itself what it is"),
        ("{tmp}/none.pt", "there is no file {tmp}/none.pt; write one with convary convert, convary compare or"),
        ("{tmp}/plain.pt", "which of its layers are dynamic; write it with convary convert, convary compare or"),
        ("{tmp}/text.pt", "text.pt is truncated or no checkpoint"),
        (
            "--model timm:test_byobnet --weights random --dynamic 4",
            "--dynamic takes axes of the input, 0 to 3; got (4,)",
        ),
        ("--model timm:test_byobnt", "did you mean"),
        ("--model timm:test_byobnet --weights random --method odconf", "did you mean 'odconv'?"),
        ("--model timm:test_byobnet --weights random --strategy loop", "invalid choice 'loop'"),
        ("--model timm:test_byobnet --weights random --image --dynamic 0", "--image is for one image of one shape"),
        ("--model timm:test_byobnet --weights random --runtime onnxruntime", "is for .onnx files; got"),
        (
            "--model timm:test_byobnet --weights random --runtime openvino --out {tmp}/model.onnx",
            "runtime='openvino' is for images of one size: give dynamic=() for one of them, dynamic=(0,) for any",
        ),
        ("--model timm:test_byobnet --weights random --out {tmp}/model.pb", "must end in .onnx (ONNX) or .pt2"),
    ],
)
def test_export_says_what_is_wrong_and_writes_nothing(run, tmp_path, words, message):
    (tmp_path / "text.pt").write_text("text")
    torch.save(torch.nn.Linear(1, 1).state_dict(), tmp_path / "plain.pt")
    argv = words.format(tmp=tmp_path).split()
    code, told, error = run("export", *argv, *([] if "--out" in argv else ["--out", tmp_path / "model.pt2"]))
    assert (code, told) == (2, "")
    assert message.format(tmp=tmp_path) in one_line(error)
    assert "convary.save(" not in error, "export reads none of its files"
    assert not list(tmp_path.glob("model.*"))


def test_a_network_with_tensorflows_padding_is_timed_beside_its_static_one(tmp_path):
    """TensorFlow's padding with a stride, as in all of timm's tf_* networks."""
    model = nn.Sequential(convary.ODConv2d(3, 4, 3, stride=2, padding="same", experts=2)).eval()
    convary.set_temperature(model, 1.0)
    x, file = torch.randn(1, 3, 8, 8), tmp_path / "same.onnx"
    convary.export(model, x, file)
    told = list(outcomes(file, model, x, ()))
    assert any(line.startswith("onnxruntime: scores within") and "times (" in line for line in told)
