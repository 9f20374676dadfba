# SPDX-License-Identifier: Apache-2.0
"""What a conversion did, as plain values, and doing it again to a network that its class has just built."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from torch import nn

from convary._exchange import freeze_alike, make_dynamic
from convary._fold_norms import fold_norm
from convary.errors import ConfigError, nearest
from convary.methods import MethodConfig, config_from_json
from convary.nn import Placed, RoutedBlock, replace, routed_layers, share_router, sites
from convary.nn.arguments import Model

FORMAT, VERSION = "convary recipe", 1


def recipe(model: nn.Module) -> dict[str, Any]:
    """What makes a static network of ``model``'s class into what ``model`` is, without its weights.

    Keep it beside the state dict: ``convary.reconvert`` builds the network again from the two, whatever its class.
    ``convary.save`` writes both into one file.

    Args:
        model: A network that ``convert`` made dynamic, once or several times, with ``fold_norms`` or without. A layer
            that its own class makes dynamic is left out, for the class makes it again; so is one that ``fold`` made
            static, which comes back where the class makes it with the same groups and bias.

    Returns:
        Strings, numbers, lists and dicts only, so that JSON holds it:

        - ``format``, ``version`` of the recipe, and ``convary``, the version that wrote it.
        - ``sites``: how many convolutions and linear layers the static network has.
        - ``layers``: by name, each converted layer's method and options, as ``MethodConfig.to_json`` has them.
        - ``routers``: by a block's name, the input channels of the router that its layers share.
        - ``shared``: lists of names of layers with one weight in common (KernelWarehouse).
        - ``scaled``: names of the layers that have a ``scale``, because a static layer was loaded into them.
        - ``folded``: by a layer's name, that of the normalisation that ``fold_norms`` took into it.

    Raises:
        ConfigError: ``convert`` made no layer of the model.

    >>> import convary as cv
    >>> made = recipe(cv.convert(nn.Sequential(nn.Conv2d(3, 8, 3)), cv.ODConv(experts=2), cv.where.all()))
    >>> made["layers"]["0"]["method"], made["layers"]["0"]["experts"]
    ('odconv', 2)
    """
    modules = dict(model.named_modules())
    layers = {name: m for name, m in modules.items() if isinstance(m, Placed) and m.converted is not None}
    if not layers:
        raise ConfigError(
            f"{type(model).__name__} has no layer that convary.convert made; a recipe tells of conversions. Convert "
            "the model first, or, where its own class makes the dynamic layers, save its state dict alone"
        )
    return {
        "format": FORMAT,
        "version": VERSION,
        "convary": metadata.version("convary"),
        "sites": sum(1 for _ in sites(model)) + len(layers),
        "layers": {name: json.loads(layer.converted.to_json()) for name, layer in layers.items()},
        "routers": {name: block.router.in_channels for name, block in _routed(modules).items()},
        "shared": _shared(layers),
        "scaled": [name for name, layer in layers.items() if getattr(layer, "scale", None) is not None],
        "folded": _folded(layers, modules),
    }


def reconvert(model: Model, recipe: Mapping[str, Any], *, inplace: bool = False) -> Model:
    """Make a static network dynamic by a recipe, so that the state dict of the network it tells of fits exactly.

    New layers are initialised anew, not from the static weights: load the state dict next, as ``convary.load`` does.

    Args:
        model: A network as its class builds it, with the arguments that the converted one had.
        recipe: What ``convary.recipe`` returned, or the same read back from JSON.
        inplace: Change ``model`` instead of a copy. A root that is itself the layer cannot be changed in place: use
            the returned module.

    Returns:
        The network with dynamic layers, on the devices and with the dtypes, modes and ``requires_grad`` of the static
        one.

    Raises:
        ConfigError: it is no recipe, or one of a newer convary; a method that this convary does not know; a layer that
            the model lacks, that is dynamic already, or that the method refuses; another number of layers.

    Examples:
        >>> import convary as cv
        >>> static = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> trained = cv.convert(static, cv.DyConv(experts=2), cv.where.all())
        >>> again = cv.reconvert(static, cv.recipe(trained))
        >>> again.load_state_dict(trained.state_dict())
        <All keys matched successfully>
    """
    configs = _configs(recipe)
    _check_model(model, recipe, configs)
    model = model if inplace else copy.deepcopy(model)
    for name, config in configs.items():
        static = model.get_submodule(name)
        layer = make_dynamic(static, config)
        freeze_alike(layer, static)
        if name in recipe["scaled"]:
            layer.await_scale_()  # type: ignore[operator]
        model = replace(model, {static: layer})
    for names in recipe["shared"]:
        _share(model, names, configs)
    for name, in_channels in recipe["routers"].items():
        _route(model, name, in_channels)
    for number, (name, norm) in enumerate(recipe["folded"].items()):
        _fold(model, name, norm, number)
    return model


def check_recipe(recipe: Any) -> None:
    """Whether ``reconvert`` can read it.

    Raises:
        ConfigError: not a recipe, or of a newer version.
    """
    if not isinstance(recipe, Mapping) or recipe.get("format") != FORMAT:
        raise ConfigError(f"a recipe is what convary.recipe(model) returns; got {str(recipe)[:80]}")
    version = recipe.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise ConfigError(
            f"the recipe has version {version}, written by convary {recipe.get('convary')}; this convary, "
            f"{metadata.version('convary')}, reads up to version {VERSION}; update convary"
        )
    lacking = {"sites", "layers", "routers", "shared", "scaled", "folded"} - recipe.keys()
    if lacking:
        raise ConfigError(f"the recipe lacks {', '.join(sorted(lacking))}; keep what convary.recipe returns whole")
    told = {"shares weights of": {name for names in recipe["shared"] for name in names}}
    told["scales"] = set(recipe["scaled"])
    for verb, names in told.items():
        if unknown := names - recipe["layers"].keys():
            raise ConfigError(f"the recipe {verb} {', '.join(sorted(unknown))}, which it does not convert")


def _routed(modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """The blocks whose converted layers share a router, by name."""
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, RoutedBlock) and any(m.converted for m in routed_layers(module))  # type: ignore[arg-type]
    }


def _shared(layers: Mapping[str, nn.Module]) -> list[list[str]]:
    """Names of the layers that hold a parameter together."""
    holders: dict[nn.Parameter, list[str]] = {}
    for name, layer in layers.items():
        for p in layer.parameters():
            holders.setdefault(p, []).append(name)
    return [list(names) for names in dict.fromkeys(map(tuple, holders.values())) if len(names) > 1]


def _folded(layers: Mapping[str, Any], modules: Mapping[str, Any]) -> dict[str, str]:
    """The normalisations that layers took in, by the layers' names, in the order in which they were folded."""
    numbers = {name: layer.folded for name, layer in layers.items() if layer.folded is not None}
    places = {getattr(m, "folded", None): name for name, m in modules.items() if not isinstance(m, Placed)}
    return {name: places[number] for name, number in sorted(numbers.items(), key=lambda item: item[1])}


