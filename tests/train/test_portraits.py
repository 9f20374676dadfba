# SPDX-License-Identifier: Apache-2.0
"""Single test images in results.json: the right ones, and looking at them changes no training."""

import base64
import io
import json

import numpy
import pytest
import torch
from PIL import Image

import convary as cv
from convary.data import load
from convary.train import compare, load_model
from convary.train.classification import Classification
from convary.train.portraits import Portraits, layer_shares

METHODS = ("static", "odconv")
OPTIONS = {"methods": METHODS, "model": "convnet_nano", "where": "all & ~first"}


@pytest.fixture(scope="module")
def finished(make_for, tmp_path_factory):
    """A comparison, its config and its data."""
    config = make_for(tmp_path_factory.mktemp("portraits") / "run", **OPTIONS)
    return config, compare(config), load(config.data, image_size=16)


def test_confusion_is_of_all_test_images_and_of_the_accuracy(finished):
    _, results, data = finished
    for method in results["methods"]:
        matrix = torch.tensor(method["confusion"])
        assert matrix.sum(1).tolist() == data.test.labels.bincount().tolist()
        assert 100 * int(matrix.diagonal().sum()) / int(matrix.sum()) == method["seeds"][0]["top1"]


def test_experts_have_the_images_in_which_their_share_is_largest(finished):
    config, results, data = finished
    odconv = results["methods"][1]
    model = load_model(config.out / odconv["seeds"][0]["checkpoint"])
    found = layer_shares(model, data.normalise(data.test.batch(torch.arange(len(data.test.labels)))))
    assert [entry["layer"] for entry in odconv["experts"]] == list(found)
    for entry in odconv["experts"]:
        share = found[entry["layer"]]
        for expert, (images, values) in enumerate(zip(entry["images"], entry["shares"], strict=True)):
            best = share[:, expert].topk(8).values
            torch.testing.assert_close(torch.tensor(values, dtype=best.dtype), best, atol=1e-5, rtol=0)
            torch.testing.assert_close(share[images, expert], best, atol=1e-5, rtol=0)


def test_paths_end_at_the_trained_temperature_and_begin_evenly(finished):
    _, results, _ = finished
    paths = results["methods"][1]["paths"]
    assert [step["temperature"] for step in paths["at"]][:: len(paths["at"]) - 1] == [30.0, 1.0]
    assert len(paths["images"]) == 4

    def spread(step):
        return sum(max(share) - min(share) for layer in step["layers"] for share in layer["shares"])

    assert spread(paths["at"][0]) < spread(paths["at"][-1])


def test_every_image_that_is_named_has_its_picture(finished):
    _, results, data = finished
    odconv, pictures = results["methods"][1], results["pictures"]
    named = {i for entry in odconv["experts"] for row in entry["images"] for i in row} | set(odconv["paths"]["images"])
    named |= {
        image[0] for kind in ("name_right", "other_right", "both_wrong") for image in odconv["differs"][kind]["images"]
    }
    assert set(pictures) == {str(index) for index in named}
    for index, picture in pictures.items():
        pixels = Image.open(io.BytesIO(base64.b64decode(picture["png"])))
        shown = torch.tensor(numpy.array(pixels)).reshape(16, 16, -1).permute(2, 0, 1)
        assert torch.equal(shown.to(torch.uint8), data.test.batch(torch.tensor([int(index)]))[0])
        assert picture["label"] == int(data.test.labels[int(index)])


def test_differences_are_of_every_kind():
    portraits = Portraits(load("fashion-mnist-mini"), 100, "cpu")
    labels = portraits.dataset.test.labels
    other = (labels + 1) % 10
    mine, theirs = labels.clone(), labels.clone()
    mine[:5], theirs[3:9] = other[:5], other[3:9]
    mine[3] = (labels[3] + 2) % 10  # 3: both wrong, each in its way; 4: both wrong alike
    portraits.said = {"a": mine, "b": theirs}
    found = portraits.differences("a", "b")
    counts = [found[kind]["count"] for kind in ("name_right", "other_right", "both_wrong")]
    assert counts == [4, 3, 1]
    assert found["both_wrong"]["images"] == [[3, int(mine[3]), int(theirs[3])]]


def test_looking_leaves_temperature_and_mode_alone():
    data = load("fashion-mnist-mini")
    torch.manual_seed(0)
    static = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(2704, 10))
    model = cv.convert(static, cv.ODConv(), cv.where.all())
    cv.set_temperature(model, 3.5)
    before = {name: value.clone() for name, value in model.train().state_dict().items()}
    Portraits(data, 500, "cpu").entry("odconv", model, cv.ODConv())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_large_image_is_made_small(monkeypatch):
    from convary.train import portraits

    wide = torch.arange(96, dtype=torch.uint8).expand(3, 24, 96)
    small = Image.open(io.BytesIO(base64.b64decode(portraits._png(wide))))
    assert small.size == (48, 12) and small.mode == "RGB"
    assert Image.open(io.BytesIO(base64.b64decode(portraits._png(torch.zeros(2, 8, 8, dtype=torch.uint8))))).mode == "L"


def test_observing_experts_changes_no_training(finished, make, monkeypatch):
    _, results, _ = finished
    monkeypatch.setattr(Classification, "observe", lambda *_: {})
    blind = compare(make(**OPTIONS))
    seen = results["methods"][1]["seeds"][0]["curve"]
    assert all(sum(share) == pytest.approx(1) for point in seen for share in point["experts"].values())
    assert all(point["experts"].keys() == seen[0]["experts"].keys() != set() for point in seen)
    for with_, without in zip(results["methods"], blind["methods"], strict=True):
        for seed, other in zip(with_["seeds"], without["seeds"], strict=True):
            strip = lambda point: {k: v for k, v in point.items() if k not in ("experts", "seconds", "cpu_seconds")}  # noqa: E731
            assert json.dumps([strip(p) for p in seed["curve"]]) == json.dumps([strip(p) for p in other["curve"]])
