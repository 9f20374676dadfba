# SPDX-License-Identifier: Apache-2.0
"""Making a trained model simpler: normalisation into the banks (exact), mean routing into static layers (lossy)."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from convary.batches import batches_of, input_of
from convary.errors import ConfigError
from convary.inspect import routed_by
from convary.nn import (
    DynamicConv,
    DynamicLayer,
    RoutedBlock,
    evaluating,
    replace,
    routed_layers,
    unshare_router,
)
from convary.nn.conv import CONVS

_CHUNK = 16  # samples whose kernels exist at the same time
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_FROZEN = {"weight", "bias", "running_mean", "running_var"}  # buffers of a frozen batch normalisation, by convention


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
    batches.

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


@torch.no_grad()
def fold_norms(model: nn.Module, example: Tensor) -> nn.Module:
    """Fold every batch normalisation that follows a dynamic convolution into its bank and bias; exact in eval mode.

    The pairs are found by running the example: the normalisation must be the only user of the convolution's output.
    An activation that belongs to the normalisation (timm's ``BatchNormAct2d``) stays. Frozen ones
    (``FrozenBatchNorm2d`` of torchvision and detectron2, timm's ``FrozenBatchNormAct2d``) are known by their four
    buffers and ``eps``.

    Args:
        model: A model with dynamic convolutions; it is not changed.
        example: Its input, (B, ...).

    Returns:
        A copy in eval mode without these normalisations. It computes what ``model.eval()`` computes.

    Raises:
        ConfigError: no batch normalisation follows a dynamic convolution that can take it in.
    """
    folded = copy.deepcopy(model).eval()
    pairs = _pairs(folded, example)
    if not pairs:
        raise ConfigError(
            f"no batch normalisation of this {type(model).__name__} follows a dynamic convolution alone, whose filters "
            "can be scaled one by one (KernelWarehouse's share cells, FDConv's frequencies); nothing to fold"
        )
    first = sum(isinstance(module, DynamicLayer) and module.folded is not None for module in folded.modules())
    numbered = enumerate(pairs.items(), first)
    return replace(folded, {norm: fold_norm(layer, norm, number) for number, (layer, norm) in numbered})


class ChannelShift(nn.Module):
    """Adds one number per channel: what is left of a normalisation behind a mixed bias.

    Args:
        shift: (C,).
    """

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(shift)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) to (B, C, *S)."""
        return x + self.shift.reshape(-1, *[1] * (x.ndim - 2))


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

    hooks = [router.register_forward_hook(record) for router in users]
    device = next(model.parameters()).device
    try:
        with evaluating(model):
            for batch in batches:
                model(input_of(batch, device))
    finally:
        for hook in hooks:
            hook.remove()
    if not means:
        raise ConfigError("fold wants at least one batch of calibration data that reaches a dynamic layer; got none")
    return {name: means[name] for name in layers if name in means}


def _static(layer: Any, mean: _Mean) -> nn.Module:
    """The ordinary layer with the mean kernel and bias."""
    factory = {"bias": mean.bias.ndim > 0, "device": layer.weight.device, "dtype": layer.weight.dtype}
    if not isinstance(layer, DynamicConv):
        static: Any = nn.Linear(layer.in_features, layer.out_features, **factory)
    else:
        if layer.padding == "same" and max(layer.stride) > 1:  # TensorFlow's rule, which nn.Conv does not know
            raise ConfigError(
                f"{type(layer).__name__} with padding='same' and a stride of {layer.stride} has no ordinary layer of "
                "torch; leave it dynamic, with freeze_routing"
            )
        groups = layer.in_channels // mean.kernel.shape[1]  # 1 where the method's kernels reach over all groups
        static = CONVS[layer.rank](
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
            groups, padding_mode=layer.padding_mode, **factory,
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


class _Uses(TorchFunctionMode):
    """Counts the operations that make a tensor out of a watched one."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, Tensor] = {}  # kept alive, so that no other tensor gets the same id
        self.count: Counter[int] = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(out)):
            self.note((args, kwargs))
        return out

    def note(self, values: Any) -> None:
        """Count a use of every watched tensor among nested values."""
        self.count.update(id(leaf) for leaf in tree_leaves(values) if id(leaf) in self.watched)


def _pairs(model: nn.Module, example: Tensor) -> dict[DynamicConv, nn.Module]:
    """Dynamic convolutions and the normalisations that alone use their outputs, each run once."""
    uses, runs = _Uses(), Counter[nn.Module]()
    made: dict[int, DynamicConv] = {}
    pairs: dict[DynamicConv, tuple[nn.Module, int]] = {}
    hooks = []

    def watch(layer: nn.Module, args: tuple, y: Tensor) -> None:
        runs[layer] += 1
        uses.watched[id(y)] = y
        made[id(y)] = layer  # type: ignore[assignment]

    def follow(norm: nn.Module, args: tuple) -> None:
        runs[norm] += 1
        if id(args[0]) in made:
            pairs[made[id(args[0])]] = (norm, id(args[0]))

    for module in model.modules():
        if isinstance(module, DynamicConv):
            hooks.append(module.register_forward_hook(watch))
        elif (isinstance(module, _NORMS) and module.running_var is not None) or _is_frozen_norm(module):
            hooks.append(module.register_forward_pre_hook(follow))
    try:
        with uses:
            uses.note(model(example))
    finally:
        for hook in hooks:
            hook.remove()
    return {
        layer: norm
        for layer, (norm, y) in pairs.items()
        if layer.absorbs and uses.count[y] == 1 and runs[layer] == runs[norm] == 1 and _understood(norm, layer.rank)
    }


def _is_frozen_norm(module: nn.Module) -> bool:
    buffers = {name for name, _ in module.named_buffers(recurse=False)} - {"num_batches_tracked"}
    return buffers == _FROZEN and not list(module.parameters()) and isinstance(getattr(module, "eps", None), float)


def _understood(norm: Any, rank: int) -> bool:
    """Whether a normalisation computes what its statistics say; one known by its buffers alone is tried."""
    if not _is_frozen_norm(norm):
        return type(norm) in _NORMS or type(norm).__name__ == "BatchNormAct2d"
    scale, shift = _scale_and_shift(norm)
    x = torch.linspace(-2, 2, 4 * scale.numel(), device=scale.device, dtype=scale.dtype)
    x = x.reshape(4, -1, *[1] * rank)
    want = x * scale.reshape(-1, *[1] * rank) + shift.reshape(-1, *[1] * rank)
    for part in _parts_behind(norm):
        want = part(want)
    return torch.allclose(norm(x), want, rtol=1e-4, atol=1e-5)


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """What a batch normalisation in eval mode multiplies every channel by and adds to it, each (C,)."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _parts_behind(norm: nn.Module) -> list[nn.Module]:
    """Dropout and activation that belong to a normalisation of timm's."""
    parts = [getattr(norm, name, None) for name in ("drop", "act")]
    return [part for part in parts if isinstance(part, nn.Module) and not isinstance(part, nn.Identity)]


@torch.no_grad()
def fold_norm(layer: DynamicConv, norm: Any, number: int | None = None) -> nn.Module:
    """Scale the bank, shift the bias, in place; what stays where the normalisation was.

    Args:
        layer: Absorbs the normalisation; ``layer.absorbs`` holds.
        norm: A batch normalisation with running statistics.
        number: Marks both, for ``convary.recipe``.
    """
    left = layer.absorb_(*_scale_and_shift(norm))
    rest = [*([] if left is None else [ChannelShift(left)]), *_parts_behind(norm)]
    stays: Any = nn.Sequential(*rest) if len(rest) > 1 else rest[0] if rest else nn.Identity()
    layer.folded = stays.folded = number
    return stays.train(norm.training)
