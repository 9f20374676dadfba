# SPDX-License-Identifier: Apache-2.0
"""Loading the authors' checkpoints: what does not fit is refused by name, and nothing is loaded then."""

import pytest
import torch
from torch import nn

import convary as cv


def released_odconv(layer: cv.ODConv2d) -> dict[str, torch.Tensor]:
    """The authors' state dict of a layer, made from ours."""
    own, router = layer.state_dict(), layer.router
    names = {"channel": "channel_fc", "filter": "filter_fc", "tap": "spatial_fc", "kernel": "kernel_fc"}
    out = {"weight": own["weight"], "attention.fc.weight": own["router.squeeze.weight"][..., None, None]}
    for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        out[f"attention.bn.{key}"] = own[f"router.norm.{key}"]
    sizes = list(router.sizes.values())
    heads = zip(
        router.sizes, own["router.heads.weight"].split(sizes), own["router.heads.bias"].split(sizes), strict=True
    )
    for axis, weight, bias in heads:
        out |= {f"attention.{names[axis]}.weight": weight[..., None, None], f"attention.{names[axis]}.bias": bias}
    return out


def net(**options) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), cv.ODConv2d(4, 6, 3, bias=False, **options))


def checkpoint(model: nn.Module) -> dict[str, torch.Tensor]:
    state = {k: v for k, v in model.state_dict().items() if k.startswith("0.")}
    return state | {f"1.{k}": v for k, v in released_odconv(model[1]).items()}


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {f"module.{k}": v for k, v in s.items()}]
)
def test_loads_and_reports(wrap):
    source, target = net().eval(), net().eval()
    report = cv.load_released(target, wrap(checkpoint(source)))
    assert report.dynamic == ("1",) and report.copied == 2
    assert "1 dynamic layers loaded" in str(report)
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(source(x), target(x))


BROKEN = {
    "missing": (lambda s: s.pop("1.attention.bn.bias"), r"1\.attention\.bn\.bias is missing"),
    "left over": (lambda s: s.update({"0.weigth": torch.ones(1)}), r"0\.weigth is left over; did you mean '0.weight'"),
    "static missing": (lambda s: s.pop("0.bias"), r"0\.bias is missing"),
    "shape": (
        lambda s: s.update({"0.bias": torch.ones(9)}),
        r"0\.bias is \(9,\) in the checkpoint but \(4,\) in the model",
    ),
    "not tensors": (lambda s: s.update({"epoch": 7}), "'epoch' is a int"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_refuses_by_name_and_loads_nothing(name):
    change, message = BROKEN[name]
    state = checkpoint(net())
    change(state)
    target = net()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(cv.CheckpointError, match=message):
        cv.load_released(target, state)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_another_number_of_experts():
    with pytest.raises(cv.CheckpointError, match=r"1\.weight is \(4, 6, 4, 3, 3\).*but \(2, 6, 4, 3, 3\)"):
        cv.load_released(net(experts=2), checkpoint(net()))


def test_no_released_layout():
    layer = cv.DyNetConv2d(3, 3, 1)
    with pytest.raises(cv.CheckpointError, match="no released layout"):
        cv.load_released(layer, layer.state_dict())
    with pytest.raises(cv.CheckpointError, match="it is empty"):
        cv.load_released(layer, {})