def _configs(recipe: Any) -> dict[str, MethodConfig]:
    check_recipe(recipe)
    return {name: config_from_json(json.dumps(options)) for name, options in recipe["layers"].items()}


def _check_model(model: nn.Module, recipe: Mapping[str, Any], configs: Mapping[str, MethodConfig]) -> None:
    """Whether the model can be what the recipe was made of."""
    modules, kind = dict(model.named_modules()), type(model).__name__
    layers = {site.name for site in sites(model)}
    for name in [*configs, *recipe["routers"], *recipe["folded"].values()]:
        if isinstance(modules.get(name), Placed):
            raise ConfigError(
                f"{name or 'the model'} of this {kind} is a {type(modules[name]).__name__} already; give the "
                "network as its class builds it, before any conversion"
            )
        if name not in (layers if name in configs else modules):
            found = f"has a {type(modules[name]).__name__} {name!r}" if name in modules else f"has no layer {name!r}"
            raise ConfigError(
                f"this {kind} {found}, where the recipe has {_what(name, configs)}{nearest(name, modules)}; build the "
                "class that was converted, with the same arguments"
            )
    if len(layers) != recipe["sites"]:
        raise ConfigError(
            f"the recipe is of a network with {recipe['sites']} convolutions and linear layers; this {kind} has "
            f"{len(layers)}; build the class that was converted, with the same arguments, and change it afterwards"
        )


def _what(name: str, configs: Mapping[str, MethodConfig]) -> str:
    return f"a layer of {configs[name].title}" if name in configs else "a block or a normalisation"


def _share(model: nn.Module, names: Sequence[str], configs: Mapping[str, MethodConfig]) -> None:
    layers: list[Any] = [model.get_submodule(name) for name in names]
    learns = all(layer.weight.requires_grad for layer in layers)
    configs[names[0]].share(layers)
    layers[0].weight.requires_grad_(learns)


def _route(model: nn.Module, name: str, in_channels: int) -> None:
    block = model.get_submodule(name)
    layers = routed_layers(block)
    if not layers:
        raise ConfigError(f"the recipe gives {name} a shared router, but each of its layers has one; it was changed")
    like = layers[0].weight
    router = layers[0].converted.block_router(in_channels, device=like.device, dtype=like.dtype)
    share_router(block, router.train(layers[0].training))


def _fold(model: nn.Module, name: str, norm: str, number: int) -> None:
    static = model.get_submodule(norm)
    stays = fold_norm(model.get_submodule(name), static, number)  # type: ignore[arg-type]
    replace(model, {static: stays.train(static.training)})
