# SPDX-License-Identifier: Apache-2.0
"""Routers of one or two linear layers: in inference one native call, on a GPU one kernel where that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _modules

from convary.nn.arguments import Device, Dtype
from convary.nn.norm import VectorBatchNorm, normalised, scale_and_shift
from convary.nn.router import Router, map_outputs_, pool, zero_
from convary.ops import Coefficients
from convary.ops.native import router as native_route
from convary.ops.shapes import is_channels_last
from convary.ops.tracing import is_exported, is_traced
from convary.ops.triton import router as triton_route
from convary.ops.triton.launch import interpreted


def activate(logits: Tensor, activation: str) -> Tensor:
    """Sigmoid, or softmax over the last axis."""
    return logits.sigmoid() if activation == "sigmoid" else logits.softmax(-1)


class PerceptronRouter(Router):
    """``activation(head(relu(norm(squeeze(pool(x))))) / temperature)``, in inference as one native call.

    A subclass may set ``squeeze`` and ``norm``, and defines ``head`` and ``to_coefficients``.

    Args:
        in_channels: C.
        activation: Of the logits after the ``sigmoids``: "sigmoid" or "softmax".
        temperature: Divides the logits; None for none.
        sigmoids: Lengths of the pieces of the logits that come first, each of which gets a sigmoid.
    """

    def __init__(
        self,
        in_channels: int,
        activation: str,
        temperature: float | None = None,
        sigmoids: Sequence[int] = (),
        device: Device = None,
    ) -> None:
        super().__init__(in_channels, temperature, device)
        self.activation, self.sigmoids = activation, tuple(sigmoids)
        self.squeeze: nn.Linear | None = None
        self.norm: nn.Module | None = None

    @property
    def head(self) -> nn.Linear:
        """The layer that makes the logits."""
        raise TypeError(f"{type(self).__name__} must define head")

    def to_coefficients(self, pieces: Sequence[Tensor]) -> Coefficients:
        """Coefficients out of the activated logits: (B, length) for each sigmoid, then (B, the others) if any."""
        raise TypeError(f"{type(self).__name__} must define to_coefficients(pieces)")

    def _route(self, x: Tensor) -> Coefficients:
        layers = self.native_layers()
        if layers is None:
            return super()._route(x)
        if is_traced(x):
            route = native_route.record if native_route.can_record(x, layers) else None
        else:
            route = native_route.route if native_route.can_run(x, layers) else None
            if (x.is_cuda or interpreted()) and route is None and triton_route.why_not(x, layers) is None:
                route = triton_route.route if triton_route.wanted(x, layers, super()._route) else None
        if route is None:
            return super()._route(x)
        if is_traced(x) and not is_exported() and is_channels_last(x):
            x = pool(x)  # the call would copy x to the other format first
        return self.to_coefficients([piece.to(layers.last.dtype) for piece in route(x, layers)])

    def pieces(self) -> tuple[int, ...]:
        """Lengths of the pieces of the logits: the sigmoids, then the others if there are any."""
        rest = self.head.out_features - sum(self.sigmoids)
        return (*self.sigmoids, rest) if rest else self.sigmoids

    def coefficients(self, vector: Tensor) -> Coefficients:
        """Those that ``to_coefficients`` makes."""
        if self.squeeze is not None:
            hidden = self.squeeze(vector)
            vector = F.relu(hidden if self.norm is None else normalised(self.norm, hidden))
        logits = self._tempered(self.head(vector))
        if not self.sigmoids:
            return self.to_coefficients([activate(logits, self.activation)])
        # One activation for each piece, because it makes the piece dense.
        pieces = logits.split_with_sizes(self.pieces(), 1)
        kinds = ["sigmoid"] * len(self.sigmoids) + [self.activation]
        return self.to_coefficients([activate(piece, kind) for piece, kind in zip(pieces, kinds, strict=False)])

    def neutral_(self) -> None:
        """Zero logits: every sigmoid is 1/2, every softmax 1/K."""
        zero_(self.head)

    @torch.no_grad()
    def fold_(self) -> None:
        """The normalisation goes into ``squeeze`` and the temperature into ``head``, where both are plain."""
        layers = self.native_layers()
        if layers is None:
            return
        if self.squeeze is not None and layers.mean is not None:
            map_outputs_(self.squeeze, *scale_and_shift(self.norm))
            self.norm = None
        if self.temperature is not None:
            map_outputs_(self.head, self.head.weight.new_tensor(1 / float(self.temperature)))  # in their dtype
            self.temperature = None
            self.kin.part(self)  # no moving average is to lead it

    def native_layers(self) -> native_route.Layers | None:
        """The weights, where nothing but the plain layers would see them: no hook, no other class, no statistics."""
        if type(self).coefficients is not PerceptronRouter.coefficients or "coefficients" in self.__dict__:
            return None
        squeeze, head = self.squeeze, self.head
        if not _is_unhooked(head, nn.Linear) or not (squeeze is None or _is_unhooked(squeeze, nn.Linear)):
            return None
        mean = variance = gain = shift = None
        epsilon = 0.0
        if self.norm is not None and not isinstance(self.norm, nn.Identity):
            n: Any = self.norm
            if n.training or not _is_unhooked(n, VectorBatchNorm):
                return None
            mean, variance, gain, shift, epsilon = n.running_mean, n.running_var, n.weight, n.bias, n.eps
            if mean is None or gain is None:  # batch statistics in eval too, or no affine map: not what the call does
                return None
        weight, bias = (None, None) if squeeze is None else (squeeze.weight, squeeze.bias)
        return native_route.Layers(
            weight, bias, mean, variance, gain, shift, head.weight, head.bias, self.temperature, epsilon,
            self.pieces(), len(self.sigmoids), self.activation,
        )  # fmt: skip


def _is_unhooked(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling a module is nothing but the computation of this class."""
    return type(module) is kind and not is_hooked(module)


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody wants to know of the module's calls: hooks, its own or all modules', or another ``forward``."""
    if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
        return True
    return bool(_modules._global_forward_hooks or _modules._global_forward_pre_hooks)


class LinearRouter(PerceptronRouter):
    """``activation(Linear(pool(x)) / temperature)``: one coefficient per kernel, no hidden layer (CondConv).

    Args:
        in_channels: C.
        num_experts: K.
        activation: "sigmoid" or "softmax".
        temperature: Divides the logits; None for none.
    """

    def __init__(
        self,
        in_channels: int,
        num_experts: int,
        activation: str,
        temperature: float | None = None,
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__(in_channels, activation, temperature, device=device)
        self.linear = nn.Linear(in_channels, num_experts, device=device, dtype=dtype)
        self.initialise_()

    @property
    def head(self) -> nn.Linear:
        """The only layer."""
        return self.linear

    def to_coefficients(self, pieces: Sequence[Tensor]) -> Coefficients:
        """kernel: (B, K)."""
        return Coefficients(kernel=pieces[0])


class MLPRouter(PerceptronRouter):
    """``activation(Linear(relu(Linear(pool(x)))) / temperature)``: the squeeze-and-excitation router of DyConv.

    Args:
        in_channels: C.
        hidden: Width of the hidden layer.
        out_features: Number of logits.
        activation: "sigmoid" or "softmax".
        temperature: Divides the logits; None for none.
        hidden_bias: Whether the first layer has a bias.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_features: int,
        activation: str,
        temperature: float | None = None,
        hidden_bias: bool = False,
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__(in_channels, activation, temperature, device=device)
        self.squeeze = nn.Linear(in_channels, hidden, bias=hidden_bias, device=device, dtype=dtype)
        self.linear = nn.Linear(hidden, out_features, device=device, dtype=dtype)
        self.initialise_()

    @property
    def head(self) -> nn.Linear:
        """The second layer."""
        return self.linear

    def to_coefficients(self, pieces: Sequence[Tensor]) -> Coefficients:
        """kernel: (B, K)."""
        return Coefficients(kernel=pieces[0])
