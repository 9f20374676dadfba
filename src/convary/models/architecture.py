# SPDX-License-Identifier: Apache-2.0
"""The networks that ``convary compare`` trains: what builds one again, and one with the weights of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convary._convert import convert
from convary.data import DataSet, derive_seed
from convary.errors import CheckpointError
from convary.methods import MethodConfig, config_from_json
from convary.models.comparators import attend, comparator_from_json
from convary.models.registry import build
from convary.nn import Router
from convary.selector import selector
from convary.weights import load_weights

COMPARED, VERSION = "convary checkpoint", 1  # the format of its checkpoints
_CONVERSION = 1  # sets the conversion's random numbers apart from the static network's


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What is needed to build a network again.

    Attributes:
        model: As for :func:`convary.models.build`.
        num_classes: Rows of the classifier.
        shape: (C, H, W) of the images.
        method: JSON of the config of the method or the comparator; None for the static network.
        init: ``"paper"``, ``"neutral"`` or ``"upcycle"``.
        seed: Of the initial weights.
        where: Which layers are dynamic, as text.
        classifier_bias: Whether the classifier has a bias.
    """

    model: str
    num_classes: int
    shape: tuple[int, int, int]
    method: str | None
    init: str
    seed: int
    where: str = "paper"
    classifier_bias: bool = True

    @classmethod
    def of(
        cls,
        model: str,
        dataset: DataSet,
        config: MethodConfig | None,
        init: str,
        seed: int,
        where: str = "paper",
        classifier_bias: bool = True,
    ) -> Architecture:
        """The architecture for a data set."""
        method = None if config is None else config.to_json()
        return cls(
            model=model,
            num_classes=len(dataset.classes),
            shape=dataset.shape,
            method=method,
            init=init,
            seed=seed,
            where=where,
            classifier_bias=classifier_bias,
        )

    def build(self, start: dict[str, Any] | None = None) -> nn.Module:
        """The network with its initial weights; the same every time.

        Args:
            start: State dict of the static network, in place of random weights.
        """
        model = build(self.model, self.num_classes, self.shape[0], self.shape[1:], self.seed)
        if not self.classifier_bias:
            drop_classifier_bias(model)
        if start is not None:
            model.load_state_dict(start)
        if self.method is None:
            return model
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.seed, _CONVERSION))
            comparator = comparator_from_json(self.method)
            if comparator is not None:
                return attend(model, comparator, upcycle=self.init == "upcycle", inplace=True)
            config = config_from_json(self.method)
            model = convert(model, config, selector(self.where, config), upcycle=self.init == "upcycle")
        if self.init == "neutral":
            for router in model.modules():
                if isinstance(router, Router):
                    _silence(router)
        return model


def drop_classifier_bias(model: nn.Module) -> None:
    """Leave the last linear layer without a bias, as some papers' networks are."""
    [module for module in model.modules() if isinstance(module, nn.Linear)][-1].register_parameter("bias", None)


def _silence(router: Router) -> None:
    """Start a router with the same coefficients for every image, and at once at its final temperature.

    Routers that are annealed to 0 (KernelWarehouse) start neutral as published, and are left alone.
    """
    if router.final_temperature > 0:
        router.neutral_()
        if router.temperature is not None:
            router.temperature.fill_(router.final_temperature)


def trained(content: dict[str, Any], path: Path) -> nn.Module:
    """The network of a checkpoint, in eval mode.

    Args:
        content: What it holds.
        path: The file, for the message.

    Raises:
        CheckpointError: it is of another version, or the weights do not fit the network.
    """
    check_version(content, path)
    model = Architecture(**content["architecture"]).build()
    load_weights(model, content["model"], path)
    return model.eval()


def check_version(content: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError unless this version reads such checkpoints."""
    if content.get("version") != VERSION:
        raise CheckpointError(f"{path} has version {content.get('version')}, this convary reads {VERSION}; use its own")
