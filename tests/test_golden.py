# SPDX-License-Identifier: Apache-2.0
"""Golden vectors of the official implementations: values, attentions, gradients and running statistics."""

import pytest
import timm
import torch
from torch import nn

import convary as cv
from convary import where
from convary.nn import routed_layers
from tests.golden.case import Case, cases


@pytest.mark.parametrize("name", [c for c in cases("odconv_*") if "schedule" not in c])
@pytest.mark.parametrize("strategy", [None, "grouped", "loop", "bmm"])
def test_odconv(name, strategy):
    case = Case(name)
    k = dict(case.kwargs)
    options = {"experts": k.pop("kernel_num", 4)}
    if "reduction" in k:
        options["reduction"] = 1 / k.pop("reduction")
    layer = cv.ODConv2d(k.pop("in_planes"), k.pop("out_planes"), **k, bias=False, dtype=torch.float64, **options)
    cv.load_released(layer, case.state)
    cv.set_temperature(layer, case.settings["temperature"])
    layer.train(case.training)
    x = case.inputs["x"].requires_grad_()
    seen = {}
    handle = layer.router.register_forward_hook(lambda m, a, out: seen.update(out.factors()))
    with cv.ops.strategy(strategy):
        out = layer(x)
    handle.remove()
    case.close("out", out)
    for axis, value in seen.items():
        case.close(f"attention.{ {'tap': 'spatial'}.get(axis, axis) }", value)
    if "kernel.aggregated" in case.expected:
        inner = cv.Coefficients(kernel=seen.get("kernel"), tap=seen.get("tap"))
        case.close("kernel.aggregated", cv.ops.mix_kernels(layer.weight, inner).flatten(0, 1))
    if any(k.startswith("grad.") for k in case.expected):
        case.backward(out)
        case.check_gradients(case.released_gradients(layer) | {"x": x.grad})
    for key in (k for k in case.expected if k.startswith("post.")):
        case.close(key, getattr(layer.router.norm, key.rpartition(".")[2]))


def test_odconv_temperature_schedule():
    case = Case("odconv_temperature_schedule")
    per_epoch, epochs = case.kwargs["iter_per_epoch"], case.kwargs["temp_epoch"]
    layer = cv.ODConv2d(4, 4, 1)
    annealing = cv.anneal(layer, start=case.kwargs["temp_init"], stop=1.0, steps=per_epoch * epochs)
    seen = []
    for _ in range(int(case.inputs["epoch"].max() + 1) * per_epoch):
        annealing.step()
        seen.append(float(layer.router.temperature))
    steps = (case.inputs["epoch"] * per_epoch + case.inputs["iteration"]).long()
    case.close("out", torch.tensor(seen, dtype=torch.float64)[steps - 1])


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
    from timm.models._efficientnet_blocks import InvertedResidual

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


@pytest.mark.parametrize("name", cases("od_mobilenetv2_*"))
def test_odconv_mobilenetv2(name):
    from torchvision.models import mobilenet_v2

    case = Case(name)
    model = cv.convert(mobilenet_v2(width_mult=0.5, dropout=0.0), cv.ODConv(experts=1), upcycle=False).double()
    assert sum(p.numel() for p in model.parameters()) == case.settings["params"]
    report = cv.load_released(model, case.state)
    assert len(report.dynamic) == 51
    case.released(model)
    model.train(case.training)
    with torch.no_grad():
        case.close("out", model(case.inputs["x"]))


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


def warehouse_net(case: Case) -> nn.ModuleDict:
    """The vector's layers by name; those that it lists together share a warehouse."""
    manager = case.kwargs["manager"]
    config = cv.KernelWarehouse(
        cell_ratio=manager["cell_num_ratio"],
        in_ratio=manager.get("cell_inplane_ratio", 1.0),
        out_ratio=manager.get("cell_outplane_ratio", 1.0),
        temperature=case.settings["tau"],
    )
    made = []
    for name, k in case.kwargs["layers"]:
        arguments = {n: v for n, v in k.items() if n in ("kernel_size", "stride", "padding", "bias", "groups")}
        static = nn.Conv2d(k["in_planes"], k["out_planes"], **arguments, dtype=torch.float64)
        made.append((name, config.build(static)))
    rest = [layer for _, layer in made]
    for warehouse in case.settings["warehouses"].values():
        cv.share_warehouse(rest[: len(warehouse["layers"])])
        rest = rest[len(warehouse["layers"]) :]
    return nn.ModuleDict(made)


