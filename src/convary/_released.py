# SPDX-License-Identifier: Apache-2.0
"""The authors' checkpoints: into converted models and single layers, by key map, strictly; and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from convary.errors import CheckpointError, nearest
from convary.methods.condconv import released_router
from convary.nn import DynamicLayer, RoutedBlock, layout
from convary.weights import left_over, listed, other_shapes, read_weights, unwrap


@dataclass(frozen=True)
class Report:
    """What ``load_released`` did.

    Attributes:
        dynamic: Names of the dynamic layers that were loaded ("" for a single layer).
        copied: Number of tensors taken as they are.
        mapped: Number of tensors renamed, reshaped or joined.
    """

    dynamic: tuple[str, ...]
    copied: int
    mapped: int

    def __str__(self) -> str:
        return (
            f"{len(self.dynamic)} dynamic layers loaded: {self.mapped} tensors mapped, {self.copied} copied as they are"
        )


class _Taken(Mapping[str, Tensor]):
    """The tensors below a prefix, and those of the layer's that are kept elsewhere; remembers which were used."""

    def __init__(
        self, tensors: Mapping[str, Tensor], prefix: str, used: set[str], elsewhere: Mapping[str, str] | None = None
    ) -> None:
        self.tensors, self.prefix, self.used, self.elsewhere = tensors, prefix, used, elsewhere or {}

    def __getitem__(self, name: str) -> Tensor:
        key = self.elsewhere.get(name, self.prefix + name)
        tensor = self.tensors[key]
        self.used.add(key)
        return tensor

    def __contains__(self, name: object) -> bool:
        return self.elsewhere.get(str(name), f"{self.prefix}{name}") in self.tensors

    def __iter__(self) -> Iterator[str]:
        return (key[len(self.prefix) :] for key in self.tensors if key.startswith(self.prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def load_released(target: nn.Module, state_dict: Mapping[str, Any] | str | Path) -> Report:
    """Load weights that a method's authors (or the common third-party code) saved.

    Known layouts: OSVAI/ODConv and OSVAI/KernelWarehouse; liyunsheng13/dcd; layers of megvii-model/WeightNet;
    XudongLinthu/context-gated-convolution; Linwei-Chen/FDConv; timm's CondConv EfficientNets and ``CondConv2d``,
    d-li14/condconv.pytorch; kaijieshi7's and TArdelean's DyConv; lartpang/HDFNet. A ``state_dict`` entry around the
    tensors and a ``module.`` prefix in front of their names are taken off. Where KernelWarehouse's and DCD's authors
    name parts of torchvision's ResNet or MobileNetV2 otherwise (the classifier), either name will do.

    Args:
        target: A converted model, a single dynamic layer, or a network with a ``released_name`` (HDFNet's).
        state_dict: The tensors by name, or the path of a checkpoint, of which nothing but tensors is read.

    Returns:
        What was loaded.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape; names it, and the nearest. Or the file is
            truncated, or a pickle that holds more than weights. Nothing has been loaded then.

    Examples:
        >>> from convary.methods import ODConv2d
        >>> layer = ODConv2d(16, 16, 3, bias=False)
        >>> theirs = released_state(ODConv2d(16, 16, 3, bias=False))
        >>> sorted(theirs)[0]
        'attention.bn.bias'
        >>> print(load_released(layer, theirs))
        1 dynamic layers loaded: 15 tensors mapped, 0 copied as they are
    """
    tensors = read_weights(state_dict) if isinstance(state_dict, (str, Path)) else unwrap(state_dict)
    own = target.state_dict()
    used: set[str] = set()
    problems: list[str] = []
    their_name = _names(target)
    state = _mapped(target, tensors, used, problems)
    mapped = len(used)
    for name, tensor in own.items():
        if name in state:
            continue
        if name.endswith(("router.temperature", "router.starts")):  # no released layout saves them
            state[name] = tensor
        elif not _is_dynamic(target, name):
            theirs = their_name(name, tensors)
            if theirs in tensors:
                state[name] = tensors[theirs]
                used.add(theirs)
                mapped += theirs != name
            else:
                problems.append(f"{theirs} is missing{nearest(theirs, tensors.keys() - used)}")
    problems += left_over((name for name in tensors if name not in used), own)
    problems += other_shapes(state, own)
    if problems:
        raise CheckpointError(
            f"the checkpoint does not fit {type(target).__name__}: {listed(problems)}. "
            "Convert the model with the checkpoint's method, placement and number of experts first"
        )
    target.load_state_dict(state)
    dynamic = tuple(name for name, module in target.named_modules() if isinstance(module, DynamicLayer))
    return Report(dynamic, copied=len(used) - mapped, mapped=mapped)


def released_state(source: nn.Module) -> dict[str, Tensor]:
    """The weights of a model or layer in the layout of its method's authors: what ``load_released`` reads.

    ODConv and KernelWarehouse in OSVAI's, DCD in liyunsheng13's, WeightNet in megvii-model's, CGC in XudongLinthu's,
    FDConv in Linwei-Chen's, CondConv in timm's (its routers as ``routing_fn``), DyConv in kaijieshi7's, or TArdelean's
    where ``hidden_bias`` is set, HDFNet in lartpang's. Everything else keeps its name, but for what KernelWarehouse's
    and DCD's authors name otherwise in torchvision's ResNet and MobileNetV2. Temperatures are left out.

    Args:
        source: A converted model, or a single dynamic layer.

    Returns:
        Tensors by name, for ``torch.save``. They share memory with the model where the layout allows it.

    Raises:
        CheckpointError: a layer has options or a method that the layout can't hold; names it.

    Examples:
        >>> from convary.methods import CondConv2d
        >>> sorted(released_state(CondConv2d(3, 8, 3, experts=2)))
        ['bias', 'routing_fn.bias', 'routing_fn.weight', 'weight']
    """
    state: dict[str, Tensor] = {}
    elsewhere, their_name = _elsewhere(source), _names(source)
    for name, module in source.named_modules():
        prefix = their_name(f"{name}.") if name else ""
        if isinstance(module, DynamicLayer):
            moved = elsewhere[name]
            try:
                released = module.to_released()
                state |= {moved.get(key, prefix + key): value.detach() for key, value in released.items()}
            except CheckpointError as error:
                raise CheckpointError(f"{name or 'the layer'}: {error}") from error
        elif isinstance(module, RoutedBlock):
            own = {f"router.{key}": value for key, value in module.router.state_dict().items()}
            state |= {prefix + key: value for key, value in layout.write(released_router(None), own).items()}
    return state | {
        their_name(name): value for name, value in source.state_dict().items() if not _is_dynamic(source, name)
    }


def _mapped(target: nn.Module, tensors: Mapping[str, Tensor], used: set[str], problems: list[str]) -> dict[str, Tensor]:
    """The state of every dynamic layer and shared router, in the target's names."""
    state: dict[str, Tensor] = {}
    elsewhere, their_name = _elsewhere(target), _names(target)
    starts = {key[: i + 1] for key in tensors for i, sign in enumerate(key) if sign == "."}
    for name, module in target.named_modules():
        if not isinstance(module, DynamicLayer | RoutedBlock):
            continue
        prefix = f"{name}." if name else ""
        below = _Taken(tensors, their_name(prefix, starts), used, elsewhere.get(name))
        try:
            if isinstance(module, RoutedBlock):
                shapes = {f"router.{key}": value.shape for key, value in module.router.state_dict().items()}
                own = layout.read(released_router(below), below, shapes)
            else:
                own = module.from_released(below)
        except KeyError as error:
            key = str(error.args[0])
            problems.append(f"{key} is missing{nearest(key, tensors.keys())}")
            continue
        state |= {prefix + key: value for key, value in own.items()}
    return state


def _elsewhere(model: nn.Module) -> dict[str, dict[str, str]]:
    """For every dynamic layer by name: the names of tensors that the authors keep outside it."""
    numbers: dict[nn.Parameter, int] = {}
    found: dict[str, dict[str, str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, DynamicLayer):
            found[name] = {}
            if module.released_weight is not None:
                number = numbers.setdefault(module.weight, len(numbers))
                found[name] = {"weight": module.released_weight.format(number)}
    return found


def _names(model: nn.Module) -> Callable[..., str]:
    """What the network's authors call a tensor that is no dynamic layer's, or the layer (its name ends with a dot).

    The function takes the name and, where there are several or the file may have the model's own, those in the file.
    """
    rename: Callable[[str], str] | None = getattr(model, "released_name", None)
    if rename is not None:
        return lambda name, present=(): rename(name) if name else name
    classes = [cls.__name__ for cls in type(model).__mro__]
    networks = [m.released_network for m in model.modules() if isinstance(m, DynamicLayer) and m.released_network]
    patterns = [pair for network in networks[:1] for cls in classes for pair in network.get(cls, ())]

    def theirs(name: str, present: Collection[str] | None = None) -> str:
        found = (re.sub(f"{ours}$", new, name) for ours, new in patterns if re.match(f"{ours}$", name))
        return next((new for new in found if present is None or new in present), name)

    return theirs


def _is_dynamic(target: nn.Module, name: str) -> bool:
    """Whether a tensor belongs to a dynamic layer or a shared router, whose problems are reported by ``_mapped``."""
    parts = name.split(".")[:-1]
    module: nn.Module = target
    for i, part in enumerate([*parts, ""]):
        if isinstance(module, DynamicLayer) or (isinstance(module, RoutedBlock) and parts[i : i + 1] == ["router"]):
            return True
        if part:
            module = getattr(module, part)
    return False
