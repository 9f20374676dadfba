# SPDX-License-Identifier: Apache-2.0
"""Loading the authors' checkpoints: what does not fit is refused by name, and nothing is loaded then."""

import dataclasses
import os
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

import convary as cv
from convary import where
from convary.nn import Router
from convary.nn.modes import shapes_only
from tests.nets import NarrowResNet


def net(**options) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), cv.ODConv2d(4, 6, 3, bias=False, **options))


def checkpoint(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in cv.released_state(model).items()}


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


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def stirred(model: nn.Module) -> nn.Module:
    """Random routers and statistics, so that every tensor matters."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Router | nn.BatchNorm2d):
                for tensor in [*module.parameters(), *module.buffers()]:
                    if tensor.is_floating_point() and tensor.ndim:
                        tensor.uniform_(0.5, 1.5)
    return model.eval()


def small() -> nn.Module:
    """DCD's residuals are quadratic in their input: many in a row, of random statistics, overflow."""
    block = models.resnet.BasicBlock(8, 8)
    return nn.Sequential(nn.Conv2d(3, 8, 1), block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


NETWORKS = {
    "odconv": (lambda: models.mobilenet_v2(width_mult=0.25), cv.ODConv(experts=2), None),
    "condconv": (NarrowResNet, cv.CondConv(experts=2), where.blocks()),
    "shared": (NarrowResNet, cv.CondConv(experts=2, router="block"), where.blocks()),
    "kaijieshi7": (NarrowResNet, cv.DyConv(experts=2, extra_hidden=1), None),
    "kernelwarehouse": (NarrowResNet, cv.KernelWarehouse(nonlocal_ratio=1 / 4), None),
    "dcd": (small, cv.DCD(), None),
    "cgc": (NarrowResNet, cv.CGC(), None),
    "weightnet": (NarrowResNet, cv.WeightNet(expansion=4), None),
    "fdconv": (lambda: models.resnet18(num_classes=3), cv.FDConv(), None),  # whose kernels divide wide layers
    "tardelean": (NarrowResNet, cv.DyConv(experts=2, hidden_bias=True), None),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back(name):
    make, config, selector = NETWORKS[name]
    source = stirred(cv.convert(make(), config, selector, upcycle=False))
    target = cv.convert(make(), config, selector, upcycle=False).eval()
    released = cv.released_state(source)
    assert not any("router" in key for key in released)
    cv.load_released(target, released)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(source(x), target(x))
    again = cv.released_state(target)
    assert again.keys() == released.keys() and all(torch.equal(again[k], v) for k, v in released.items())


def test_timms_own_condconv_network_into_a_converted_one_and_back():
    theirs = stirred(timm.create_model("tf_efficientnet_cc_b0_4e", num_classes=7))
    nn.init.normal_(theirs.classifier.weight)
    static = timm.create_model("tf_efficientnet_b0", num_classes=7)
    config = cv.CondConv(experts=4, router="block")
    ours = cv.convert(static, config, where.paper(config) & ~where.classifier()).eval()
    report = cv.load_released(ours, theirs.state_dict())
    assert len(report.dynamic) == 24
    x = torch.randn(2, 3, 65, 64)
    with torch.no_grad():
        want = theirs(x)
        assert (ours(x) - want).abs().max() <= 1e-5 * want.abs().max()
    theirs.load_state_dict(cv.released_state(ours))  # strict: every name and shape


def test_what_the_layout_cannot_hold():
    for layer, reason in [
        (cv.ODConv2d(4, 4, 3), "without bias"),
        (cv.ODConv2d(4, 4, 3, bias=False, norm="layer"), "norm='batch'"),
        (cv.DyNetConv2d(4, 4, 3), "no released layout"),
    ]:
        with pytest.raises(cv.CheckpointError, match=f"^0: .*{reason}"):
            cv.released_state(nn.Sequential(layer))


class Bomb:
    """A pickle that runs code when it is read."""

    def __reduce__(self):
        return os.mkdir, (os.environ["CONVARY_BOMB"],)


def test_files(tmp_path, monkeypatch):
    source, target = net().eval(), net().eval()
    state = {name: tensor.contiguous() for name, tensor in checkpoint(source).items()}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "weights.pt")
    save_file(state, tmp_path / "weights.safetensors")
    x = torch.randn(1, 3, 5, 5)
    for name in ("weights.pt", "weights.safetensors"):
        target = net().eval()
        cv.load_released(target, tmp_path / name)
        assert torch.equal(source(x), target(x))

    whole = (tmp_path / "weights.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "weights.safetensors").read_bytes()[:90])
    (tmp_path / "text.pt").write_text("not weights")
    torch.save(net(), tmp_path / "module.pt")
    monkeypatch.setenv("CONVARY_BOMB", str(tmp_path / "exploded"))
    (tmp_path / "bomb.pt").write_bytes(pickle.dumps({"weight": Bomb()}))
    torch.save({"weight": Bomb()}, tmp_path / "zipped-bomb.pt")
    refused = {
        "half.pt": "truncated or no checkpoint",
        "half.safetensors": "truncated or no .safetensors",
        "text.pt": "no checkpoint, or holds more than weights",
        "module.pt": "nothing in it was executed",
        "bomb.pt": "nothing in it was executed",
        "zipped-bomb.pt": "nothing in it was executed",
        "none.pt": "there is no file",
    }
    for name, message in refused.items():
        with pytest.raises(cv.CheckpointError, match=message):
            cv.load_released(target, tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_another_architecture_is_told_with_the_nearest_names():
    with shapes_only():
        source = cv.convert(models.resnet18(num_classes=3), cv.ODConv(experts=2), upcycle=False)
        other = cv.convert(models.resnet34(num_classes=3), cv.ODConv(experts=2), upcycle=False)
    with pytest.raises(cv.CheckpointError, match=r"layer1\.2\..* is missing; did you mean 'layer\d.*and \d+ more"):
        cv.load_released(other, cv.released_state(source))


def test_the_3d_layout_has_no_second_bias():
    layer = cv.DyConv3d(2, 2, 1)
    assert "attention.fc2.bias" not in cv.released_state(layer)
    nn.init.ones_(layer.router.linear.bias)
    with pytest.raises(cv.CheckpointError, match="no second bias"):
        cv.released_state(layer)


def half() -> nn.Module:
    """KernelWarehouse's MobileNetV2 0.5 1/2x: only the last stage has fewer cells, and its classifier is dynamic."""
    config = cv.KernelWarehouse(reduction=32, sharing="role")
    few = dataclasses.replace(config, cell_ratio=1 / 2, in_ratio=1 / 2, out_ratio=1 / 2)
    model = models.mobilenet_v2(width_mult=0.5)
    late = where.name("features.1[5-7].conv.0.0", "features.1[5-7].conv.2", "features.18.0")
    model = cv.convert(model, few, late, upcycle=False)
    head = dataclasses.replace(config, cell_ratio=1 / 2, in_ratio=1 / 40)
    model = cv.convert(model, head, where.classifier(), upcycle=False)
    return cv.convert(model, config, where.depthwise() | where.first(), upcycle=False)


def test_the_linear_layer_of_kernel_warehouses_half_sized_mobilenetv2():
    model = half()
    assert sum(p.numel() for p in model.parameters()) == 1_466_888
    released = cv.released_state(model)
    cells = [tuple(released[f"warehouse_manager.weights.{i}"].shape) for i in range(10)]
    assert [shape[0] for shape in cells] == [9, 36, 18, 27, 36, 27, 6, 27, 56, 20] and cells[-1] == (20, 1000, 32, 1)
    assert {"classifier.1.conv.attention.fc1.weight", "classifier.1.conv.bias"} <= released.keys()
    target = half()
    assert len(cv.load_released(target, released).dynamic) == 26
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), target.parameters(), strict=True))


