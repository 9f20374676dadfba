# SPDX-License-Identifier: Apache-2.0
"""DyConv: the numbers of others' code, for its authors published none."""

import pytest
import torch

import convary as cv
from tests.golden.case import Case, cases


def test_dyconv_temperature_schedule():
    case = Case("dyconv_tardelean_temperature_schedule")
    k = case.kwargs
    layer = cv.DyConv2d(4, 4, 1)
    annealing = cv.anneal(layer, start=k["initial_value"], stop=k["final_value"], steps=k["final_epoch"] - 1)
    seen = []
    for _ in case.inputs["epoch"]:
        seen.append(annealing.temperature)
        annealing.step()
    case.close("out", torch.tensor(seen, dtype=torch.float64))


@pytest.mark.parametrize("name", [c for c in cases("dyconv_*") if "schedule" not in c])
def test_dyconv(name):
    case = Case(name)
    k = dict(case.kwargs)
    rank = case.inputs["x"].ndim - 2
    if "tardelean" in name:
        options = {"reduction": k["reduce"], "hidden_bias": True, "experts": k["nof_kernels"]}
        sizes = (k["in_channels"], k["out_channels"])
    else:
        options = {"extra_hidden": 1}
        sizes = (k["in_planes"], k["out_planes"])
    layer = getattr(cv, f"DyConv{rank}d")(
        *sizes, k["kernel_size"], padding=k["padding"], dtype=torch.float64, **options
    )
    cv.load_released(layer, case.state)
    case.released(layer)
    cv.set_temperature(layer, case.settings["temperature"])
    layer.train(case.training)
    x = case.inputs["x"].requires_grad_()
    coeffs = layer.coefficients(x)
    case.close("attention.kernel", coeffs.kernel)
    case.close("kernel.aggregated", cv.ops.mix_kernels(layer.weight, coeffs).flatten(0, 1))
    case.close("bias.aggregated", cv.ops.mix_bias(layer.bias, coeffs))
    out = layer(x)
    case.close("out", out)
    case.backward(out)
    case.check_gradients(case.released_gradients(layer) | {"x": x.grad})
