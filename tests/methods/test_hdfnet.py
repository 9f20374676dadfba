"""HDFNet's layers against the authors' numbers, and what they refuse."""

import pytest
import torch

import convary as cv
from convary.errors import CheckpointError, ConfigError, ShapeError
from convary.methods.hdfnet import DDPM, DenseLayer, DenseTransLayer, DepthDC
from tests.test_golden import Case, cases


def depth_dc(in_xC, in_yC, out_C, down_factor, dilation):
    return DepthDC(in_xC, in_yC, out_C, dilation=dilation, reduction=down_factor)


BUILD = {
    "depthdc3x3_1": lambda **k: depth_dc(**k, dilation=1),
    "depthdc3x3_3": lambda **k: depth_dc(**k, dilation=3),
    "depthdc3x3_5": lambda **k: depth_dc(**k, dilation=5),
    "denselayer": lambda in_C, out_C, down_factor, k: DenseLayer(in_C, out_C, reduction=down_factor, depth=k),
    "densetranslayer": lambda in_C, out_C: DenseTransLayer(in_C, out_C),
    "ddpm": lambda in_xC, in_yC, out_C, kernel_size, down_factor: DDPM(
        in_xC, in_yC, out_C, kernel_size, reduction=down_factor
    ),
}


@pytest.mark.parametrize("name", cases("hdfnet_d*"))
def test_layers_agree_with_the_authors(name):
    case = Case(name)
    layer = BUILD[name.split("_", 1)[1].rsplit("_eval")[0].rsplit("_train")[0]](**case.kwargs).double()
    cv.load_released(layer, case.state)
    case.released(layer)
    layer.train(case.training)
    inputs = {key: value.requires_grad_() for key, value in case.inputs.items()}
    if "kernel.generated" in case.expected:
        case.close("kernel.generated", layer.kernels(inputs["y"]))
    out = layer(*inputs.values())
    case.close("out", out)
    case.backward(out)
    grads = {key: value.grad for key, value in inputs.items()}
    grads |= {layer.released_name(key): p.grad for key, p in layer.named_parameters()}
    case.check_gradients(grads)
    released = cv.released_state(layer)
    for key in (k for k in case.expected if k.startswith("post.")):
        case.close(key, released[key.removeprefix("post.")])
