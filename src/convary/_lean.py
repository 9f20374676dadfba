# SPDX-License-Identifier: Apache-2.0
"""What inference records of a model: the same function in fewer operations."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, nn

from convary._fold_norms import fold_norms_
from convary.nn import DynamicLayer, Router


@torch.no_grad()
def lean(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """A copy in eval mode with less to do; exact up to rounding.

    Normalisations go into the banks before them, those of routers and their temperature into linear layers, and a
    layer's scale into its bank. What several modules share stays as it is.

    Args:
        model: Any model; it is not changed.
        inputs: What it is run on once, to see which normalisation follows which layer.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        module.training = False  # not eval(), by which a hot router warns
    model = fold_norms_(model, inputs)
    users = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for module in model.modules():
        if any(users[id(parameter)] > 1 for parameter in module.parameters()):
            continue
        if isinstance(module, Router):
            module.fold_()
        elif isinstance(module, DynamicLayer) and module.absorbs:
            module.absorb_scale_()
    return model
