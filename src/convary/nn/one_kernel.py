# SPDX-License-Identifier: Apache-2.0
"""Layers that have one kernel of their own, which x changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from convary.nn.base import DynamicLayer


class OneKernel(DynamicLayer):
    """A layer whose ``weight`` is one kernel, held as a bank of one: (1, O, C/G, *k), or (1, O, C) of a linear layer.

    No static layer has a weight of that shape, so that no state dict of one goes into the other unnoticed. A state dict
    of this layer that holds the kernel without the first axis, as convary once wrote it, is read.
    """

    @property
    def kernel(self) -> Tensor:
        """(O, C/G, *k), or (O, C)."""
        return self.weight[0]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if self._is_old(state_dict, prefix):
            state_dict[f"{prefix}weight"] = state_dict[f"{prefix}weight"].unsqueeze(0)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _is_old(self, state_dict: Mapping[str, Tensor], prefix: str) -> bool:
        """Whether the kernel has no first axis, in a state dict that is this layer's and not of a static one."""
        weight = state_dict.get(f"{prefix}weight")
        own = any(key.startswith(f"{prefix}router.") for key in state_dict)
        return own and weight is not None and weight.shape == self.weight.shape[1:]
