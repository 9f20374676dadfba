# SPDX-License-Identifier: Apache-2.0
"""KernelWarehouse: the authors' numbers."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

import convary as cv
from tests.golden.case import Case, cases


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
