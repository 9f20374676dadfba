# SPDX-License-Identifier: Apache-2.0
"""The dynamic perceptron: ``y = g(W(x)^T x + b(x))`` with W and b mixed from K linear layers.

Chen et al., "Dynamic Convolution: Attention over Convolution Kernels", CVPR 2020, Sec. 3.1. The attention weights
are at least 0 and sum to 1 (softmax). With ``activation="sigmoid"`` and no hidden layer it is the classifier of
CondConv. The nonlinearity g is left to the caller, as ``nn.Linear`` leaves it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from convary.errors import ConfigError
from convary.nn import DynamicLinear, LinearRouter, MLPRouter, Router
from convary.nn.arguments import Device, Dtype
from convary.nn.upcycle import per_expert_
from convary.ops import Coefficients, mixed_conv


class MixedLinear(DynamicLinear):
    """A linear layer whose weight and bias are mixed, per sample, from K experts.

    Args:
        in_features: C.
        out_features: O.
        bias: Whether to add a (mixed) bias.
        device: Of the parameters.
        dtype: Of the parameters.
        experts: K.
        activation: "softmax": weights that sum to 1; "sigmoid": CondConv's.
        reduction: The router's hidden layer has max(1, C // reduction) units; None for no hidden layer.
        temperature: Start value of the softmax temperature.

    Shape:
        x (B, C) to (B, O), or (C,) to (O,). With axes between, (B, *, C) to (B, *, O), the condition is the mean
        over them.

    Raises:
        ConfigError: an option that can't work.

    >>> layer = MixedLinear(8, 3, experts=4)
    >>> layer(torch.randn(5, 8)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device = None,
        dtype: Dtype = None,
        *,
        experts: int = 4,
        activation: Literal["softmax", "sigmoid"] = "softmax",
        reduction: int | None = 4,
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        if experts < 1:
            raise ConfigError(f"experts must be at least 1; got {experts=}")
        if activation not in ("softmax", "sigmoid"):
            raise ConfigError(f"activation must be 'softmax' or 'sigmoid'; got {activation!r}")
        if reduction is not None and reduction < 1:
            raise ConfigError(f"reduction must be at least 1, or None for no hidden layer; got {reduction}")
        if temperature is None and activation == "softmax":
            temperature = 1.0
        self.in_features, self.out_features = in_features, out_features
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(experts, out_features, in_features, **factory))
        self.register_parameter("bias", nn.Parameter(torch.empty(experts, out_features, **factory)) if bias else None)
        self.router: Router
        if reduction is None:
            self.router = LinearRouter(in_features, experts, activation, temperature, **factory)
        else:
            hidden = max(1, in_features // reduction)
            self.router = MLPRouter(in_features, hidden, experts, activation, temperature, **factory)
        self.initialise_()

    def initialise_(self) -> None:
        """Every expert like ``nn.Linear``."""
        super().initialise_()
        per_expert_(self.weight, lambda kernel: nn.init.kaiming_uniform_(kernel, a=5**0.5))

    def transform(self, rows: Tensor, coeffs: Coefficients) -> Tensor:
        """A 1x1 convolution over P positions."""
        return mixed_conv(rows.transpose(1, 2), self.weight[..., None], self.scaled(coeffs), self.bias).transpose(1, 2)