RENAMED = {
    "kernelwarehouse": (lambda: models.mobilenet_v2(width_mult=0.25, num_classes=3), cv.KernelWarehouse()),
    "dcd resnet": (NarrowResNet, cv.DCD()),
    "dcd mobilenet": (lambda: models.mobilenet_v2(width_mult=0.25, num_classes=3), cv.DCD()),
}
WANTED = {
    "kernelwarehouse": ["classifier.weight", "classifier.bias"],
    "dcd resnet": ["classifier.0.cls_q.weight", "classifier.0.fc_phi.weight", "classifier.0.cls.bias"],
    "dcd mobilenet": [
        "features.1.conv.3.weight",
        "features.2.conv.7.weight",
        "conv.0.weight",
        "features.2.conv.6.conv_p",
    ],
}


@pytest.mark.parametrize("name", RENAMED)
def test_the_authors_names_of_classifiers(name):
    make, config = RENAMED[name]
    source, target = (cv.convert(make(), config, upcycle=False).eval() for _ in range(2))
    released = checkpoint(source)
    assert all(any(key.startswith(want) for key in released) for want in WANTED[name])
    assert not {"fc.weight", "classifier.1.weight"} & released.keys()
    cv.load_released(target, released)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))
    own = {key.replace("classifier.0.", "classifier.1."): value for key, value in released.items()}  # with dropout
    if name == "dcd resnet":
        cv.load_released(target, own)
        cv.load_released(target, {key.replace("classifier.0.", "fc."): value for key, value in released.items()})
    if name == "kernelwarehouse":
        cv.load_released(target, {k.replace("classifier.", "classifier.1."): v for k, v in released.items()})
    released.pop(next(key for key in released if key.startswith("classifier")))
    with pytest.raises(cv.CheckpointError, match=r"classifier.* is missing|fc.* is missing"):
        cv.load_released(target, released)
