# SPDX-License-Identifier: Apache-2.0
"""Selectors: which layers of a model to convert. Combine them with ``&``, ``|`` and ``~``.

None of them sees what a router or a dynamic layer is made of.

>>> from convary import where
>>> where.all() & ~where.first()
(all() & ~first())
"""

from __future__ import annotations

import builtins
import fnmatch
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from convary.errors import ConfigError
from convary.methods import MethodConfig
from convary.nn import Site
from convary.ops.geometry import Size


@dataclass(frozen=True)
class Selector:
    """A predicate on a layer and its place in the model, with a readable name.

    Attributes:
        label: The name.
        picks: The predicate.
        why: What a plan says of a layer that is not picked; None where there is nothing to say.
    """

    label: str
    picks: Callable[[Site], bool]
    why: Callable[[Site], str | None] = lambda site: None

    def __call__(self, site: Site) -> bool:
        """Whether the layer at ``site`` is selected."""
        return self.picks(site)

    def __and__(self, other: Selector) -> Selector:
        _check_selector(other)
        label = f"({self.label} & {other.label})"
        return Selector(label, lambda site: self(site) and other(site), lambda site: self.why(site) or other.why(site))

    def __or__(self, other: Selector) -> Selector:
        _check_selector(other)
        label = f"({self.label} | {other.label})"
        return Selector(label, lambda site: self(site) or other(site), lambda site: self.why(site) or other.why(site))

    def __invert__(self) -> Selector:
        return Selector(f"~{self.label}", lambda site: not self(site))

    def __repr__(self) -> str:
        return self.label


def _check_selector(other: object) -> None:
    if not isinstance(other, Selector):
        raise ConfigError(f"selectors combine with selectors, such as where.name('layer4.*'); got {other!r}")


def all() -> Selector:
    """Every convolution."""
    return Selector("all()", lambda site: site.is_conv)


def first() -> Selector:
    """The first convolution, in registration order: the stem."""
    return Selector("first()", lambda site: site.is_conv and site.index == 0)


def last() -> Selector:
    """The last convolution, in registration order."""
    return Selector("last()", lambda site: site.is_conv and site.index == site.count - 1)


def classifier() -> Selector:
    """The last linear layer."""
    return Selector("classifier()", lambda site: not site.is_conv and site.index == site.count - 1)


def linear() -> Selector:
    """Every linear layer."""
    return Selector("linear()", lambda site: not site.is_conv)


def kernel_size(size: Size) -> Selector:
    """Convolutions with this kernel size; an int means it in every axis."""

    def picks(site: Site) -> bool:
        if not site.is_conv:
            return False
        own = tuple(site.module.kernel_size)
        return own == ((size,) * len(own) if isinstance(size, int) else tuple(size))

    return Selector(f"kernel_size({size})", picks)


def depthwise() -> Selector:
    """Convolutions with one group per input channel (and more than one channel)."""
    return Selector("depthwise()", lambda s: s.is_conv and s.module.groups == s.module.in_channels > 1)


def grouped() -> Selector:
    """Convolutions with more than one group, depthwise ones included."""
    return Selector("grouped()", lambda site: site.is_conv and site.module.groups > 1)


def shortcut() -> Selector:
    """Projections of residual shortcuts (``downsample`` in torchvision and timm)."""
    return Selector("shortcut()", lambda site: site.shortcut)


def gate() -> Selector:
    """Layers inside squeeze-and-excitation gates."""
    return Selector("gate()", lambda site: site.gate)


def backbone() -> Selector:
    """Convolutions of the feature extractor of a detector or segmenter.

    It is found by the names that libraries give it: what an Ultralytics model's yaml calls ``backbone``, an attribute
    ``backbone`` (torchvision, mmdetection, transformers; of it the ``body``, without the feature pyramid, where it has
    one), ``encoder`` of segmentation_models_pytorch, timm's ``features_only`` networks, transformers' base models.

    Raises:
        ConfigError: when it is asked about a model that has none of these (most of MONAI's networks, one's own).
    """

    def picks(site: Site) -> bool:
        if site.backbone is None:
            raise ConfigError(
                "where.backbone() knows no feature extractor in this model: no attribute 'backbone', no yaml of "
                "Ultralytics, no encoder of segmentation_models_pytorch; name its layers, as in where.name('encoder.*')"
            )
        return site.is_conv and site.backbone

    return Selector("backbone()", picks)


def prediction() -> Selector:
    """Convolutions that a network's outputs come from, with no normalisation or activation behind them.

    Read off the order of the modules, see ``convary.nn.outputs``. ``where.all() & ~where.prediction()`` is what to
    take of a detector whose neck and heads shall be dynamic too.
    """
    return Selector("prediction()", lambda site: site.prediction)


def constant() -> Selector:
    """Frozen convolutions without bias that stand alone and compute something fixed, such as YOLO's DFL or a blur."""
    return Selector("constant()", lambda site: site.constant)


def blocks() -> Selector:
    """Convolutions inside residual or inverted-residual blocks."""
    return Selector("blocks()", lambda site: site.is_conv and site.block is not None)


def name(*patterns: str) -> Selector:
    """Layers whose qualified name matches one of the shell patterns, as in ``name("layer4.*", "*.conv2")``."""
    if not patterns:
        raise ConfigError("where.name wants at least one pattern, as in where.name('layer4.*')")
    if odd := [pattern for pattern in patterns if not isinstance(pattern, str)]:
        raise ConfigError(f"where.name wants texts, as in where.name('layer4.*'); got {odd[0]!r}")
    label = ", ".join(repr(p) for p in patterns)
    return Selector(f"name({label})", lambda site: any(fnmatch.fnmatchcase(site.name, p) for p in patterns))


def type(*types: builtins.type[nn.Module]) -> Selector:
    """Layers of exactly these classes."""
    label = ", ".join(t.__name__ for t in types)
    return Selector(f"type({label})", lambda site: builtins.type(site.module) in types)


def paper(method: MethodConfig | builtins.type[MethodConfig]) -> Selector:
    """The layers that a method's paper makes dynamic.

    Of a detector or segmenter these are layers of the feature extractor (see ``backbone``), counted as if it stood
    alone: so the papers have it, and their parameter counts on COCO. In any network prediction layers (see
    ``prediction``) and frozen constants (see ``constant``) stay as they are.
    """

    def picks(site: Site) -> bool:
        return site.aside is None and method.placement(site.alone or site)

    def why(site: Site) -> str | None:
        return site.aside if method.placement(site) else None

    return Selector(f"paper({method.title})", picks, why)
