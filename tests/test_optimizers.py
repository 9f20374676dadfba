# SPDX-License-Identifier: Apache-2.0
"""An upcycled network learns as fast as the static one that it was made of: one step moves its kernels as far."""

import pytest
import torch
from torch import nn

import convary as cv
from convary import METHODS, where

CONVS = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONFIGS = [
    *(config() for config in METHODS),
    cv.CondConv(experts=3, activation="softmax"),
    cv.DyConv(experts=3, activation="sigmoid"),
    cv.ODConv(experts=3, sharing="per_kernel"),
    cv.ODConv(attentions=("channel",)),
    cv.KernelWarehouse(cell_ratio=2, sharing="layer"),
    cv.WeightNet(expansion=9, splits=3),
    cv.FDConv(param_ratio=2),
]
CASES = [
    pytest.param(config, rank, id=f"{config.name}{i}-{rank}d")
    for i, config in enumerate(CONFIGS)
    for rank in CONVS
    if rank or config.refuses(nn.Linear(2, 2)) is None
]
TAKEN_OVER = ("weight", "bias")  # from the static layer; all else is new, and learns at its own rate


def made(config: cv.MethodConfig, rank: int, noise: float) -> tuple[nn.Module, nn.Module]:
    """A static network of two layers and what it becomes, the routers held."""
    torch.manual_seed(0)
    form = {"kernel_size": 3, "padding": 1} if rank else {}
    static = nn.Sequential(CONVS[rank](8, 16, **form), nn.Tanh(), CONVS[rank](16, 8, **form))
    with torch.no_grad():
        for name, p in static.named_parameters():
            p.copy_(0.1 * torch.randn_like(p) + 0.05 * ("bias" in name))
    dynamic = cv.convert(static, config, where.all() | where.linear(), noise=noise)
    for name, p in dynamic.named_parameters():
        p.requires_grad_(name.split(".", 1)[1] in TAKEN_OVER)
    return static.eval(), dynamic.eval()


def effective(model: nn.Module, rank: int) -> list[torch.Tensor]:
    """The kernels and biases that a sample meets."""
    found: list[torch.Tensor] = []
    for layer in (model[0], model[2]):
        if isinstance(layer, cv.nn.DynamicLayer):
            C = layer.in_channels if rank else layer.in_features
            coeffs = layer.coefficients(torch.randn(1, C, *(5,) * max(rank, 1)))
            found += [layer.kernels(coeffs)[0].detach().flatten(), layer.biases(coeffs)[0].detach().clone()]
        else:
            found += [layer.weight.detach().flatten().clone(), layer.bias.detach().clone()]
    return found


def moved(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> list[torch.Tensor]:
    """How a step of training changes them."""
    before = effective(model, rank)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 8, *(5,) * rank, generator=generator)
    model(x).sin().square().mean().backward()
    optimizer.step()
    return [after - kernel for after, kernel in zip(effective(model, rank), before, strict=True)]


def kernels_step(model: nn.Module) -> bool:
    """False for FDConv: the frequencies of its kernels take the steps, as long but in other directions."""
    return not any(hasattr(module, "bands") for module in model.modules())


def check(got: list[torch.Tensor], want: list[torch.Tensor], same: bool = True) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.norm().item() == pytest.approx(b.norm().item(), rel=0.05)
        if same:  # in the same direction, too
            assert (a - b).norm() < 0.05 * b.norm()


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize(("config", "rank"), CASES)
def test_a_step_of_adamw_moves_the_kernels_as_far_as_the_static_ones(config, rank, noise):
    static, dynamic = made(config, rank, noise)
    options = {"lr": 1e-3, "weight_decay": 0.1}
    want = moved(static, torch.optim.AdamW(static.parameters(), **options), rank)
    got = moved(dynamic, torch.optim.AdamW(dynamic.parameters(), **options), rank)
    check(got, want, same=kernels_step(dynamic))


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize(("config", "rank"), CASES)
def test_a_step_of_sgd_does_with_param_groups(config, rank, noise):
    static, dynamic = made(config, rank, noise)

    def optimizer(model):
        return torch.optim.SGD(cv.param_groups(model, 0.1, lr=0.1, optimizer="sgd"), momentum=0.9, nesterov=True)

    want = moved(static, optimizer(static), rank)
    check(moved(dynamic, optimizer(dynamic), rank), want, same=kernels_step(dynamic))


def test_a_block_router_leaves_the_optimizer_alone_too():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return self.conv(x).sin()

    torch.manual_seed(0)
    static = nn.Sequential(Block())
    dynamic = cv.convert(static, cv.CondConv(router="block"), where.all(), blocks=(Block,))
    dynamic[0].router.requires_grad_(False)
    x = torch.randn(4, 8, 5, 5)
    torch.testing.assert_close(dynamic(x), static(x))
    before = static(x).detach()
    for model in (static, dynamic):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        model(x).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(dynamic(x), static(x), rtol=1e-3, atol=1e-4)
    assert (static(x) - before).abs().max() > 0.01
