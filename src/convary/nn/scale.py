# SPDX-License-Identifier: Apache-2.0
"""A layer's ``scale``: one number, beside the router's coefficients, that no optimizer sees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_NEXT_TO_ONE = 0.01  # a gain that differs from 1 by rounding alone


class Scaled(nn.Module):
    """A layer that multiplies its router's coefficients by ``scale`` before it mixes anything.

    A neutral router multiplies equal kernels by its gain: 1/8 in ODConv, K/2 in CondConv. An optimizer does not know:
    AdamW moves every weight by the learning rate, and the kernel by as much times the gain. So a bank that is made of a
    static kernel stays as large as that, and this buffer makes up for the gain. The coefficients that the layer shows
    are the router's own.

    Attributes:
        scale: A tensor with no axes, or None for 1, as in every layer that no static one was loaded into. A state dict
            without one leaves or makes it None; one with it brings it.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    scale: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", None)

    def scaled(self, coeffs: Any) -> Any:
        """Coefficients as the kernels are mixed by them: the first factor carries the scale."""
        scale = self._buffers["scale"]
        if scale is None:
            return coeffs
        axis, value = next(iter(coeffs.factors().items()))
        return coeffs.replace(**{axis: value * scale})

    def whole(self, stored: Tensor) -> Tensor:
        """A bank with the scale in it, as layers without one have it."""
        return stored if self.scale is None else stored * self.scale

    def whole_state(self) -> dict[str, Tensor]:
        """The state dict with the scale in the bank."""
        own = self.state_dict()
        own["weight"] = self.whole(own["weight"])
        if self.bias is not None and self.bias.ndim == 2:  # mixed like the kernels
            own["bias"] = self.whole(own["bias"])
        return own

    @torch.no_grad()
    def absorb_scale_(self) -> None:
        """Put the scale into the bank, where it costs nothing; for inference, for an optimizer would see it again."""
        if self.scale is not None:
            self.weight.mul_(self.scale)
            if self.bias is not None and self.bias.ndim == 2:  # mixed like the kernels
                self.bias.mul_(self.scale)
            self.scale = None

    @torch.no_grad()
    def compensate_(self, gain: float) -> float:
        """Multiply the coefficients by 1 / gain from now on.

        Returns:
            What is left of the gain, for the bank to be divided by: 1 to rounding. A gain next to 1 is left whole.
        """
        self.scale = None
        if abs(gain - 1) < _NEXT_TO_ONE:
            return gain
        return gain * float(self.await_scale_().fill_(1 / gain))

    def await_scale_(self) -> Tensor:
        """Have a scale, which is 1 until a state dict brings another."""
        self.scale = torch.ones((), device=self.weight.device, dtype=self.weight.dtype)
        return self.scale

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if f"{prefix}scale" in state_dict:
            if self.scale is None:
                self.await_scale_()
        elif f"{prefix}weight" in state_dict:  # of a bank that was not upcycled
            self.scale = None
        super()._load_from_state_dict(state_dict, prefix, *args)
