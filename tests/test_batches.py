# SPDX-License-Identifier: Apache-2.0
"""Batches in the forms that loaders give: taken, or refused in words."""

import pytest
import torch
from torch import nn

import convary as cv
from convary.batches import KEYS, batches_of, input_of

X = torch.randn(4, 3, 8, 8)
FORMS = [X, (X, torch.zeros(4)), [X], *({key: X, "label": torch.zeros(4)} for key in KEYS)]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(cv.ODConv2d(3, 8, 3, experts=2), nn.BatchNorm2d(8)).eval()


@pytest.mark.parametrize("batch", FORMS, ids=lambda b: next(iter(b)) if isinstance(b, dict) else type(b).__name__)
def test_all_forms_are_one_input(batch):
    model = net()
    want = cv.diagnose(model, X)
    assert cv.diagnose(model, [batch, batch], batches=1) == want and want.inputs == 4
    assert cv.fold(model, [batch]).spread == cv.fold(model, X).spread


def test_a_list_of_images_moves_too():
    images = input_of(([X[0], X[1]], "targets"), torch.device("meta"))
    assert [image.device.type for image in images] == ["meta"] * 2


@pytest.mark.parametrize("call", [cv.diagnose, cv.fold], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([{"label": X, "path": "a"}], "a dict of label, path, with no input where one of pixel_values"),
        ([{"image": X, "x": X}], "with image, x where one of"),
        ({"image": X}, "got one batch, a dict of image"),
        (3, "got a int"),
        (["a.png"], "a batch must hold tensors; got a str"),
        ([{"image": "a.png"}], "a batch must hold tensors; got a str"),
    ],
)
def test_refused_in_words(call, data, words):
    with pytest.raises(cv.DataError, match=words):
        call(net(), data)


def test_one_tensor_is_one_batch():
    assert len(list(batches_of(X))) == 1
