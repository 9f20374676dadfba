# SPDX-License-Identifier: Apache-2.0
"""The average of a network's weights over its training, which is often better than the last of them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """Weights and the statistics of norms, averaged with a decay; any other buffer is that of the last step.

    Args:
        source: The network that is trained; its weights now are what the average starts from.
        decay: Part of the average that a step keeps.
        model: A copy of the network, which gets the average; by default one is made.

    Attributes:
        model: The copy, in eval mode.
    """

    def __init__(self, source: nn.Module, decay: float, model: nn.Module | None = None) -> None:
        self.source, self.decay = source, decay
        self.model = (copy.deepcopy(source) if model is None else model).eval().requires_grad_(False)
        self._mine, self._theirs = _averaged(self.model), list(_averaged(source).values())

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network's weights after a step."""
        torch.ops.aten._foreach_lerp_.Scalar(list(self._mine.values()), self._theirs, 1 - self.decay)
        for (name, own), other in zip(self.model.named_buffers(), self.source.buffers(), strict=True):
            if name not in self._mine:
                own.copy_(other)


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    found = dict(model.named_parameters())
    for prefix, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            own = module.named_buffers(prefix=prefix, recurse=False)
            found |= {name: value for name, value in own if value.is_floating_point()}
    return {name: _here(value.detach()) for name, value in found.items()}


def _here(value: Tensor) -> Tensor:
    """This process' share of a tensor that lies in shares (FSDP2's DTensor); any other as it is."""
    own: Any = value
    return own.to_local() if hasattr(own, "to_local") else value
