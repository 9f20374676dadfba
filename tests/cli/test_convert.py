# SPDX-License-Identifier: Apache-2.0
"""``convert``, and what reads its file."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re

import pytest
import torch

import convary
from convary import models
from convary._cli.convert import Convert
from convary._cli.export import Export
from convary.data import load as load_data
from convary.nn import DynamicLayer
from convary.train import load_model


@pytest.mark.parametrize("name", ["static", "dyconv"])
def test_restore_reads_what_compare_trained(finished, name, images):
    """By a path as text too; it gives the accuracy that was measured."""
    path = finished[0] / name / "seed-0" / "checkpoint.pt"
    model, data = models.restore(str(path)), load_data(f"folder:{images}", image_size=16)
    assert not model.training and any(isinstance(m, DynamicLayer) for m in model.modules()) == (name == "dyconv")
    results = json.loads((finished[0] / "results.json").read_text())["methods"]
    with torch.no_grad():
        scores = model(data.normalise(data.test.batch(torch.arange(len(data.test.labels)))))
    top1 = 100 * (scores.argmax(1) == data.test.labels).float().mean()
    assert top1 == pytest.approx(next(method["top1"]["mean"] for method in results if method["name"] == name))
    for again in (load_model(str(path)), load_model(path)):
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


@pytest.fixture
def weights(tmp_path):
    """A checkpoint of a small network of torchvision, as training would leave it."""
    torch.manual_seed(0)
    model = models.create("torchvision:squeezenet1_1")
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "trained.pt")
    return tmp_path / "trained.pt", model.eval()


def test_convert_writes_a_file_that_is_rebuilt_from_it_alone(run, weights, tmp_path):
    file, static = weights
    out = tmp_path / "new" / "model.pt"
    words = ("--model", "torchvision:squeezenet1_1", "--method", "odconv", "--experts", 2, "--where", "kernel_size(3)")
    code, told, error = run("convert", *words, "--weights", file, "--out", out)
    assert (code, error) == (0, "")
    assert "9 of 26 layers become ODConv" in told and f"wrote {out}" in " ".join(told.split())
    dynamic = models.restore(out)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert (dynamic(x) - static(x)).abs().max() <= 1e-4 * static(x).abs().max()
    assert sum(isinstance(m, convary.ODConv2d) for m in dynamic.modules()) == 9
    content = torch.load(out, weights_only=True)
    dynamic.load_state_dict(content["state_dict"])
    assert (content["network"], len(content["recipe"]["layers"])) == ("torchvision:squeezenet1_1", 9)


def test_defaults_of_convert_and_export_are_those_of_the_functions():
    for flags, function in ((Convert, convary.convert), (Export, convary.export)):
        known = inspect.signature(function).parameters.values()
        options = {option.name: option.default for option in known if option.kind is option.KEYWORD_ONLY}
        options = {k: str(v).removeprefix("torch.") if isinstance(v, torch.dtype) else v for k, v in options.items()}
        given = {field.name: field.default for field in dataclasses.fields(flags) if field.name in options}
        assert given and given.items() <= options.items()


def test_convert_takes_any_network_of_timm(run, tmp_path):
    words = ("--model", "timm:test_efficientnet", "--method", "condconv", "--router", "block", "--where", "blocks")
    code, told, _ = run("convert", *words, "--weights", "random", "--out", tmp_path / "model.pt")
    assert code == 0 and "become CondConv" in told
    assert any(hasattr(m, "router") for m in models.restore(tmp_path / "model.pt").modules())


def no_network(*args, **options):
    raise OSError("Name or service not known")


BAD_CONVERSIONS = {
    "torchvision:squeezenet1_2": "did you mean 'squeezenet1_1'?",
    "timm:resnet81": "timm has no model 'resnet81'; did you mean",
    "resnet20": "want torchvision:NAME or timm:NAME",
    "torchvision:squeezenet1_1 --weights none.pt": "there is no file none.pt",
    "torchvision:squeezenet1_0 --weights TRAINED": r"features\.6\..* is missing|is left over|in the checkpoint but",
    "torchvision:squeezenet1_1": r"can't be downloaded: Name or service not known; .*--weights FILE",
    "torchvision:squeezenet1_1 --weights random --where linear": "nothing to convert",
}


@pytest.mark.parametrize("words", BAD_CONVERSIONS)
def test_convert_says_what_is_wrong_and_writes_nothing(run, weights, tmp_path, monkeypatch, words):
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    out = tmp_path / "model.pt"
    argv = words.replace("TRAINED", str(weights[0])).split()
    code, told, error = run("convert", "--model", *argv, "--method", "odconv", "--out", out)
    assert code == 2 and "wrote" not in told and error.count("\n") == 1
    assert re.search(BAD_CONVERSIONS[words], error)
    assert not out.exists()


def test_what_restore_refuses(run, tmp_path):
    good = tmp_path / "model.pt"
    words = ("--model", "timm:test_byobnet", "--method", "dyconv", "--weights", "random", "--out", good)
    assert run("convert", *words)[0] == 0
    content = torch.load(good, weights_only=True)
    made = content["recipe"]
    torch.save(content | {"recipe": made | {"version": 9}}, tmp_path / "newer.pt")
    torch.save({"recipe": made, "state_dict": content["state_dict"]}, tmp_path / "nameless.pt")
    compared = {"format": "convary checkpoint", "version": 2, "recipe": made, "model": content["state_dict"]}
    torch.save(compared, tmp_path / "compared.pt")
    torch.save({"format": "convary system checkpoint", "model": content["state_dict"]}, tmp_path / "system.pt")
    torch.save({"a": 1}, tmp_path / "foreign.pt")
    (tmp_path / "half.pt").write_bytes(good.read_bytes()[:1000])
    torch.save(content | {"recipe": made | {"layers": dict(list(made["layers"].items())[:-1])}}, tmp_path / "unfit.pt")
    refused = {
        "newer.pt": "the recipe has version 9",
        "nameless.pt": "does not say which network.*convary.load",
        "compared.pt": "has version 2, this convary reads 1",
        "system.pt": "convary train wrote it: draw with convary predict",
        "foreign.pt": "holds no recipe.*write it with convary convert, convary compare or convary.models.save",
        "half.pt": "truncated",
        "none.pt": "there is no file",
        "unfit.pt": "does not fit ByobNet: .* is left over",
    }
    for name, message in refused.items():
        with pytest.raises((convary.CheckpointError, convary.ConfigError), match=message):
            models.restore(tmp_path / name)
