# SPDX-License-Identifier: Apache-2.0
"""diagnose: planted faults are found, told in words, and nothing is found where nothing is wrong."""

import pytest
import torch
from torch import nn
from torchvision import models

import convary as cv
from convary import METHODS, report, where
from convary._diagnose import shares
from convary.methods.config import BankConfig
from convary.models import ResNet20
from convary.ops import Coefficients


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def loader(*batches: int):
    return [(torch.randn(n, 4, 6, 6), torch.zeros(n)) for n in batches]


def layer(**options) -> cv.DyConv2d:
    """A layer whose routing depends on the input."""
    made = cv.DyConv2d(4, 6, 3, experts=4, **options)
    nn.init.normal_(made.router.linear.weight, 0, 3.0)
    nn.init.normal_(made.router.squeeze.weight, 0, 3.0)
    return made


@pytest.mark.parametrize("config", [*(c() for c in METHODS), cv.CondConv(router="block")], ids=str)
def test_a_model_fresh_from_upcycling_ignores_its_input(config):
    model = cv.convert(ResNet20(4).train(), config, noise=0.1)
    found = cv.diagnose(model, torch.randn(2, 3, 16, 16))
    assert [row.layer for row in found.layers] == list(cv.routing(model, torch.randn(1, 3, 16, 16)))
    assert all(row.ignores_input and not row.dead and not row.duplicates for row in found.layers)
    if isinstance(config, BankConfig):
        assert found.entropy == pytest.approx(1, abs=1e-6)
        assert found.divergence == pytest.approx(0.1, rel=0.2)  # the noise
    else:  # no whole kernels are mixed
        assert (found.entropy, found.divergence) == (None, 0)
    static_at_first = config.annealing is not None and config.annealing.stop == 0
    told = "are at temperature 1, above the final 0" if static_at_first else "route every input alike"
    assert told in found.advice[0] and len(found.advice) == 1
    assert all(m.training for m in model.modules()) and not any(m._forward_hooks for m in model.modules())


def test_a_healthy_layer_needs_no_advice():
    found = cv.diagnose(nn.Sequential(layer()), loader(5, 3))
    assert found.inputs == 8 and found.advice == ()
    (row,) = found.layers
    assert 0 < row.entropy < 1 and row.variation > 0.1 and row.divergence > 0.5
    assert sum(row.share) == pytest.approx(1)
    assert "nothing to remark" in str(found)


def test_planted_faults_are_found_and_named():
    model = nn.ModuleDict({"cold": layer(), "dead": layer(), "equal": layer(), "hot": layer()})
    model.forward = lambda x: [module(x) for module in model.values()]
    with torch.no_grad():
        model["dead"].router.linear.bias[2] = -100
        model["equal"].weight[3] = model["equal"].weight[1]
    model["hot"].router.temperature.fill_(20.0)
    found = cv.diagnose(model, loader(6))
    rows = {row.layer: row for row in found.layers}
    assert rows["dead"].dead == (2,) and rows["equal"].duplicates == ((1, 3),) and rows["hot"].hot
    assert not (rows["cold"].dead or rows["cold"].duplicates or rows["cold"].hot or rows["cold"].ignores_input)
    text = str(found)
    assert "dead: 2" in text and "equal: 1=3" in text and "temperature 20" in text
    hot, dead, equal = found.advice
    assert hot.startswith("1 of 4 layers (hot) are at temperature 20, above the final 1")
    assert "(dead) have experts that no input uses" in dead and "(equal) have experts with equal kernels" in equal


def test_numbers_do_not_depend_on_how_the_inputs_are_batched():
    model = nn.Sequential(layer())
    x = torch.randn(12, 4, 6, 6)
    one, many = cv.diagnose(model, x).layers[0], cv.diagnose(model, x.split(5)).layers[0]
    assert one.entropy == pytest.approx(many.entropy) and one.variation == pytest.approx(many.variation)
    assert one.share == pytest.approx(many.share)
    assert cv.diagnose(model, x.split(5), batches=1).inputs == 5


def test_shares_by_hand():
    kernel = torch.tensor([[1.0, 3.0]])
    assert torch.equal(shares(Coefficients(kernel=kernel), 2), torch.tensor([[0.25, 0.75]]).double())
    filter = torch.tensor([[[0.5, 0.5], [0.0, 1.0]]])  # (1, 2, 2): means 1/2 and 1/2
    both = shares(Coefficients(kernel=kernel, filter=filter), 2)
    assert torch.equal(both, torch.tensor([[0.25, 0.75]]).double())
    assert shares(Coefficients(filter=torch.ones(1, 1, 2)), 2) is None


def test_one_expert_has_no_entropy():
    (row,) = cv.diagnose(cv.ODConv2d(4, 6, 3, experts=1), loader(3)).layers
    assert row.entropy is None and row.share == (1.0,) and row.divergence == 0 and not row.dead


def test_what_cannot_be_diagnosed():
    with pytest.raises(cv.ConfigError, match="has no dynamic layer"):
        cv.diagnose(nn.Conv2d(4, 4, 1), loader(2))
    with pytest.raises(cv.ConfigError, match="gave no input"):
        cv.diagnose(layer(), [])


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_picture_of_all_layers(kind, tmp_path):
    model = cv.convert(models.mobilenet_v3_small(num_classes=3), cv.ODConv(), where.all() & ~where.gate())
    path = tmp_path / f"layers.{kind}"
    report.draw(cv.diagnose(model, torch.randn(2, 3, 32, 32)), path)
    start = path.read_bytes()[:300]
    assert start.startswith(b"\x89PNG") if kind == "png" else b"<svg" in path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
