# SPDX-License-Identifier: Apache-2.0
"""What a model costs: parameters and multiply-adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convary.batches import input_like, taken
from convary.errors import DtypeError, ShapeError
from convary.nn import DynamicLayer, RoutedBlock, Router, evaluating, hooked
from convary.nn.site import is_conv
from convary.text import html_table


@dataclass(frozen=True, repr=False)
class Summary:
    """Parameters, and multiply-adds (MACs) of one sample.

    Attributes:
        params: All parameters.
        convolution: MACs of convolutions and linear layers, static and dynamic.
        routing: MACs of the routers.
        assembly: MACs of mixing kernels: K times the weights of every dynamic layer.
        other: MACs of anything else that torch's flop counter knows, such as attention.
        dynamic_layers: Number of dynamic layers.
    """

    params: int
    convolution: int
    routing: int
    assembly: int
    other: int
    dynamic_layers: int

    @property
    def macs(self) -> int:
        """All of them."""
        return self.convolution + self.routing + self.assembly + self.other

    def __str__(self) -> str:
        return "\n".join(f"{name:<18}{value:>16,}" for name, value in self._rows())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(("", ""), [(name.strip(), f"{value:,}") for name, value in self._rows()])

    def _rows(self) -> list[tuple[str, int]]:
        parts = [(f"  {name}", getattr(self, name)) for name in ("convolution", "routing", "assembly", "other")]
        total = [("parameters", self.params), ("MACs per sample", self.macs)]
        return [*total, *parts, ("dynamic layers", self.dynamic_layers)]


@torch.no_grad()
def summary(model: nn.Module, x: Tensor | Sequence[int]) -> Summary:
    """Count parameters and multiply-adds on x, from one forward pass in eval mode.

    For a static network the sum is half of what ``torch.utils.flop_counter`` counts. A dynamic layer is counted by
    its mathematics, whatever strategy executes it.

    Args:
        model: Any model.
        x: Its input, (B, ...), B at least 1, or the shape of one.

    Raises:
        ShapeError, DtypeError: x is an empty batch, or nothing that the model takes.

    Examples:
        >>> print(summary(nn.Conv2d(3, 8, 3, padding=1), (1, 3, 32, 32)))
        parameters                     224
        MACs per sample            221,184
          convolution              221,184
          routing                        0
          assembly                       0
          other                          0
        dynamic layers                   0
    """
    x = input_like(model, x)
    if not isinstance(x, Tensor):
        raise DtypeError(f"summary wants a tensor or its shape; got a {type(x).__name__}; give (1, 3, 224, 224), say")
    if x.ndim == 0 or x.shape[0] == 0:
        raise ShapeError(f"summary wants at least one sample; got x of shape {tuple(x.shape)}")
    count, modules = _Count(x.shape[0]), _counted_modules(model)
    with (
        evaluating(model),
        hooked(module.register_forward_pre_hook(count.enter) for module in modules),
        hooked(module.register_forward_hook(count.leave) for module in modules),
        count.counter,
        taken(model, x),
    ):
        model(x)
    return Summary(
        params=sum(p.numel() for p in model.parameters()),
        other=count.other() // x.shape[0],
        dynamic_layers=sum(isinstance(m, DynamicLayer) for m in model.modules()),
        **{part: macs // x.shape[0] for part, macs in count.macs.items()},
    )


class _Count:
    """Multiply-adds of a batch by part, and the FLOPs outside of what is counted by part."""

    def __init__(self, B: int) -> None:
        self.B, self.counter = B, FlopCounterMode(display=False)
        self.macs = {"convolution": 0, "routing": 0, "assembly": 0}
        self._seen = 0  # FLOPs that the counter saw inside the modules counted here
        self._started: list[int] = []

    def enter(self, module: nn.Module, args: tuple) -> None:
        """Before a module runs."""
        self._started.append(self.counter.get_total_flops())

    def leave(self, module: nn.Module, args: tuple, out) -> None:
        """After it ran."""
        seen = self.counter.get_total_flops() - self._started.pop()
        self._seen += seen
        if isinstance(module, DynamicLayer):
            channels = out.shape[-1] if hasattr(module, "in_features") else out.shape[1]
            for part, macs in module.macs(out[0].numel() // channels).items():
                self.macs[part] += macs * self.B
        elif isinstance(module, Router):
            self.macs["routing"] += module.macs() * self.B
        else:
            self.macs["convolution"] += seen // 2

    def other(self) -> int:
        """Multiply-adds of everything else."""
        return (self.counter.get_total_flops() - self._seen) // 2


def _counted_modules(model: nn.Module) -> list[nn.Module]:
    """Dynamic layers, shared routers and static layers; none inside another."""
    inside = {
        m for layer in model.modules() if isinstance(layer, DynamicLayer) for m in layer.modules() if m is not layer
    }
    shared = [m.router for m in model.modules() if isinstance(m, RoutedBlock)]
    inside |= {m for router in shared for m in router.modules() if m is not router}
    return [
        m
        for m in model.modules()
        if m not in inside and (isinstance(m, DynamicLayer | nn.Linear) or is_conv(m) or m in shared)
    ]
