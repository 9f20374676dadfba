# SPDX-License-Identifier: Apache-2.0
"""CondConv: the numbers of timm's code, which keeps the authors', and of d-li14's."""

import pytest
import timm
import torch
from timm.models._efficientnet_blocks import InvertedResidual
from torch import nn

import convary as cv
from convary import where
from convary.nn import routed_layers
from tests.golden.case import Case, cases


@pytest.mark.parametrize("name", ["condconv_dw3_E4_s2_same", "condconv_k1_E4", "condconv_k3_E4_bias"])
def test_timm_condconv_layer(name):
    case = Case(name)
    k = dict(case.kwargs)
    x = case.inputs["x"].requires_grad_()
    k.setdefault("bias", False)
    layer = cv.CondConv2d(
        k.pop("in_channels"), k.pop("out_channels"), k.pop("kernel_size"), experts=k.pop("num_experts"), router="block",
        dtype=torch.float64, **k,
    )  # fmt: skip
    cv.load_released(layer, case.state)
    routing = case.inputs["routing_weights"].requires_grad_()
    coeffs = cv.Coefficients(kernel=routing)
    case.close("kernel.aggregated", cv.ops.mix_kernels(layer.weight, coeffs))
    if layer.bias is not None:
        case.close("bias.aggregated", cv.ops.mix_bias(layer.bias, coeffs))
    out = layer(x, coeffs)
    case.close("out", out)
    case.backward(out)
    grads = {"x": x.grad, "routing_weights": routing.grad, "weight": layer.weight.grad}
    grads["bias"] = None if layer.bias is None else layer.bias.grad
    case.check_gradients(grads)


def test_dli14_condconv():
    case = Case("condconv_dli14_k3_E4")
    layer = cv.CondConv2d(8, 12, 3, padding=1, experts=4, dtype=torch.float64)
    cv.load_released(layer, case.state)
    x = case.inputs["x"].requires_grad_()
    case.close("attention.kernel", layer.coefficients(x).kernel)
    out = layer(x)
    case.close("out", out)
    case.backward(out)
    case.close("grad.x", x.grad)
    case.close("grad.conv.weight", layer.weight.grad)
    case.close("grad.conv.bias", layer.bias.grad)
    case.close("grad.route.fc.weight", layer.router.linear.weight.grad)
    case.close("grad.route.fc.bias", layer.router.linear.bias.grad)


@pytest.mark.parametrize("name", cases("condconv_residual_*"))
def test_condconv_residual_block(name):
    """Timm's block: one router on the block's input feeds all three convolutions."""
    case = Case(name)
    k = dict(case.kwargs)
    block = InvertedResidual(
        k["in_chs"], k["out_chs"], k["dw_kernel_size"], exp_ratio=k["exp_ratio"], act_layer=nn.ReLU
    )
    model = nn.Sequential(block).double()
    model = cv.convert(model, cv.CondConv(experts=k["num_experts"], router="block"), where.all())
    cv.load_released(model, {f"0.{key}": value for key, value in case.state.items()})
    model.train(case.training)
    block = model[0]
    assert len(routed_layers(block)) == 3
    x = case.inputs["x"].requires_grad_()
    case.close("attention.kernel", block.router(x).kernel)
    out = model(x)
    case.close("out", out)
    case.backward(out)
    grads = {"x": x.grad, "routing_fn.weight": block.router.linear.weight.grad}
    grads["routing_fn.bias"] = block.router.linear.bias.grad
    grads |= {f"{n}.weight": getattr(block, n).weight.grad for n in ("conv_pw", "conv_dw", "conv_pwl")}
    case.check_gradients(grads)
    for key in (k for k in case.expected if k.startswith("post.")):
        case.close(key, block.get_buffer(key.removeprefix("post.")))


@pytest.mark.parametrize("name", cases("efficientnet_cc_*"))
def test_condconv_efficientnet(name):
    case = Case(name)
    static = timm.create_model("efficientnet_b0", drop_rate=0.0, drop_path_rate=0.0)
    config = cv.CondConv(experts=4, router="block")
    model = cv.convert(static, config, where.paper(config) & ~where.classifier(), upcycle=False).double()
    assert sum(p.numel() for p in model.parameters()) == case.settings["params"]
    cv.load_released(model, case.state)
    case.released(model)
    model.train(case.training)
    with torch.no_grad():
        case.close("out", model(case.inputs["x"]))
