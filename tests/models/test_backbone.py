"""Pretrained weights where they can be had; a word where not."""

from urllib.error import URLError

import pytest
import torch
from torchvision.models import ResNet18_Weights, resnet18

from convary.models.backbone import RandomWeightsWarning, pretrained


def test_says_that_the_weights_are_random(monkeypatch):
    def offline(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.warns(RandomWeightsWarning, match=r"no route to host.*resnet18 starts from random.*https://"):
        model = pretrained(resnet18, ResNet18_Weights.DEFAULT)
    assert sum(p.numel() for p in model.parameters()) == 11_689_512


def test_takes_the_weights_that_are_there(monkeypatch):
    state = resnet18().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state)
    model = pretrained(resnet18, ResNet18_Weights.DEFAULT)
    assert torch.equal(model.conv1.weight, state["conv1.weight"])
