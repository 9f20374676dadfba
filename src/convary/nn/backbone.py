# SPDX-License-Identifier: Apache-2.0
"""Where a detector or segmenter holds its feature extractor, by the names that libraries give it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

# Extractors by class: timm's features_only, torchvision's IntermediateLayerGetter, transformers' backbones.
_EXTRACTORS = frozenset(
    "FeatureListNet FeatureDictNet FeatureHookNet FeatureGetterNet IntermediateLayerGetter BackboneMixin".split()
)


def backbone_names(model: nn.Module) -> tuple[str, ...]:
    """Qualified names of the modules that make up a model's feature extractor ("": all of it); () where none is known.

    Known are, in this order: what an Ultralytics model's yaml calls ``backbone``; an attribute ``backbone``
    (torchvision, mmdetection, transformers), of it the ``body`` where it has one (torchvision's is followed by a
    feature pyramid); ``encoder`` of segmentation_models_pytorch; timm's ``features_only`` networks, torchvision's
    ``IntermediateLayerGetter`` and transformers' backbones wherever they stand; and the base model of one of
    transformers' tasks.

    Args:
        model: Any module.
    """
    for name, module in model.named_modules():
        inside = _within(module)
        if inside:
            return tuple(".".join(part for part in (name, leaf) if part) for leaf in inside)
    base = getattr(model, "base_model_prefix", None)
    return (base,) if base and isinstance(getattr(model, base, None), nn.Module) else ()


def _within(module: Any) -> tuple[str, ...]:
    yaml, layers = getattr(module, "yaml", None), getattr(module, "model", None)
    if isinstance(yaml, Mapping) and "backbone" in yaml and isinstance(layers, nn.Sequential):
        return tuple(f"model.{i}" for i in range(len(yaml["backbone"])))
    classes = {cls.__name__ for cls in type(module).__mro__}
    if classes & _EXTRACTORS:
        return ("",)
    backbone = getattr(module, "backbone", None)
    if isinstance(backbone, nn.Module):
        return ("backbone.body",) if isinstance(getattr(backbone, "body", None), nn.Module) else ("backbone",)
    if "SegmentationModel" in classes and isinstance(getattr(module, "encoder", None), nn.Module):
        return ("encoder",)
    return ()
