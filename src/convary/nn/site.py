# SPDX-License-Identifier: Apache-2.0
"""Where a layer stands in a network: what placements decide on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

# Residual and inverted-residual blocks by class name, in torchvision, timm and common code.
BLOCKS = frozenset(
    "BasicBlock Bottleneck InvertedResidual InvertedResidualV3 DepthwiseSeparableConv EdgeResidual "
    "CondConvResidual UniversalInvertedResidual MBConv FusedMBConv MbConvBlock CNBlock ConvNeXtBlock Bottle2neck "
    "PreActBlock PreActBottleneck ResBottleneckBlock BottleneckBlock GhostBottleneck "
    "RepVggBlock".split()
)
_GATES = frozenset("SqueezeExcitation SqueezeExcite SEModule EffectiveSEModule EcaModule SEBlock SELayer".split())
_SHORTCUTS = frozenset({"downsample", "shortcut", "skip", "proj_shortcut"})


@dataclass(frozen=True)
class Site:
    """One convolution or linear layer of a network.

    Attributes:
        name: Qualified name of the layer.
        module: The layer.
        index: Position among the layers of its sort (convolutions, or linear layers), in registration order.
        count: How many of its sort there are.
        block: Name of the innermost block around it, or None.
        block_type: Class name of that block.
        block_index: Position of the block among all blocks.
        block_count: Number of blocks.
        gate: Whether it is part of a squeeze-and-excitation gate.
    """

    name: str
    module: Any
    index: int
    count: int
    block: str | None
    block_type: str
    block_index: int
    block_count: int
    gate: bool

    @property
    def is_conv(self) -> bool:
        """Whether it is a convolution (or derives from one)."""
        return is_conv(self.module)

    @property
    def shortcut(self) -> bool:
        """Whether it projects a residual shortcut."""
        return bool(_SHORTCUTS & set(self.name.split(".")))


Placement = Callable[[Site], bool]


def is_conv(module: nn.Module) -> bool:
    """Whether a module is an ordinary (not transposed) convolution of one to three axes."""
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)


def is_gate(module: nn.Module) -> bool:
    """Whether a module is a squeeze-and-excitation gate, by a known class name."""
    return bool(_GATES & {cls.__name__ for cls in type(module).__mro__})


def is_block(module: nn.Module, blocks: tuple[type[nn.Module], ...] = ()) -> bool:
    """Whether a module is a block: one of ``blocks``, or of a known class name."""
    return isinstance(module, blocks) if blocks else bool(BLOCKS & {cls.__name__ for cls in type(module).__mro__})


def sites(model: nn.Module, blocks: tuple[type[nn.Module], ...] = ()) -> Iterator[Site]:
    """All convolutions and linear layers of a model, each once, in registration order.

    Args:
        model: Any module; it may itself be a layer.
        blocks: What counts as a block; by default classes with the names in ``BLOCKS``.
    """
    block_names: list[str] = []
    gates: list[str] = []
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        if name and is_block(module, blocks):
            block_names.append(name)
        if is_gate(module):
            gates.append(name)
        if is_conv(module) or isinstance(module, nn.Linear):
            found.append((name, module))
    counts = {True: sum(is_conv(m) for _, m in found), False: sum(not is_conv(m) for _, m in found)}
    seen = {True: 0, False: 0}
    modules = dict(model.named_modules())
    for name, module in found:
        sort = is_conv(module)
        around = [b for b in block_names if name.startswith(f"{b}.")]
        block = max(around, key=len, default=None)
        yield Site(
            name=name,
            module=module,
            index=seen[sort],
            count=counts[sort],
            block=block,
            block_type=type(modules[block]).__name__ if block else "",
            block_index=block_names.index(block) if block else -1,
            block_count=len(block_names),
            gate=any(name.startswith(f"{g}.") for g in gates),
        )
        seen[sort] += 1


def replace(model: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
    """Exchange modules under all of their names; returns the root, which may itself be one of them."""
    if model in made:
        return made[model]
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        if module in made:
            parent, _, leaf = name.rpartition(".")
            setattr(modules[parent], leaf, made[module])
    return model