@pytest.mark.parametrize("name", cases("kw_tiny_*"))
def test_kernel_warehouse(name):
    case = Case(name)
    net = warehouse_net(case)
    cv.load_released(net, case.state)
    case.released(net)
    net.train(case.training)
    h = x = case.inputs["x"].requires_grad_()
    for i, (layer_name, layer) in enumerate(net.items()):
        seen = []
        handle = layer.router.register_forward_hook(lambda m, a, out, seen=seen: seen.append(out))
        h = layer(h.relu() if i else h)
        handle.remove()
        case.close(f"temp_bias.{layer_name}", layer.router.one_hot())
        case.close(f"attention.{layer_name}", seen[0].cells.transpose(1, 2))
        if f"kernel.aggregated.{layer_name}" in case.expected:
            case.close(f"kernel.aggregated.{layer_name}", layer.kernels(seen[0]))
    case.close("out", h)
    case.backward(h)
    grads = {"x": x.grad}
    for i, weight in enumerate(dict.fromkeys(layer.weight for layer in net.values())):
        grads[f"warehouse_manager.weights.{i}"] = weight.grad
    for layer_name, layer in net.items():
        own = dict(layer.named_parameters())
        grads |= {f"{layer_name}.{row.theirs}": own[row.ours].grad for row in layer.released(None) if row.ours in own}
    case.check_gradients(grads)
    for key in (k for k in case.expected if k.startswith("post.")):
        case.close(key, net.get_buffer(key.removeprefix("post.").replace("attention.norm1", "router.norm")))


@pytest.mark.parametrize("name", cases("kw_resnet18_*"))
def test_kernel_warehouse_resnet18(name):
    from torchvision.models import resnet18

    case = Case(name)
    config = cv.KernelWarehouse(cell_ratio=0.25, in_ratio=0.5, out_ratio=0.5, temperature=case.settings["tau"])
    model = cv.convert(resnet18(), config, upcycle=False).double()
    assert sum(p.numel() for p in model.parameters()) == case.settings["params"]
    assert len(cv.load_released(model, case.state).dynamic) == 19
    case.released(model)
    model.train(case.training)
    with torch.no_grad():
        case.close("out", model(case.inputs["x"]))


def test_kernel_warehouse_temperature_schedule():
    case = Case("kw_temperature_schedule")
    per_epoch, epochs = case.kwargs["iter_per_epoch"], case.kwargs["temp_epoch"]
    layer = cv.KernelWarehouse2d(4, 4, 1)
    annealing = cv.anneal(layer, steps=per_epoch * epochs)
    seen = [float(layer.router.temperature)]
    assert seen == [case.kwargs["temp_init_value"]]
    for _ in range(int(case.inputs["epoch"].max() + 1) * per_epoch):
        annealing.step()
        seen.append(float(layer.router.temperature))
    steps = (case.inputs["epoch"] * per_epoch + case.inputs["iteration"]).long()
    case.close("out", torch.tensor(seen, dtype=torch.float64)[steps])


@pytest.mark.parametrize("name", cases("dcd_*"))
def test_dcd(name):
    case = Case(name)
    k = case.kwargs
    if "dycls" in name:
        layer = cv.DCDLinear(k["inp"], k["oup"], dtype=torch.float64)
    else:
        latent = next(v for part, v in LATENT.items() if part in name)
        C, O = (k.get(a, k.get(b)) for a, b in (("inplanes", "inp"), ("planes", "oup")))
        size = 1 if latent == "pointwise" else 3
        layer = cv.DCDConv2d(
            C, O, size, k.get("stride", 1), size // 2, bias=False, latent=latent, squeeze=k.get("fc_squeeze", 16),
            dtype=torch.float64,
        )  # fmt: skip
    cv.load_released(layer, case.state)
    case.released(layer)
    layer.train(case.training)
    x = case.inputs["x"].requires_grad_()
    seen = []
    layer.router.register_forward_hook(lambda m, a, out: seen.append(out))
    out = layer(x)
    case.close("out", out)
    case.close("attention.phi", seen[0].latent)
    case.close("attention.scale", seen[0].filter)
    case.backward(out)
    case.check_gradients(case.released_gradients(layer) | {"x": x.grad})
    for key in (k for k in case.expected if k.startswith("post.")):
        case.close(key, layer.get_buffer(key.removeprefix("post.bn").replace("1.", "norm1.").replace("2.", "norm2.")))


LATENT = {"conv_basic_dy": "basic", "conv_dy": "bottleneck", "dymodule": "pointwise"}


@pytest.mark.parametrize("name", cases("mobilenetv2_dcd_*"))
def test_dcd_mobilenetv2(name):
    """In torchvision's network, whose parts the authors name otherwise."""
    from torchvision.models import mobilenet_v2

    case = Case(name)
    config = cv.DCD(squeeze=case.kwargs["fc_squeeze"])
    static = mobilenet_v2(width_mult=case.kwargs["width_mult"], dropout=0.0)
    model = cv.convert(static, config, upcycle=False).double()
    assert sum(p.numel() for p in model.parameters()) == case.settings["params"]
    assert len(cv.load_released(model, case.state).dynamic) == 33
    case.released(model)
    model.train(case.training)
    with torch.no_grad():
        case.close("out", model(case.inputs["x"]))
