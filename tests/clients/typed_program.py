# SPDX-License-Identifier: Apache-2.0
"""What type checkers make of a program that uses an installed convary; nothing here is run.

``assert_type`` holds what a checker infers to the type that is written. The lines that end in ``# wrong``, and no
others, are errors.
"""

# ruff: noqa: F401, I001, B018
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn
    from typing_extensions import assert_type

    import convary as cv
    import convary
    from convary import ODConv2d, where
    from convary import nothing_like_it  # wrong

    class Net(nn.Module):
        width: int = 3

    def layers(x: torch.Tensor) -> None:
        layer = cv.ODConv2d(8, 16, 3, padding=1, experts=4, attentions=("kernel", "tap"), sharing="per_kernel")
        assert_type(layer, cv.ODConv2d)
        assert_type(layer(x), torch.Tensor)
        assert_type(layer.config.experts, int)
        cv.ODConv2d(8, 16, 3, expert=4)  # wrong
        cv.ODConv2d(8, 16, 3, experts="4")  # wrong
        cv.ODConv2d(8, 16, 3, sharing="all")  # wrong
        cv.ODConv2d(8, 16, 3, attentions=("kernels",))  # wrong
        cv.ODConv2d(8, 16, 3, padding_mode="reflected")  # wrong
        cv.ODConv2d(8, kernel_size=3)  # wrong
        cv.CondConv2d(8, 16, 3, router="block")
        cv.CondConv2d(8, 16, 3, router="net")  # wrong
        cv.DyConv1d(8, 16, 3, 2, "same", temperature=30)
        cv.DyConv1d(8, 16, 3, 2, "same", temperatur=30)  # wrong
        cv.DyNetConv3d(8, 16, (1, 3, 3), reduction=None)
        cv.DyNetConv3d(8, 16, 3, reduction="4")  # wrong
        cv.KernelWarehouse2d(8, 16, 3, cell_ratio=4, device="meta", dtype=torch.float64)
        cv.KernelWarehouse2d(8, 16, 3, cell_ratio=4, dtype="float64")  # wrong
        cv.KernelWarehouseLinear(8, 16, cell_ratio=4)
        cv.KernelWarehouseLinear(8, 16, ratio=4)  # wrong
        cv.DCDConv2d(8, 16, 3, latent="basic")
        cv.DCDConv2d(8, 16, 3, latent="base")  # wrong
        cv.WeightNet2d(8, 16, 3, splits=2)
        cv.WeightNet2d(8, 16, 3, split=2)  # wrong
        cv.CGC2d(8, 16, 3, interaction=16)
        cv.CGC2d(8, 16, 3, interactions=16)  # wrong
        cv.FDConv2d(8, 16, 3, bands=(2, 4))
        cv.FDConv2d(8, 16, 3, bands=2)  # wrong

    def configs() -> None:
        assert_type(cv.ODConv(experts=1), cv.ODConv)
        cv.ODConv(1)  # wrong
        cv.ODConv(expert=1)  # wrong
        cv.ODConv().experts = 2  # wrong
        assert_type(cv.method("odconv"), cv.MethodConfig)
        assert_type(cv.METHODS, tuple[type[cv.MethodConfig], ...])
        assert_type(cv.ODConv.annealing, cv.Annealing | None)

    def models(net: Net, x: torch.Tensor, path: Path) -> None:
        plan = cv.plan(net, cv.ODConv(), where.all() & ~where.first(), example=(1, 3, 32, 32))
        assert_type(plan, cv.Plan)
        assert_type(plan.rows, tuple[cv.PlanRow, ...])
        assert_type(plan.apply(), nn.Module)
        assert_type(cv.convert(net, cv.ODConv()), Net)
        assert_type(cv.convert(net, cv.ODConv()).width, int)
        cv.convert(net, cv.ODConv)  # wrong
        cv.convert(net, cv.ODConv(), "all")  # wrong
        cv.convert(net, cv.ODConv(), upcycled=True)  # wrong
        assert_type(cv.load(net, path), Net)
        assert_type(cv.reconvert(net, cv.recipe(net)), Net)
        assert_type(cv.fold_norms(net, x), Net)
        assert_type(cv.fold(net, [x]), cv.Folded)
        assert_type(cv.summary(net, (1, 3, 32, 32)), cv.Summary)
        assert_type(cv.diagnose(net, x), cv.Diagnosis)
        assert_type(cv.routing(net, (1, 3, 32, 32)), dict[str, cv.Coefficients])
        assert_type(cv.anneal(net, steps=4), cv.TemperatureAnnealing)
        cv.anneal(net)  # wrong
        cv.anneal(net, steps=4, shape="exponential")  # wrong
        assert_type(cv.export(net, x), torch.export.ExportedProgram)
        cv.export(net, x, strategy="native")  # wrong
        assert_type(cv.export_forms("model.onnx"), list[cv.ExportForm])
        assert_type(cv.param_groups(net, lr=0.1), list[dict[str, Any]])
        assert_type(cv.released_state(net), dict[str, torch.Tensor])
        assert_type(cv.load_released(net, path).mapped, int)

    def operations(x: torch.Tensor, bank: torch.Tensor) -> None:
        coeffs = cv.Coefficients(kernel=x, tap=None)
        cv.Coefficients(kernels=x)  # wrong
        assert_type(coeffs.kernel, torch.Tensor | None)
        assert_type(cv.ops.mixed_conv(x, bank, coeffs, padding="same"), torch.Tensor)
        cv.ops.mixed_conv(x, bank, coeffs, pading=1)  # wrong
        assert_type(cv.ops.explain(cv.ops.mixed_conv, x, bank, coeffs, padding=1), cv.ops.Explanation)
        cv.ops.explain(cv.ops.mixed_conv, x, bank, coeffs, pading=1)  # wrong
        assert_type(cv.ops.explain("mixed_conv", x, bank, coeffs), cv.ops.Explanation)

    def packages() -> None:
        assert_type(cv.nn.freeze_routing(nn.Identity()), None)
        assert_type(cv.models.restore("model.pt"), nn.Module)
        assert_type(convary.__version__, str)
        cv.ODConv4d  # wrong
        print(cv.integrations, cv.errors.ConfigError, cv.data.load, cv.train.load_model, cv.report.draw)
