# SPDX-License-Identifier: Apache-2.0
"""Routers: from features to mixing coefficients."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _modules

from convary.errors import ConfigError, TemperatureWarning
from convary.nn.kin import Kin
from convary.nn.norm import VectorBatchNorm, normalised
from convary.nn.opaque import Opaque
from convary.ops import Coefficients
from convary.ops.geometry import autocasting
from convary.ops.native import router as native_route


def pool(x: Tensor) -> Tensor:
    """Global average pooling: (B, C, *S) to (B, C)."""
    return x.mean(tuple(range(2, x.ndim))) if x.ndim > 2 else x


class Router(Opaque):
    """Base of all routers: pools, leaves autocast, and keeps a temperature where the method has one.

    A subclass defines ``coefficients(vector)`` and ``neutral_()``.

    Args:
        in_channels: C.
        temperature: Start value of the temperature, or None for a router without one. It is a buffer: saved with the
            model, moved with it, and read as a tensor, so that annealing never recompiles.
    """

    first_temperature = 30.0  # where annealing begins, as published
    final_temperature = 1.0
    warned: ClassVar[bool] = False
    temperature: Tensor | None
    frozen = False  # set by convary.freeze_routing: stays in eval mode

    def __init__(self, in_channels: int, temperature: float | None = None, device=None) -> None:
        super().__init__()
        self.in_channels, self.initial_temperature = in_channels, temperature
        start = None
        if temperature is not None:  # in float32 whatever the default: bfloat16 would make 30 of 29.97
            start = torch.tensor(self.check_temperature(temperature), dtype=torch.float32, device=device)
        self.register_buffer("temperature", start)
        self.kin = Kin()
        self.kin.settle(self)

    def initialise_(self) -> None:
        """Fill in the router's own numbers, its temperature too; a subclass says how its layers differ from theirs."""
        if self.temperature is not None and self.initial_temperature is not None:
            self.set_temperature_(self.initial_temperature)

    @torch.no_grad()
    def set_temperature_(self, value: float) -> None:
        """Fill in a temperature, in place; moving averages of the router get it too.

        Raises:
            ConfigError: no temperature that this router can have.
        """
        assert self.temperature is not None
        self.temperature.fill_(self.check_temperature(value))
        self.kin.settle(self)
        self.lead_averages_()

    @torch.no_grad()
    def lead_averages_(self) -> None:
        """Give the moving averages of the router its temperature: it is a setting, not something learnt."""
        for average in self.kin.averages():
            average.temperature.copy_(self.temperature)
            average.kin.settle(average)

    @classmethod
    def check_temperature(cls, value: float) -> float:
        """``value`` as a float.

        Raises:
            ConfigError: no temperature that this router can have.
        """
        return check_temperature(value)

    def forward(self, x: Tensor) -> Any:
        """Coefficients for x (B, C, *S); computed in the parameters' dtype, also under autocast."""
        if autocasting(x):
            with torch.autocast(x.device.type, enabled=False):
                return self._route(x)
        return self._route(x)

    def _route(self, x: Tensor) -> Any:
        return self.coefficients(pool(x).to(self.dtype()))

    def dtype(self) -> torch.dtype:
        """The dtype that routing is computed in; torch's default where int8 layers hold no parameters any more."""
        return next((p.dtype for p in self.parameters()), torch.float32)

    def coefficients(self, vector: Tensor) -> Any:
        """Coefficients for pooled features (B, C), of the kind that the router's layers take."""
        raise TypeError(f"{type(self).__name__} must define coefficients(vector)")

    def neutral_(self) -> None:
        """Make the coefficients the same for every input and every kernel, at every temperature, in place."""
        raise TypeError(f"{type(self).__name__} must define neutral_()")

    def macs(self) -> int:
        """Multiply-adds per sample after pooling."""
        return sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))

    def train(self, mode: bool = True) -> Router:
        """Switch modes, unless frozen; warns once when evaluation starts above the final temperature."""
        super().train(mode and not self.frozen)
        if not mode:
            self._warn_if_hot()
        return self

    def _warn_if_hot(self) -> None:
        """Warn of the first hot router that evaluates; ``anneal`` and ``set_temperature`` arm the warning again."""
        if self.training or Router.warned or self.temperature is None or self.temperature.is_meta:
            return
        temperature = float(self.temperature)
        if temperature > self.final_temperature:
            Router.warned = True
            warnings.warn(
                f"evaluating with routers at temperature {temperature:g}, above the final {self.final_temperature:g}; "
                f"step convary.anneal to its end, or convary.set_temperature(model, {self.final_temperature}) to "
                "measure the final model",
                TemperatureWarning,
                stacklevel=3,
            )

    def _tempered(self, logits: Tensor) -> Tensor:
        return logits if self.temperature is None else logits / self.temperature

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        value = state_dict.get(f"{prefix}temperature")
        if value is not None and not value.is_meta:
            self.check_temperature(float(value))
            self.kin.settle(self)
            self._warn_if_hot()

    def _apply(self, fn, recurse=True):
        before = self.temperature
        module = super()._apply(fn, recurse)
        if before is not None and self.temperature is not None and self.temperature.dtype != before.dtype:
            self.temperature = before.to(self.temperature.device)  # .half() must not round 29.97
        self.kin.settle(self)
        return module

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("kin", Kin())  # pickles of convary 0.1.0 have neither
        self.__dict__.setdefault("initial_temperature", None)
        self.kin.settle(self)


