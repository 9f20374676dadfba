# SPDX-License-Identifier: Apache-2.0
"""A converted network in one file, and what is said of files that are not one."""

import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

import convary as cv
from convary._checkpoint import read
from convary.train.checkpoint import SYSTEM, write_checkpoint
from tests.nets import Net, excite

SUFFIXES = ("pt", "safetensors")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return excite(cv.convert(Net(), cv.KernelWarehouse(), cv.where.all() & ~cv.where.first()))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_and_the_class_are_enough(model, tmp_path, suffix):
    path = tmp_path / "new" / f"model.{suffix}"
    cv.save(model, path)
    static = Net().eval()
    again = cv.load(static, path)
    x = torch.randn(2, 3, 20, 20)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    shared = [m.weight for m in again.modules() if isinstance(m, cv.KernelWarehouse2d)]
    assert len(shared) == 6 and len(set(map(id, shared))) == 2  # KernelWarehouse's cells are still one tensor
    assert cv.load(static, path, inplace=True) is static and cv.recipe(static) == cv.recipe(model)


def test_the_recipe_is_in_the_metadata(model, tmp_path):
    cv.save(model, tmp_path / "model.safetensors", network="mine")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["convary"]) == cv.recipe(model)
        assert file.metadata()["network"] == "mine"
    assert read(tmp_path / "model.safetensors").notes["network"] == "mine"


def test_what_a_user_puts_together(model, tmp_path):
    torch.save({"epoch": 3, "recipe": cv.recipe(model), "model": model.state_dict()}, tmp_path / "mine.pt")
    assert cv.recipe(cv.load(Net(), tmp_path / "mine.pt")) == cv.recipe(model)


def test_what_load_refuses(model, tmp_path):
    for suffix in SUFFIXES:
        cv.save(model, tmp_path / f"good.{suffix}")
        whole = (tmp_path / f"good.{suffix}").read_bytes()
        (tmp_path / f"half.{suffix}").write_bytes(whole[: len(whole) // 2])
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    write_checkpoint(tmp_path / "compared.pt", {"model": model.state_dict()})
    write_checkpoint(tmp_path / "trained.pt", {"model": model.state_dict()}, format=SYSTEM)
    torch.save(model, tmp_path / "pickle.pt")
    content = torch.load(tmp_path / "good.pt", weights_only=True)
    torch.save({**content, "state_dict": dict(list(content["state_dict"].items())[1:])}, tmp_path / "unfit.pt")
    refused = {
        "none.pt": "there is no file",
        "half.pt": "truncated",
        "half.safetensors": "truncated",
        "bare.pt": r"holds no recipe.*convary.save\(model, path\)",
        "compared.pt": r"is a convary checkpoint without a recipe; .*convary.models.restore\(path\)",
        "trained.pt": r"is a convary system checkpoint without a recipe; .*convary predict",
        "pickle.pt": "nothing in it was executed",
        "unfit.pt": "does not fit Net: .* is missing",
    }
    for name, message in refused.items():
        with pytest.raises(cv.CheckpointError, match=message):
            cv.load(Net(), tmp_path / name)
    with pytest.raises(cv.ConfigError, match="has no layer"):
        cv.load(nn.Sequential(nn.Conv2d(3, 8, 3)), tmp_path / "good.pt")
    with pytest.raises(cv.ConfigError, match="has no layer that convary.convert made"):
        cv.save(Net(), tmp_path / "static.pt")
    assert not (tmp_path / "static.pt").exists()
