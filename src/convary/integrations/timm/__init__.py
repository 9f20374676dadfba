# SPDX-License-Identifier: Apache-2.0
"""timm: names such as ``resnet18.odconv4x`` for ``timm.create_model``, and so for timm's own train.py and validate.py.

A name is an architecture of timm, with its tag of weights or without, a method of ``convary.METHODS``, and the number
of kernels where it is not the method's own: ``resnet50.a1_in1k.dyconv4x``, ``mobilenetv3_small_100.odconv``,
``resnet18_kernelwarehouse2x``. Import this module and the names are known, or run a script of timm with it::

    python -m convary.integrations.timm train.py /data --model resnet18.odconv4x --model-kwargs anneal_steps=50000
"""

from __future__ import annotations

import functools
import re
import sys
from collections import deque
from typing import Any

import torch
from torch import nn

from convary._convert import convert
from convary._decay import router_parameters
from convary._schedule import TemperatureAnnealing, anneal, tempered_routers
from convary.errors import ConfigError
from convary.extras import require_version
from convary.methods import METHODS, MethodConfig, method
from convary.nn import Router
from convary.where import Selector

require_version("convary.integrations.timm", "timm", "1.0", "2")
import timm.models as timm_models  # noqa: E402
from timm.models import _factory  # noqa: E402

factory: Any = _factory

_METHODS = "|".join(config.name for config in METHODS)
_NAME = re.compile(rf"(?P<base>[A-Za-z]\w*(?:\.\w+)?)[._](?P<method>{_METHODS})(?:(?P<kernels>\d+)x)?")
_KERNELS = ("experts", "cell_ratio", "kernels")  # the option that "4x" is of
default_cfgs: dict[str, timm_models.DefaultCfg] = {}  # where timm.models.register_model looks


def register(
    name: str, architecture: str, config: MethodConfig, where: Selector | None = None, *, upcycle: bool | None = None
) -> None:
    """Teach ``timm.create_model`` a name: a network of timm, converted.

    The entry takes all of the architecture's arguments and ``anneal_steps``, see ``anneal_by_forwards``. Weights that
    timm has for the architecture are loaded first and converted exactly. Routers are left out of weight decay, see
    ``exempt_routers``.

    Args:
        name: Letters, digits and underscores.
        architecture: A name of timm's without a tag.
        config: The method and its options.
        where: Which layers; by default the method's paper's own placement.
        upcycle: Whether to start as the static network; by default where it has pretrained weights.

    Raises:
        ConfigError: timm has no such architecture, or the name can't be one.
    """
    if not name.isidentifier():
        raise ConfigError(f"name must be letters, digits and underscores, as timm's names are; got {name!r}")
    if not _is_model(architecture):
        raise ConfigError(f"timm has no architecture {architecture!r}; see timm.list_models()")

    def entry(pretrained: bool = False, anneal_steps: int | None = None, **options: Any) -> nn.Module:
        cfg = options.get("pretrained_cfg")
        saved = isinstance(cfg, dict) and cfg.get("source") in ("hf-hub", "local-dir")  # weights of the converted net
        base = pretrained and not saved
        if base and isinstance(cfg, dict):
            options["pretrained_cfg"] = cfg | {"architecture": architecture}
        static = timm_models.model_entrypoint(architecture)(pretrained=base, **options)
        model: Any = convert(static, config, where, upcycle=base if upcycle is None else upcycle, inplace=True)
        if isinstance(getattr(model, "pretrained_cfg", None), dict):
            model.pretrained_cfg["architecture"] = name
        if saved and pretrained:
            timm_models.load_pretrained(model, pretrained_cfg=cfg, num_classes=model.num_classes)
        if anneal_steps is not None:
            anneal_by_forwards(model, anneal_steps)
        return exempt_routers(model)

    entry.__name__ = entry.__qualname__ = name
    cfgs = timm_models.get_arch_pretrained_cfgs(architecture)
    tags = {full.partition(".")[2]: cfg for full, cfg in cfgs.items()}
    if tags:
        default_cfgs[name] = timm_models.DefaultCfg(tags=deque(tags), cfgs=tags)
    setattr(sys.modules[__name__], name, timm_models.register_model(entry))


