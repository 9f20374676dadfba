# SPDX-License-Identifier: Apache-2.0
"""Folding batch normalisations into the banks of the dynamic convolutions before them; exact."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from convary.batches import input_like, taken
from convary.errors import ConfigError
from convary.nn import DynamicConv, DynamicLayer, hooked, replace
from convary.nn.arguments import Model

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_FROZEN = {"weight", "bias", "running_mean", "running_var"}  # buffers of a frozen batch normalisation, by convention


@torch.no_grad()
def fold_norms(model: Model, example: Tensor | Sequence[int]) -> Model:
    """Fold every batch normalisation that follows a dynamic convolution into its bank and bias; exact in eval mode.

    The pairs are found by running the example: the normalisation must be the only user of the convolution's output.
    An activation that belongs to the normalisation (timm's ``BatchNormAct2d``) stays. Frozen ones
    (``FrozenBatchNorm2d`` of torchvision and detectron2, timm's ``FrozenBatchNormAct2d``) are known by their four
    buffers and ``eps``.

    Args:
        model: A model with dynamic convolutions; it is not changed.
        example: Its input, (B, ...), or the shape of one.

    Returns:
        A copy in eval mode without these normalisations. It computes what ``model.eval()`` computes.

    Raises:
        ConfigError: no batch normalisation follows a dynamic convolution that can take it in.
        ShapeError, DtypeError: the model can't take the example.

    Examples:
        >>> from convary.methods import ODConv2d
        >>> model = nn.Sequential(ODConv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> fold_norms(model, torch.randn(2, 3, 9, 9))[1]
        Identity()
    """
    folded = copy.deepcopy(model).eval()
    x = input_like(folded, example)
    with taken(folded, x):
        pairs = _pairs(folded, (x,))
    if not pairs:
        raise ConfigError(
            f"no batch normalisation of this {type(model).__name__} follows a dynamic convolution alone, whose filters "
            "can be scaled one by one (KernelWarehouse's share cells, FDConv's frequencies); nothing to fold"
        )
    return _folded(folded, pairs)


@torch.no_grad()
def fold_norms_(model: Model, inputs: tuple[Tensor, ...]) -> Model:
    """As ``fold_norms``, in place, of a model in eval mode; where there is nothing to fold the model as it was."""
    return _folded(model, _pairs(model, inputs))


def _folded(model: Model, pairs: dict[DynamicConv, nn.Module]) -> Model:
    first = sum(isinstance(module, DynamicLayer) and module.folded is not None for module in model.modules())
    numbered = enumerate(pairs.items(), first)
    return replace(model, {norm: fold_norm(layer, norm, number) for number, (layer, norm) in numbered})


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


def _pairs(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[DynamicConv, nn.Module]:
    """Dynamic convolutions and the normalisations that alone use their outputs, each run once."""
    uses, runs = _Uses(), Counter[nn.Module]()
    made: dict[int, DynamicConv] = {}
    pairs: dict[DynamicConv, tuple[nn.Module, int]] = {}

    def watch(layer: nn.Module, args: tuple, y: Tensor) -> None:
        runs[layer] += 1
        uses.watched[id(y)] = y
        made[id(y)] = layer  # type: ignore[assignment]

    def follow(norm: nn.Module, args: tuple) -> None:
        runs[norm] += 1
        if id(args[0]) in made:
            pairs[made[id(args[0])]] = (norm, id(args[0]))

    convs = [module for module in model.modules() if isinstance(module, DynamicConv)]
    norms = [module for module in model.modules() if _keeps_statistics(module)]
    with (
        hooked(conv.register_forward_hook(watch) for conv in convs),
        hooked(norm.register_forward_pre_hook(follow) for norm in norms),
        uses,
    ):
        uses.note(model(*inputs))
    return {
        layer: norm
        for layer, (norm, y) in pairs.items()
        if layer.absorbs and uses.count[y] == 1 and runs[layer] == runs[norm] == 1 and _understood(norm, layer.rank)
    }


def _keeps_statistics(module: nn.Module) -> bool:
    return (isinstance(module, _NORMS) and module.running_var is not None) or _is_frozen_norm(module)


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
