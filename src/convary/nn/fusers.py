# SPDX-License-Identifier: Apache-2.0
"""Batch-norm fusion by others: refused, for a fuser takes ``weight`` and ``bias`` for those of a convolution.

``fuse_conv_bn_eval``, Ultralytics and mmcv scale ``conv.weight``, shift ``conv.bias`` and put both into the layer. What
is right for the weight of a convolution is another function for a bank, a spectrum or W0 of a decomposition.
``convary.fold_norms`` knows them all.

The refusal is the layer's own, where a parameter is exchanged. torch's fuser multiplies before that and may fail there,
with sizes that name nothing; so its function is exchanged for one that says what is wrong. That happens when the first
dynamic layer is made (``hosts``): importing convary changes nothing of torch.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import fusion

from convary import hosts
from convary.errors import FusionError

_KEPT = ("weight", "bias")
hosts.expect("torch.nn.utils.fusion", "convary.nn.fusers")


class KeepsParameters(nn.Module):
    """A layer whose ``weight`` and ``bias`` are written to, never exchanged for others.

    That is where a fuser ends, on the layer or on a copy of it, also where the shapes happen to fit. A state dict may
    exchange them (``assign=True``), and so may who brings another kind of tensor (DTensor of FSDP) or fills a layer
    that was built on the meta device.
    """

    _loading = False

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As ``nn.Module.register_parameter``, which every assignment goes through.

        Raises:
            FusionError: the layer has this parameter already.
        """
        if name in _KEPT and name in self._parameters and self._is_exchange(self._parameters[name], param):
            raise FusionError(
                f"{name} of {type(self).__name__} can't be exchanged. A batch-norm fusion (fuse_conv_bn_eval, a "
                "detector's model.fuse()) would compute other numbers, for the kernel is made for each sample: call "
                "convary.fold_norms(model, x) instead, or fuse first and convert then. To set values of your own, "
                f"layer.{name}.data.copy_(values), or del layer.{name} first"
            )
        super().register_parameter(name, param)

    def put(self, name: str, param: nn.Parameter) -> None:
        """Exchange a parameter for one that the method itself makes."""
        self._parameters[name] = param

    def _is_exchange(self, before: nn.Parameter | None, after: nn.Parameter | None) -> bool:
        if after is before or after is None or self._loading or type(after) is not nn.Parameter:
            return False
        return before is None or (type(before) is nn.Parameter and not before.is_meta)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._loading = True
        try:
            super()._load_from_state_dict(*args)
        finally:
            del self._loading


def _checked(fuse: Any) -> Any:
    """The function of torch, for weights that can be those of a convolution."""

    @functools.wraps(fuse)
    def checked(conv_w: Tensor, conv_b: Tensor | None, bn_rm: Tensor, *args: Any, **kwargs: Any) -> Any:
        transpose = args[4] if len(args) > 4 else kwargs.get("transpose", False)
        if not transpose and conv_w.shape[0] != bn_rm.shape[0]:
            raise FusionError(
                f"a weight {tuple(conv_w.shape)} is none of a convolution with {bn_rm.shape[0]} channels behind it; a "
                "batch normalisation behind a dynamic convolution is folded by convary.fold_norms(model, x)"
            )
        return fuse(conv_w, conv_b, bn_rm, *args, **kwargs)

    return checked


def attend() -> None:
    """Make torch's fuser say what is wrong; called once, by ``hosts``."""
    fusion.fuse_conv_bn_weights = _checked(fusion.fuse_conv_bn_weights)
