# SPDX-License-Identifier: Apache-2.0
"""Where a layer stands in a network: what placements decide on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from convary.nn.arguments import Model
from convary.nn.backbone import backbone_names
from convary.nn.layer import DynamicLayer
from convary.nn.outputs import is_layer, predictions
from convary.nn.placed import Placed
from convary.nn.router import Router

# What transformers calls blocks that placements know by the names of torchvision.
_SAME = {
    "ResNetBasicLayer": "BasicBlock",
    "ResNetBottleNeckLayer": "Bottleneck",
    "MobileNetV2InvertedResidual": "InvertedResidual",
    "ConvNextLayer": "CNBlock",
    "EfficientNetBlock": "MBConv",
}
# Residual and inverted-residual blocks by class name, in torchvision, timm, transformers and common code.
BLOCKS = frozenset(
    "BasicBlock Bottleneck InvertedResidual InvertedResidualV3 DepthwiseSeparableConv EdgeResidual "
    "CondConvResidual UniversalInvertedResidual MBConv FusedMBConv MbConvBlock CNBlock ConvNeXtBlock Bottle2neck "
    "PreActBlock PreActBottleneck ResBottleneckBlock BottleneckBlock GhostBottleneck "
    "RepVggBlock RegNetXLayer RegNetYLayer ConvNextV2Layer BitBottleneckLayer "
    "BitPreActivationBottleneckLayer".split()
).union(_SAME)
_GATES = frozenset(
    "SqueezeExcitation SqueezeExcite SEModule EffectiveSEModule EcaModule SEBlock SELayer RegNetSELayer "
    "EfficientNetSqueezeExciteLayer".split()
)
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
        block_type: Class name of that block; torchvision's for transformers' blocks of the same networks.
        block_index: Position of the block among all blocks.
        block_count: Number of blocks.
        gate: Whether it is part of a squeeze-and-excitation gate.
        constant: Whether it is a frozen constant, see ``constants``.
        prediction: Whether the network's outputs come from it, with no normalisation or activation behind it.
        backbone: Whether it is part of the model's feature extractor; None where none is known.
        alone: In a detector or segmenter, how the layer stands in the feature extractor alone; None outside of it and
            in other networks.
        outside: Whether it belongs to a detector or segmenter, but not to its feature extractor.
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
    constant: bool = False
    prediction: bool = False
    backbone: bool | None = None
    alone: Site | None = None
    outside: bool = False

    @property
    def aside(self) -> str | None:
        """Why no paper makes the layer dynamic, whatever the method, or None."""
        if self.constant:
            return "it is a frozen constant"
        if self.prediction:
            return "it makes predictions: no normalisation or activation stands behind it"
        if self.outside:
            return "it is outside the backbone, the part of a detector or segmenter that papers make dynamic"
        return None

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


def constants(model: nn.Module) -> frozenset[nn.Module]:
    """Convolutions that compute something fixed, such as the mean of a distribution (YOLO's DFL) or a blur.

    Their weight is frozen, they have no bias, and the module that holds them holds nothing but such: a frozen layer of
    a backbone has its normalisation, its activation or its bias beside it.
    """
    found: set[nn.Module] = set()
    for module in model.modules():
        children = list(module.children())
        if children and all(is_conv(c) and c.bias is None and not c.weight.requires_grad for c in children):
            found.update(children)
    return frozenset(found)


def sites(model: nn.Module, blocks: tuple[type[nn.Module], ...] = ()) -> Iterator[Site]:
    """All convolutions and linear layers of a model, each once, in registration order.

    What a router or a dynamic layer is made of is none: it makes kernels, and no paper converts it.

    Args:
        model: Any module; it may itself be a layer.
        blocks: What counts as a block; by default classes with the names in ``BLOCKS``.
    """
    found = list(_sites(model, blocks))
    backbone = backbone_names(model)
    inside = {site.name: site for site in _sites(model, blocks, backbone)} if backbone else {}
    fixed = constants(model)
    ends = predictions(model, fixed)
    predicts = {site.name for site in found if site.module in ends and site.block is None and not site.gate}
    detects = bool(inside) and _detects([site for site in found if site.name not in inside], bool(predicts))
    for site in found:
        yield dataclasses.replace(
            site,
            constant=site.module in fixed,
            prediction=site.name in predicts,
            backbone=site.name in inside if inside else None,
            alone=inside.get(site.name) if detects else None,
            outside=detects and site.name not in inside,
        )


def unsited(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Layers like convolutions that are no sites, so that nothing converts them: name, layer, and why it stays."""
    for name, module in model.named_modules():
        if isinstance(module, DynamicLayer):
            yield name, module, "already dynamic"
        elif isinstance(module, nn.Bilinear):
            yield name, module, "no method has a form of a bilinear layer"
        elif is_layer(module) and not is_conv(module):
            transposed = "Transpose" in type(module).__name__
            what = "of a transposed convolution" if transposed else f"of {type(module).__name__}, which is no nn.Conv"
            yield name, module, f"no method has a form {what}"


def _detects(outside: list[Site], predicts: bool) -> bool:
    """Whether what follows a feature extractor is more than a classifier: convolutions, and not one linear layer."""
    convolutions = sum(site.is_conv for site in outside)
    return convolutions > 0 and (predicts or len(outside) - convolutions != 1)


def _sites(model: nn.Module, blocks: tuple[type[nn.Module], ...], within: tuple[str, ...] = ("",)) -> Iterator[Site]:
    """What is counted in the modules with the names ``within`` alone."""
    block_names: list[str] = []
    gates: list[str] = []
    found: list[tuple[str, nn.Module]] = []
    makers = {part for module in model.modules() if isinstance(module, Placed | Router) for part in module.modules()}
    for name, module in model.named_modules():
        if module in makers:
            continue
        if not any(not part or name == part or name.startswith(f"{part}.") for part in within):
            continue
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
            block_type=_block_type(modules[block]) if block else "",
            block_index=block_names.index(block) if block else -1,
            block_count=len(block_names),
            gate=any(name.startswith(f"{g}.") for g in gates),
        )
        seen[sort] += 1


def _block_type(block: nn.Module) -> str:
    name = type(block).__name__
    return _SAME.get(name, name)


def replace(model: Model, made: Mapping[Any, nn.Module]) -> Model:
    """Exchange modules under all of their names; returns the root, which may itself be one of them."""
    if model in made:
        return made[model]  # type: ignore[return-value]
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        if module in made:
            parent, _, leaf = name.rpartition(".")
            setattr(modules[parent], leaf, made[module])
    return model
