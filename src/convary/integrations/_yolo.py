# SPDX-License-Identifier: Apache-2.0
# pyright: reportMissingImports=false
"""What Ultralytics' networks are told about dynamic layers: to fuse them, to count them, to build them by name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn import tasks
from ultralytics.nn.modules.block import RepVGGDW
from ultralytics.nn.modules.conv import Conv, Conv2, RepConv
from ultralytics.utils import LOGGER, torch_utils

from convary._fold_norms import fold_norm
from convary._summary import summary
from convary.errors import ConfigError
from convary.methods import METHODS, Involution, MethodConfig
from convary.nn import DynamicConv, Placed

NAMED: dict[str, type[MethodConfig]] = {config.layers[2].__name__: config for config in METHODS}
NAMED["Involution2d"] = Involution
# Blocks whose fused form has one convolution, ``conv``, and what that is the sum of.
_BRANCHES = {RepConv: ("conv1", "conv2", "bn"), RepVGGDW: ("conv", "conv1"), Conv2: ("conv", "cv2")}


class Branches(nn.Module):
    """The sum of what its branches make of one input: branches whose kernels vary can't be merged into one kernel."""

    def __init__(self, *branches: nn.Module | None) -> None:
        super().__init__()
        self.branches = nn.ModuleList([branch for branch in branches if branch is not None])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, O, H', W')."""
        first, *others = self.branches
        y = first(x)
        for branch in others:
            y = y + branch(x)
        return y


def holds_dynamic(model: Any) -> bool:
    """Whether a dynamic layer is in there; no for anything that is no module."""
    return isinstance(model, nn.Module) and any(isinstance(module, Placed) for module in model.modules())


def converted(model: Any) -> list[Placed]:
    """The layers that ``convary.convert`` made."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return [module for module in modules if isinstance(module, Placed) and module.converted is not None]


def patch() -> None:
    """Exchange three functions of Ultralytics by ones that do the same for static networks."""
    tasks.BaseModel.fuse = _fusing(tasks.BaseModel.fuse)
    torch_utils.get_flops = _counting(torch_utils.get_flops)
    tasks.parse_model = _parsing(tasks.parse_model)


def _fusing(fuse: Callable[..., Any]) -> Callable[..., Any]:
    """``BaseModel.fuse`` that first takes in what stands around dynamic layers; the rest is Ultralytics' own affair."""

    @functools.wraps(fuse)
    def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        blocks: list[Any] = list(self.modules())
        for block in blocks:
            _join_branches(block)
            if isinstance(block, Conv) and hasattr(block, "bn") and isinstance(block.conv, Placed | Branches):
                _take_norm(block)
        return fuse(self, *args, **kwargs)

    return wrapped


def _join_branches(block: Any) -> None:
    """Where a block would add up the kernels of its branches and one varies, let it add up their outputs."""
    names = next((names for kind, names in _BRANCHES.items() if isinstance(block, kind)), ())
    others = [name for name in names if name != "conv"]
    if others and hasattr(block, others[0]) and holds_dynamic(block):
        block.conv = Branches(*(getattr(block, name) for name in names))
        for name in others:
            delattr(block, name)


def _take_norm(block: Any) -> None:
    """What ``fuse`` does to a static ``Conv``."""
    block.conv = _with_norm(block.conv, block.bn).requires_grad_(False)
    del block.bn
    block.forward = block.forward_fuse


def _with_norm(conv: nn.Module, norm: nn.Module) -> nn.Module:
    """The two as one module: the convolution alone where it can take in all of the normalisation."""
    if not (isinstance(conv, DynamicConv) and conv.absorbs):
        return nn.Sequential(conv, norm)
    left = fold_norm(conv, norm)
    return conv if isinstance(left, nn.Identity) else nn.Sequential(conv, left)


def _counting(get_flops: Callable[..., float]) -> Callable[..., float]:
    """``get_flops`` that counts networks with dynamic layers by ``convary.summary``: THOP does not see what they do."""

    @functools.wraps(get_flops)
    def wrapped(model: nn.Module, imgsz: int | Sequence[int] = 640) -> float:
        bare: Any = torch_utils.unwrap_model(model)
        if not holds_dynamic(bare):
            return get_flops(model, imgsz)
        sides = list(imgsz) if isinstance(imgsz, Sequence) else [imgsz]
        stride = max(int(bare.stride.max()), 32) if hasattr(bare, "stride") else 32
        sides = [-(-side // stride) * stride for side in (sides * 2)[:2]]
        like = next(bare.parameters())
        channels = getattr(bare, "yaml", {}).get("channels", 3)
        return summary(bare, torch.zeros(1, channels, *sides, device=like.device, dtype=like.dtype)).macs / 1e9 * 2

    return wrapped


def _parsing(parse_model: Callable[..., Any]) -> Callable[..., Any]:
    """``parse_model`` that knows the layers in ``NAMED``: each is a ``Conv`` block whose convolution is dynamic."""

    @functools.wraps(parse_model)
    def wrapped(d: Mapping[str, Any], ch: int, verbose: bool = True) -> Any:
        rows = [list(row) for row in [*d["backbone"], *d["head"]]]
        configs = {i: _config(row) for i, row in enumerate(rows) if row[2] in NAMED}
        for i in configs:
            arguments = [a for a in rows[i][3] if not isinstance(a, Mapping)]
            rows[i] = [*rows[i][:2], "Conv", arguments]
        split = len(d["backbone"])
        model, save = parse_model({**d, "backbone": rows[:split], "head": rows[split:]}, ch, verbose)
        for i, config in configs.items():
            _make_dynamic(model[i], config)
            if verbose:
                LOGGER.info(f"{i:>3}  becomes {model[i].type} ({config}), {model[i].np:,} parameters")
        return model, save

    return wrapped


def _config(row: Sequence[Any]) -> MethodConfig:
    """The options of a row such as ``[-1, 1, ODConv2d, [64, 3, 2, {experts: 4}]]``."""
    _, _, name, arguments = row
    options = [a for a in arguments if isinstance(a, Mapping)]
    if len(options) > 1 or (options and arguments[-1] is not options[0]):
        raise ConfigError(f"{name} in a model yaml takes Conv's arguments, then one dict of options; got {arguments}")
    return NAMED[name].from_options(dict(*options))


def _make_dynamic(block: Any, config: MethodConfig) -> None:
    """Exchange the convolution of a ``Conv`` block, or of several in a row."""
    blocks: list[Any] = [module for module in block.modules() if isinstance(module, Conv)]
    for one in blocks:
        one.conv = config.build(one.conv)
    block.np = sum(p.numel() for p in block.parameters())
    block.type = f"{type(blocks[0].conv).__module__}.{type(blocks[0].conv).__name__}"
