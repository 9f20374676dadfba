# SPDX-License-Identifier: Apache-2.0
"""What all dynamic layers share: a weight, a router, and how they become a static layer and a released one."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from convary.errors import CheckpointError, ConfigError
from convary.nn import layout
from convary.nn.fusers import KeepsParameters
from convary.nn.opaque import Opaque
from convary.nn.placed import Placed
from convary.nn.router import Router
from convary.nn.scale import Scaled
from convary.nn.upcycle import neutral_gain, spread, zero_sum_noise
from convary.ops import Coefficients, mix_bias, mix_kernels
from convary.ops.coefficients import Factors


class DynamicLayer(KeepsParameters, Scaled, Opaque, Placed):
    """A layer whose kernel depends on the sample: here mixed from a bank.

    Attributes:
        weight: (K, O, C/G, *k) bank of kernels, or whatever else the method makes its kernels of.
        bias: (K, O) mixed bank, (O,) static, or None.
        router: Makes the coefficients; None where a block's shared router, or the caller, gives them.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    router: Router | None
    config_type: ClassVar[type[Any]]  # of the method's options, where ``**options`` stands for them
    takes: ClassVar[type[Factors]] = Coefficients  # what its router makes, and what may be given instead
    absorbs: ClassVar[bool] = True  # whether ``absorb_`` can scale one filter without the others
    constant_weights: ClassVar[bool] = True  # whether it can run as convolutions with weights that no sample changes
    released_weight: ClassVar[str | None] = None  # the authors' name of a weight that layers share, by its number
    # By the network's class name: patterns of names, and what the authors' network calls them.
    released_network: ClassVar[Mapping[str, Sequence[tuple[str, str]]]] = {}

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, coeffs: Any = None) -> Tensor:
            """``forward``, which ``nn.Module`` types as Any."""
            ...

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = _signature(cls.__init__, getattr(cls, "config_type", None))  # type: ignore[attr-defined]

    def __init__(self) -> None:
        super().__init__()
        self._lent: dict[int, Coefficients] = {}  # by thread, from a block's shared router, for the time of one forward

    def initialise_(self) -> None:
        """Scale one, bias zero; a subclass then initialises the weight as its method publishes."""
        if self.scale is not None:
            self.scale.fill_(1)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def num_experts(self) -> int:
        """K, the kernels that are mixed; 1 where the method mixes no whole kernels."""
        return self.weight.shape[0]

    @property
    def num_alike(self) -> int:
        """Weights that are summed, equally, to one of the kernel's where the router is neutral: K of a bank."""
        return self.num_experts

    @property
    def label(self) -> str:
        """How large the method makes the layer, in the few characters that a plan has for it."""
        return f"x{self.num_experts}"

    def extra_options(self) -> str:
        """What the layer's representation tells of the method's options."""
        return f"experts={self.num_experts}"

    def coefficients(self, x: Any) -> Any:
        """Mixing coefficients for x, from the layer's own router or the one its block shares.

        ``Coefficients`` for a bank; a method with another form of kernel has its own class, with ``factors()`` too.

        Raises:
            ConfigError: the router is shared but the layer was called outside its block.
        """
        if self.router is not None:
            return self.router(x)
        lent = self._lent.get(_thread())
        if lent is None:
            raise ConfigError(
                f"this {type(self).__name__} has no router of its own; call it through its block (to save memory, "
                "checkpoint the block as a whole, nothing inside it), or pass the coefficients: layer(x, coeffs)"
            )
        return lent

    def lend(self, coeffs: Any) -> None:
        """Coefficients for the calls of this thread, until ``take_back``; for a layer without a router."""
        self._lent[_thread()] = coeffs

    def take_back(self) -> None:
        """Undo ``lend``."""
        self._lent.pop(_thread(), None)

    def given(self, coeffs: Any) -> Any:
        """Coefficients from elsewhere, of the method's own class; a layer with a bank takes a tensor (B, K) too.

        Raises:
            ConfigError: they are something else.
        """
        if isinstance(coeffs, self.takes):
            return coeffs
        if isinstance(coeffs, Tensor) and coeffs.ndim == 2 and self.takes is Coefficients:
            return Coefficients(kernel=coeffs)
        got = f"a tensor {tuple(coeffs.shape)}" if isinstance(coeffs, Tensor) else f"a {type(coeffs).__name__}"
        alone = ", or one number per sample and kernel as a tensor (B, K)" if self.takes is Coefficients else ""
        raise ConfigError(
            f"{type(self).__name__} takes coefficients as {self.takes.__name__}({', '.join(self.takes.axes)}), see "
            f"layer.coefficients(x){alone}; got {got}"
        )

    def recorded_args(self, args: tuple, kwargs: dict[str, Any]) -> tuple:
        """With the coefficients that the router of a block lends: in a recorded graph the layer has no block."""
        own = self.router is not None or args or kwargs
        return args if own else (self.coefficients(None),)

    def macs(self, positions: int) -> dict[str, int]:
        """Multiply-adds per sample with that many output positions: convolution, routing, assembling the kernels."""
        numel = self.weight[0].numel()
        routing = 0 if self.router is None else self.router.macs()
        return {"convolution": numel * positions, "routing": routing, "assembly": numel * self.num_experts}

    def kernels(self, coeffs: Any) -> Tensor:
        """The kernel of every sample, (B, O, C/G, *k); (B, O, C, 1) of a linear layer."""
        bank = self.weight if self.weight.ndim > 3 else self.weight.unsqueeze(3)
        return mix_kernels(bank, self.scaled(coeffs))

    def biases(self, coeffs: Any) -> Tensor | None:
        """The bias of every sample, (B, O), or None."""
        if self.bias is None or self.bias.ndim == 2:
            return None if self.bias is None else mix_bias(self.bias, self.scaled(coeffs))
        return self.bias.expand(next(iter(coeffs.factors().values())).shape[0], -1)

    def absorb_(self, scale: Tensor, shift: Tensor) -> Tensor | None:
        """Multiply the outputs by ``scale`` (O,) and add ``shift`` (O,), in place; what can't be added is returned."""
        self.absorb_scale_()
        self.weight.mul_(scale.reshape(-1, *[1] * (self.weight.ndim - 2)))
        if self.bias is None:
            self.put("bias", nn.Parameter(shift))  # (O,): added as it is, not mixed
        elif self.bias.ndim == 1:
            self.bias.mul_(scale).add_(shift)
        else:
            self.bias.mul_(scale)
            return shift
        return None

    def released(self, present: Container[str] | None) -> Iterable[layout.Row]:
        """The authors' layout of this layer, as rows that are read in both directions.

        Args:
            present: Names in the file that is read, relative to the layer; they tell the layouts of a method apart.
                None where a file is written.

        Raises:
            CheckpointError: the method has no released layout, or none for this layer's options.
        """
        raise CheckpointError(f"{type(self).__name__} has no released layout: its authors published no code")

    def from_released(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This layer's state dict from the authors' tensors (names relative to the layer).

        Raises:
            KeyError: a tensor is missing, with its name.
            CheckpointError: see ``released``.
        """
        shapes = {name: tensor.shape for name, tensor in self.state_dict().items()}
        return layout.read(self.released(tensors), tensors, shapes)

    def to_released(self) -> dict[str, Tensor]:
        """This layer's tensors in the authors' layout: the inverse of ``from_released``.

        Raises:
            CheckpointError: see ``released``.
        """
        return layout.write(self.released(None), self.whole_state())

    def cannot_hold(self) -> str | None:
        """Why no static layer can go into this one, and what to do; None where one can."""
        return None

    @torch.no_grad()
    def load_static(self, weight: Tensor, bias: Tensor | None, noise: float, router: Router | None = None) -> None:
        """Become a static layer, exactly: whatever the input and the temperature, the kernel is ``weight``.

        Args:
            weight: (O, C/G, *k), or (O, C) of a linear layer.
            bias: (O,) or None.
            noise: Standard deviation, relative to that of the weights, of what experts differ by; see ``take_``.
            router: The shared router of the layer's block, where it has none of its own.

        Raises:
            ConfigError: the layer can't hold it, see ``cannot_hold``.
        """
        reason = self.cannot_hold()
        if reason:
            raise ConfigError(reason)
        if self.weight.is_meta:  # nothing to compute with; the values come with a state dict
            return
        router = self.router or router
        if router is not None:
            router.neutral_()
        share = self.take_(weight, noise, router)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias * share if self.bias.ndim == 2 else bias)

    def take_(self, weight: Tensor, noise: float, router: Router | None) -> float:
        """Make the bank of a static kernel, in place; without a gradient.

        The neutral router gives all kernels the same coefficient c; each kernel is ``weight + d_k`` with perturbations
        d_k that sum to zero, so that experts can specialise, and ``scale`` is 1 / (K c).

        Args:
            weight: The static kernel.
            noise: Standard deviation of d_k relative to that of the kernels; 0 leaves all experts alike.
            router: What makes the coefficients, neutral already; None for coefficients that sum to 1.

        Returns:
            What a mixed bias is multiplied by.
        """
        gain, bias_gain = (1.0, 1.0) if router is None else neutral_gain(router, self.num_experts)
        left = self.compensate_(gain)
        kernel = weight / left
        self.weight.copy_(kernel + spread(kernel, noise) * zero_sum_noise(self.weight))
        return gain / bias_gain / left


def _signature(init: Callable[..., None], config_type: type[Any] | None) -> inspect.Signature:
    """That of a layer, as help and completion show it: the method's options by name in place of ``**options``."""
    _, *known = inspect.signature(init).parameters.values()  # without self
    if config_type is not None and known and known[-1].kind is inspect.Parameter.VAR_KEYWORD:
        _, *options = inspect.signature(config_type.__init__).parameters.values()
        known[-1:] = options
    return inspect.Signature(known)


def _thread() -> int:
    """Tells apart the threads that run one model at the same time; a recorded graph has one."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()