def check_temperature(value: float) -> float:
    """``value`` as a float.

    Raises:
        ConfigError: NaN, infinite, zero or negative.
    """
    value = float(value)
    if not 0.0 < value < float("inf"):
        raise ConfigError(
            f"temperature must be a finite number above 0; got {value}; usual are 30 to start with and 1 at the end"
        )
    return value


def activate(logits: Tensor, activation: str) -> Tensor:
    """Sigmoid, or softmax over the last axis."""
    return logits.sigmoid() if activation == "sigmoid" else logits.softmax(-1)


class PerceptronRouter(Router):
    """``activation(last(relu(norm(squeeze(pool(x))))) / temperature)``, in inference as one native call.

    A subclass may set ``squeeze`` and ``norm``, and defines ``last`` and ``named``.

    Args:
        in_channels: C.
        activation: Of the logits behind the ``gates``: "sigmoid" or "softmax".
        temperature: Divides the logits; None for none.
        gates: Lengths of the pieces of the logits that come first, each of which gets a sigmoid.
    """

    def __init__(
        self,
        in_channels: int,
        activation: str,
        temperature: float | None = None,
        gates: Sequence[int] = (),
        device=None,
    ) -> None:
        super().__init__(in_channels, temperature, device)
        self.activation, self.gates = activation, tuple(gates)
        self.squeeze: nn.Linear | None = None
        self.norm: nn.Module | None = None

    @property
    def last(self) -> nn.Linear:
        """The layer that makes the logits."""
        raise TypeError(f"{type(self).__name__} must define last")

    def named(self, pieces: Sequence[Tensor]) -> Coefficients:
        """Coefficients out of the activated logits: (B, length) for each gate, then (B, the others) if any."""
        raise TypeError(f"{type(self).__name__} must define named(pieces)")

    def _route(self, x: Tensor) -> Coefficients:
        layers = self.native_layers()
        if layers is None or not native_route.can_run(x, layers):
            return super()._route(x)
        return self.named(native_route.route(x, layers))

    def pieces(self) -> tuple[int, ...]:
        """Lengths of the pieces of the logits: the gates, then the others if there are any."""
        rest = self.last.out_features - sum(self.gates)
        return (*self.gates, rest) if rest else self.gates

    def coefficients(self, vector: Tensor) -> Coefficients:
        """Those that ``named`` makes."""
        if self.squeeze is not None:
            hidden = self.squeeze(vector)
            vector = F.relu(hidden if self.norm is None else normalised(self.norm, hidden))
        logits = self._tempered(self.last(vector))
        if not self.gates:
            return self.named([activate(logits, self.activation)])
        # One activation for each piece, because it makes the piece dense.
        pieces = logits.split_with_sizes(self.pieces(), 1)
        kinds = ["sigmoid"] * len(self.gates) + [self.activation]
        return self.named([activate(piece, kind) for piece, kind in zip(pieces, kinds, strict=False)])

    def neutral_(self) -> None:
        """Zero logits: every sigmoid is 1/2, every softmax 1/K."""
        zero_(self.last)

    def native_layers(self) -> native_route.Layers | None:
        """The weights, where nothing but the plain layers would see them: no hook, no other class, no statistics."""
        if type(self).coefficients is not PerceptronRouter.coefficients or "coefficients" in self.__dict__:
            return None
        squeeze, last = self.squeeze, self.last
        if not _is_plain(last, nn.Linear) or not (squeeze is None or _is_plain(squeeze, nn.Linear)):
            return None
        mean = variance = gain = shift = None
        epsilon = 0.0
        if self.norm is not None and not isinstance(self.norm, nn.Identity):
            n: Any = self.norm
            if n.training or not _is_plain(n, VectorBatchNorm):
                return None
            mean, variance, gain, shift, epsilon = n.running_mean, n.running_var, n.weight, n.bias, n.eps
            if mean is None or gain is None:  # batch statistics in eval too, or no affine map: not what the call does
                return None
        weight, bias = (None, None) if squeeze is None else (squeeze.weight, squeeze.bias)
        return native_route.Layers(
            weight, bias, mean, variance, gain, shift, last.weight, last.bias, self.temperature, epsilon,
            self.pieces(), len(self.gates), self.activation,
        )  # fmt: skip


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the module is nothing but the computation of its class."""
    return type(module) is kind and not is_watched(module)


def is_watched(module: nn.Module) -> bool:
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
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(in_channels, activation, temperature, device=device)
        self.linear = nn.Linear(in_channels, num_experts, device=device, dtype=dtype)
        self.initialise_()

    @property
    def last(self) -> nn.Linear:
        """The only layer."""
        return self.linear

    def named(self, pieces: Sequence[Tensor]) -> Coefficients:
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
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(in_channels, activation, temperature, device=device)
        self.squeeze = nn.Linear(in_channels, hidden, bias=hidden_bias, device=device, dtype=dtype)
        self.linear = nn.Linear(hidden, out_features, device=device, dtype=dtype)
        self.initialise_()

    @property
    def last(self) -> nn.Linear:
        """The second layer."""
        return self.linear

    def named(self, pieces: Sequence[Tensor]) -> Coefficients:
        """kernel: (B, K)."""
        return Coefficients(kernel=pieces[0])


def kaiming_(linear: nn.Linear | None) -> None:
    """Kaiming-normal weight by the fan-out, and bias zero, of a layer that is there."""
    if linear is None:
        return
    nn.init.kaiming_normal_(linear.weight, mode="fan_out", nonlinearity="relu")
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def zero_(linear: nn.Linear) -> None:
    """Zero weight and bias, so that the output does not depend on the input until trained."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
