# SPDX-License-Identifier: Apache-2.0
"""A network of a few layers with stem, depthwise and pointwise layers, BatchNorm, a shortcut and a classifier."""

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import Conv2dNormActivation

import convary as cv
from convary.nn import Router


class Net(nn.Module):
    """Its first block has a shortcut; one block alone is the second one, for what takes seconds per layer."""

    def __init__(self, in_channels: int = 3, num_classes: int = 5, blocks: int = 2):
        super().__init__()
        stem = Conv2dNormActivation(in_channels, 8, stride=2, activation_layer=nn.ReLU6)
        self.features = nn.Sequential(stem, *[InvertedResidual(8, 8, 1, 2), InvertedResidual(8, 16, 2, 2)][-blocks:])
        self.classifier = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class NarrowResNet(ResNet):
    """torchvision's ResNet-18 by its names and blocks, with an eighth of the channels: everywhere but in the stem."""

    def __init__(self, num_classes: int = 3):
        super().__init__(BasicBlock, [2, 2, 2, 2])
        self.fc = nn.Linear(64, num_classes)

    def _make_layer(self, block, planes: int, *arguments, **options) -> nn.Sequential:
        return super()._make_layer(block, planes // 8, *arguments, **options)


def all_but_one_slow(kind: type = cv.ODConv):
    """Parametrises by every method; all but one are left to the slow tests, for what takes seconds each."""
    marks = {config: () if config is kind else pytest.mark.slow for config in cv.METHODS}
    return pytest.mark.parametrize("config", [pytest.param(c(), marks=m, id=c.name) for c, m in marks.items()])


def dynamic_net(config: cv.MethodConfig, blocks: int = 2) -> nn.Module:
    """All but the stem dynamic, normalisations that do something, routers that tell samples apart."""
    net = Net(blocks=blocks)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
    return excite(cv.convert(net, config, cv.where.all() & ~cv.where.first(), noise=1.0))


def excite(model: nn.Module) -> nn.Module:
    """Random routers at their final temperature, so that samples get different kernels; in eval mode."""
    with torch.no_grad():
        for router in model.modules():
            if isinstance(router, Router) and router.temperature is not None:
                router.temperature.fill_(router.final_temperature)
        for name, p in model.named_parameters():
            if "router" in name:
                p.copy_(torch.randn_like(p))
    return model.eval()


def onnx_session(path: Path, *, threads: int = 1, native: bool = False):
    """What answers tensors with the outputs of an ONNX file, as tensors.

    Args:
        path: The file.
        threads: 0 is as many as there are cores.
        native: Whether the session gets convary's own operators.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if native:
        options.register_custom_ops_library(cv.custom_ops_library())
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        fed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return [torch.from_numpy(out) for out in session.run(None, fed)]

    return run


def check_graphs(layer: nn.Module, example: tuple[Tensor, ...], other: tuple[Tensor, ...], folder: Path) -> None:
    """Recorded for ``example``, in bf16 or compiled, the layer is itself for ``other``."""
    program = cv.export(layer, example, folder / "layer.onnx").module()
    with torch.no_grad():
        want = layer(*other)
        assert torch.allclose(program(*other), want, atol=1e-5)
        (onnx,) = onnx_session(folder / "layer.onnx")(*other)
        assert torch.allclose(onnx, want, atol=1e-5)
        assert torch.allclose(torch.compile(layer, backend="aot_eager", fullgraph=True)(*other), want, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.allclose(layer(*other).float(), want, atol=0.1)