def exempt_routers(model: nn.Module) -> nn.Module:
    """Make timm's optimizers leave routers out of weight decay, in place: ``no_weight_decay`` of the model names them.

    Args:
        model: A network of timm after its conversion, or any root module that timm's ``create_optimizer_v2`` is given.

    Returns:
        The model.
    """
    own = set(getattr(model, "no_weight_decay", set)())
    model.no_weight_decay = functools.partial(frozenset, own | set(router_parameters(model)))  # type: ignore[assignment]
    return model


def anneal_by_forwards(model: nn.Module, steps: int) -> TemperatureAnnealing | None:
    """Anneal by the model's own training forwards, for a trainer that has no place to call ``annealing.step()``.

    From the first training forward on, the temperature goes linearly from each router's first to its last over
    ``steps`` forwards. How far it is stands in the temperatures, so a checkpoint of the model resumes it.

    Args:
        model: Any model.
        steps: Training forwards; batches, where gradients are accumulated, not updates.

    Returns:
        The annealing, or None where no router of the model has a temperature.
    """
    if not tempered_routers(model):
        return None
    counter = _Forwards(model, anneal(model, steps=steps))
    model.register_forward_pre_hook(counter.before)  # pyright: ignore[reportAttributeAccessIssue]  # of the decorator
    model.register_load_state_dict_post_hook(counter.loaded)
    return counter.annealing


class _Forwards:
    """Steps an annealing; its hooks are bound methods, so they go with copies and pickles of the model."""

    def __init__(self, model: nn.Module, annealing: TemperatureAnnealing) -> None:
        self.annealing, self.begun = annealing, False
        self.router: Router = tempered_routers(model)[0]

    @torch.compiler.disable  # one graph for all temperatures
    def before(self, model: nn.Module, args: Any) -> None:
        if model.training:
            if self.begun:
                self.annealing.step()
            self.begun = True

    def loaded(self, model: nn.Module, keys: Any) -> None:
        first, last = self.router.first_temperature, self.router.final_temperature
        left = (float(self.router.temperature) - last) / (first - last)  # type: ignore[arg-type]
        self.annealing.last_step = round(self.annealing.steps * (1.0 - left))
        self.begun = self.annealing.last_step > 0


def _known(name: str) -> str | None:
    """The registered name that a name of this module's pattern stands for, registered now if need be, or None."""
    found = _NAME.fullmatch(name)
    if found is None or (_is_model(name) and "." not in name):
        return None
    architecture, _, _ = found["base"].partition(".")
    if not _is_model(architecture):
        return None
    kernels = f"{found['kernels']}x" if found["kernels"] else ""
    registered = f"{architecture}_{found['method']}{kernels}"
    if not _is_model(registered):
        register(registered, architecture, _config(name, found["method"], found["kernels"]))
    return registered


def _config(name: str, kind: str, kernels: str | None) -> MethodConfig:
    if kernels is None:
        return method(kind)
    config = method(kind)
    option = next((option for option in _KERNELS if option in config.options()), None)
    if option is None:
        raise ConfigError(f"{name}: {config.title} has no number of kernels; the name is without {kernels}x")
    return method(kind, **{option: type(config.options()[option])(kernels)})


def _split(name: str, no_tag: str = "") -> tuple[str, str]:
    """Timm's ``split_model_name_tag``, which would take the method for a tag of weights."""
    registered = _known(name)
    if registered is None:
        return _split_by_timm(name, no_tag)
    return registered, _split_by_timm(_NAME.fullmatch(name)["base"], no_tag)[1]  # type: ignore[index]


def _is_model_or_ours(name: str) -> bool:
    """Timm's ``is_model``; a name of ours is registered by it, as for a checkpoint's folder."""
    return _known(name) is not None or _is_model(name)


_is_model, _split_by_timm = factory.is_model, factory.split_model_name_tag
factory.is_model, factory.split_model_name_tag = _is_model_or_ours, _split
