# SPDX-License-Identifier: Apache-2.0
"""Making a trained model static: the mean kernels that its layers use on calibration data. Lossy."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from convary._routing import routed_by
from convary.batches import batches_of, input_of
from convary.errors import ConfigError
from convary.nn import (
    DynamicConv,
    DynamicLayer,
    RoutedBlock,
    evaluating,
    hooked,
    replace,
    routed_layers,
    unshare_router,
)
from convary.nn.conv import CONVS
from convary.nn.same import SAME_CONVS

_CHUNK = 16  # samples whose kernels exist at the same time


@dataclass(frozen=True)
class Folded:
    """What ``fold`` made, and how far it is from what it was made of.

    Attributes:
        model: The folded model.
        error: Root mean square of the change of its outputs over the batches, relative to that of the outputs.
        spread: By layer: root mean square distance of the samples' kernels from their mean, relative to the kernels.
            0: the routing ignores the input, and folding the layer loses nothing.
        kept: Names of the layers that stay dynamic.
    """

    model: nn.Module = field(repr=False)
    error: float
    spread: dict[str, float]
    kept: tuple[str, ...] = ()

    def __str__(self) -> str:
        width = max(map(len, self.spread), default=0)
        rows = [f"{n:<{width}}  {s:8.4f}  {'dynamic' if n in self.kept else 'folded'}" for n, s in self.spread.items()]
        return "\n".join([*rows, f"relative error of the outputs: {self.error:.4g}"])


@torch.no_grad()
def fold(model: nn.Module, batches: Iterable[Any] | Tensor, *, below: float = float("inf")) -> Folded:
    """Replace dynamic layers by ordinary ones with the mean of the kernels that they use on calibration data.

    Lossy, unless the routing ignores the input: look at ``error``, and at accuracy on data that is not among the
    batches. Layers become torch's own; where ``padding="same"`` meets a stride, which torch's refuse, those of
    ``convary.nn.same``.

    Args:
        model: A model with dynamic layers; it is not changed.
        batches: Inputs (B, ...), tuples that begin with one, or dicts with one under a usual key, such as a
            ``DataLoader`` gives; one tensor is one batch. They are moved to the model's device, and run through twice.
        below: Fold only layers whose ``spread`` is less than this.

    Returns:
        The folded copy in eval mode, with the measured error.

    Raises:
        ConfigError: no dynamic layer, or no batch.
        DataError: no input is found in a batch.

    Examples:
        >>> from convary.methods import MixedLinear
        >>> folded = fold(MixedLinear(8, 3), [torch.randn(4, 8)])
        >>> folded.model
        Linear(in_features=8, out_features=3, bias=True)
    """
    batches = batches_of(batches)
    if iter(batches) is batches:
        batches = list(batches)
    means = _mean_layers(model, batches)
    spread = {name: mean.spread() for name, mean in means.items()}
    chosen = {name: mean for name, mean in means.items() if spread[name] < below}
    static = copy.deepcopy(model).eval()
    layers = dict(static.named_modules())
    static = replace(static, {layers[name]: _static(layers[name], mean) for name, mean in chosen.items()})
    for block in [m for m in static.modules() if isinstance(m, RoutedBlock)]:
        if not routed_layers(block):  # type: ignore[arg-type]
            unshare_router(block)  # type: ignore[arg-type]
    return Folded(static, _relative_error(static, model, batches), spread, tuple(n for n in means if n not in chosen))


class _Mean:
    """Running sums of a layer's kernels and biases over samples."""

    def __init__(self, layer: DynamicLayer) -> None:
        self.layer, self.count = layer, 0
        self.kernel = self.square = self.bias = torch.zeros((), device=layer.weight.device)

    def add(self, coeffs: Any) -> None:
        """Take the coefficients of a batch."""
        B = next(iter(coeffs.factors().values())).shape[0]
        for i in range(0, B, _CHUNK):
            part = type(coeffs)(**{axis: value[i : i + _CHUNK] for axis, value in coeffs.factors().items()})
            kernels = self.layer.kernels(part).float()
            self.kernel = self.kernel + kernels.sum(0)
            self.square = self.square + kernels.square().sum(0)
            if (biases := self.layer.biases(part)) is not None:
                self.bias = self.bias + biases.double().sum(0)
        self.count += B

    def spread(self) -> float:
        """See ``Folded.spread``."""
        total = float(self.square.sum() / self.count)
        mean = float((self.kernel / self.count).square().sum())
        return max(0.0, 1.0 - mean / total) ** 0.5 if total else 0.0


def _mean_layers(model: nn.Module, batches: Iterable[Any]) -> dict[str, _Mean]:
    layers = dict(model.named_modules())
    users = routed_by(model)
    if not users:
        raise ConfigError(f"{type(model).__name__} has no dynamic layer to fold")
    means: dict[str, _Mean] = {}

    def record(router: nn.Module, args: tuple, coeffs: Any) -> None:
        for name in users[router]:  # type: ignore[index]
            means.setdefault(name, _Mean(layers[name])).add(coeffs)  # type: ignore[arg-type]

    device = next(model.parameters()).device
    with evaluating(model), hooked(router.register_forward_hook(record) for router in users):
        for batch in batches:
            model(input_of(batch, device))
    if not means:
        raise ConfigError("fold wants at least one batch of calibration data that reaches a dynamic layer; got none")
    return {name: means[name] for name in layers if name in means}


def _static(layer: Any, mean: _Mean) -> nn.Module:
    """The ordinary layer with the mean kernel and bias."""
    factory = {"bias": mean.bias.ndim > 0, "device": layer.weight.device, "dtype": layer.weight.dtype}
    if not isinstance(layer, DynamicConv):
        static: Any = nn.Linear(layer.in_features, layer.out_features, **factory)
    else:
        by_size = layer.padding == "same" and max(layer.stride) > 1  # TensorFlow's rule, which nn.Conv does not know
        make, padding = (SAME_CONVS[layer.rank], 0) if by_size else (CONVS[layer.rank], layer.padding)
        groups = layer.in_channels // mean.kernel.shape[1]  # 1 where the method's kernels reach over all groups
        static = make(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, padding, layer.dilation, groups,
            padding_mode=layer.padding_mode, **factory,
        )  # fmt: skip
    static.weight.copy_((mean.kernel / mean.count).reshape(static.weight.shape))
    if static.bias is not None:
        static.bias.copy_(mean.bias / mean.count)
    return static.eval()


def _relative_error(folded: nn.Module, model: nn.Module, batches: Iterable[Any]) -> float:
    change, size = 0.0, 0.0
    device = next(model.parameters()).device
    with evaluating(model):
        for batch in batches:
            x = input_of(batch, device)
            for got, want in zip(tree_leaves(folded(x)), tree_leaves(model(x)), strict=True):
                if isinstance(want, Tensor) and want.is_floating_point():
                    change += float((got - want).double().square().sum())
                    size += float(want.double().square().sum())
    return (change / size) ** 0.5 if size else 0.0
