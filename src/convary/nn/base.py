# SPDX-License-Identifier: Apache-2.0
"""What all dynamic convolutions share: ``nn.ConvNd``'s signature, the bank, exact upcycling."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convary.errors import CheckpointError, ConfigError, ShapeError
from convary.nn import prepared
from convary.nn.fusers import KeepsParameters
from convary.nn.opaque import Opaque
from convary.nn.placed import Placed
from convary.nn.routers import Router
from convary.nn.scale import Scaled
from convary.ops import Coefficients, mix_bias, mix_kernels, mixed_conv
from convary.ops.coefficients import Factors
from convary.ops.geometry import Size, per_axis, same_padding, whole
from convary.ops.shapes import plain_shape

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
CONVS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


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
    takes: ClassVar[type[Factors]] = Coefficients  # what its router makes, and what may be given instead
    absorbs: ClassVar[bool] = True  # whether ``absorb_`` can scale one filter without the others
    released_weight: ClassVar[str | None] = None  # the authors' name of a weight that layers share, by its number
    # By the network's class name: patterns of names, and what the authors' network calls them.
    released_network: ClassVar[Mapping[str, Sequence[tuple[str, str]]]] = {}

    def __init__(self) -> None:
        super().__init__()
        self._lent: dict[int, Coefficients] = {}  # by thread, from a block's shared router, for the time of one forward

    def initialise_(self) -> None:
        """Initialise the bank as the method publishes, which a subclass does after this."""
        if self.scale is not None:
            self.scale.fill_(1)

    @property
    def num_experts(self) -> int:
        """K, the kernels that are mixed; 1 where the method mixes no whole kernels."""
        return self.weight.shape[0]

    @property
    def num_alike(self) -> int:
        """Weights that are summed, equally, to one of the kernel's where the router is neutral: K of a bank."""
        return self.num_experts

    @property
    def size(self) -> str:
        """How large the method makes the layer, in the few characters that a plan has for it."""
        return f"x{self.num_experts}"

    def coefficients(self, x: Any) -> Any:
        """Mixing coefficients for x, from the layer's own router or the one its block shares.

        ``Coefficients`` for a bank; a method with another form of kernel has its own class, with ``factors()`` too.

        Raises:
            ConfigError: the router is shared but the layer was called outside its block.
        """
        if self.router is not None:
            return self.router(x)
        lent = self._lent.get(current_thread())
        if lent is None:
            raise ConfigError(
                f"this {type(self).__name__} has no router of its own; call it through its block (to save memory, "
                "checkpoint the block as a whole, nothing inside it), or pass the coefficients: layer(x, coeffs)"
            )
        return lent

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

    def from_released(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This layer's state dict from the authors' tensors (names relative to the layer).

        Raises:
            KeyError: a tensor is missing, with its name.
            CheckpointError: the method has no released layout.
        """
        raise CheckpointError(f"{type(self).__name__} has no released layout: its authors published no code")

    def to_released(self) -> dict[str, Tensor]:
        """This layer's tensors in the authors' layout: the inverse of ``from_released``.

        Raises:
            CheckpointError: the method has no released layout, or not for this layer's options.
        """
        raise CheckpointError(f"{type(self).__name__} has no released layout: its authors published no code")

    @torch.no_grad()
    def load_static(self, weight: Tensor, bias: Tensor | None, noise: float, router: Router | None = None) -> None:
        """Become a static layer, exactly: whatever the input and the temperature, the mixture is ``weight``.

        The router's last layer is zeroed, so all kernels have the same coefficient c; each kernel is ``weight + d_k``
        with perturbations d_k that sum to zero, so that experts can specialise, and ``scale`` is 1 / (K c).

        Args:
            weight: (O, C/G, *k).
            bias: (O,) or None.
            noise: Standard deviation of d_k relative to that of the kernels; 0 leaves all experts alike.
            router: The shared router of the layer's block, where it has none of its own.
        """
        if self.weight.is_meta:  # nothing to compute with; the values come with a state dict
            return
        gain, bias_gain = 1.0, 1.0
        router = self.router or router
        if router is not None:
            router.neutral_()
            gain, bias_gain = neutral_gain(router, self.num_experts)
        left = self.compensate_(gain)
        kernel = weight / left
        spread = noise * kernel.float().std(correction=0).to(kernel.dtype)
        self.weight.copy_(kernel + spread * zero_sum_noise(self.weight))
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias * (gain / bias_gain / left) if self.bias.ndim == 2 else bias)


def current_thread() -> int:
    """Tells apart the threads that run one model at the same time; a recorded graph has one."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside the block, each back in its own mode after; warns of nothing."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def neutral_gain(router: Router, K: int) -> tuple[float, float]:
    """What a neutral router multiplies equal kernels, and equal biases, by: the sum of its coefficients over K."""
    like = next(router.parameters())
    with evaluating(router):
        coeffs = router.coefficients(torch.zeros(1, router.in_channels, device=like.device, dtype=like.dtype))

    def total(*axes: str) -> float:
        product = torch.ones(K, dtype=torch.double, device=like.device)
        for axis, value in coeffs.factors().items():
            if axis in axes:  # kernel (1, K), the others (1, 1 or K, n) with n equal entries
                product = product * (value[0] if value.ndim == 2 else value[0, :, 0]).double()
        return float(product.sum())

    return total("kernel", "filter", "channel", "tap"), total("kernel", "filter")


def zero_sum_noise(bank: Tensor) -> Tensor:
    """Normal noise like ``bank`` (K, ...) whose sum over K is zero; all zero where K is 1."""
    noise = torch.randn(bank.shape, device=bank.device, dtype=torch.float32)
    return (noise - noise.mean(0, keepdim=True)).to(bank.dtype)


class DynamicConv(DynamicLayer):
    """Base of the dynamic convolutions: takes all of ``nn.ConvNd``'s arguments in its order, then the method's options.

    Subclasses set ``rank`` and ``config_type`` and define ``make_router``, ``initialise_`` and, where the bias is
    static, ``mixed_bias = False``. One that mixes no bank of whole kernels defines ``make_weight``, ``convolve`` and
    what ``DynamicLayer`` says of kernels besides.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: int or one per axis.
        stride: int or one per axis.
        padding: int, one per axis, "same" or "valid". "same" takes any stride, see ``ops.mixed_conv``.
        dilation: int or one per axis.
        groups: G; divides C and O.
        bias: Whether to add a bias.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device: Of the parameters.
        dtype: Of the parameters.
        **options: The method's options, see its config.

    Shape:
        x (B, C, *S) or (C, *S) to (B, O, *S_out) or (O, *S_out), as ``nn.ConvNd``.

    Raises:
        ConfigError: an argument that no convolution takes, or an unknown option.
    """

    config: Any
    rank: ClassVar[int]
    config_type: ClassVar[type]
    mixed_bias: ClassVar[bool] = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.config = self.config_type.from_options(options)
        self._set_geometry(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        factory = {"device": device, "dtype": dtype}
        self.make_weight(**factory)
        bias_shape = (self.config.experts, out_channels) if self.mixed_bias else (out_channels,)
        self.register_parameter("bias", nn.Parameter(torch.empty(bias_shape, **factory)) if bias else None)
        self.router = self.make_router(**factory)
        self.initialise_()

    def _set_geometry(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size,
        padding: Size | str,
        dilation: Size,
        groups: int,
        padding_mode: str,
    ) -> None:
        in_channels, out_channels, groups = whole(in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            raise ConfigError(
                f"groups must divide in_channels and out_channels; got {in_channels=}, {out_channels=}, {groups=}; "
                "use groups=1"
            )
        if padding_mode not in PADDING_MODES:
            raise ConfigError(f"padding_mode must be one of {', '.join(PADDING_MODES)}; got {padding_mode!r}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = per_axis(kernel_size, self.rank, "kernel_size")
        self.stride = per_axis(stride, self.rank, "stride")
        self.dilation = per_axis(dilation, self.rank, "dilation")
        self.padding_mode = padding_mode
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise ConfigError(f"padding must be ints, 'same' or 'valid'; got {padding!r}")
            self.padding: tuple[int, ...] | str = padding
        else:
            self.padding = per_axis(padding, self.rank, "padding", least=0)

    @classmethod
    def from_conv(cls, conv: Any, config: Any) -> DynamicConv:
        """A dynamic layer with the geometry, dtype, device and mode of a static one, freshly initialised.

        Args:
            conv: ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d`` of this class' rank, or timm's ``Conv2dSame``.
            config: The method's options.
        """
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            "same" if pads_like_tensorflow(conv) else conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            conv.weight.device,
            conv.weight.dtype,
            **config.options(),
        )
        return layer.train(conv.training)

    def _apply(self, fn, recurse: bool = True):
        # model.to(memory_format=torch.channels_last) raises on the five axes of a 2-D layer's bank. Mixing wants the
        # bank contiguous anyway: show fn a matrix, which has no memory format.
        def on_bank(t: Tensor) -> Tensor:
            return fn(t.flatten(1)).unflatten(1, t.shape[1:]) if t.ndim == self.rank + 3 else fn(t)

        return super()._apply(on_bank, recurse)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Of one kernel: (O, C/G, *k)."""
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    def make_weight(self, **factory: Any) -> None:
        """Set ``weight``, uninitialised."""
        self.weight = nn.Parameter(torch.empty(self.config.experts, *self.kernel_shape, **factory))

    def make_router(self, **factory: Any) -> Router | None:
        """The method's router for this layer's channels."""
        raise TypeError(f"{type(self).__name__} must define make_router()")

    def forward(self, x: Tensor, coeffs: Any = None) -> Tensor:
        """Convolve each sample with its own kernel.

        Args:
            x: (B, C, *S), or (C, *S) for a single sample.
            coeffs: Coefficients from elsewhere instead of the layer's router; see ``given``.

        Returns:
            (B, O, *S_out) or (O, *S_out).

        Raises:
            ShapeError: x has another number of axes or channels.
            DtypeError: x has no floating-point dtype, or another than the layer.
            ConfigError: coefficients of another method.
        """
        if x.ndim == self.rank + 1:
            return self.forward(x.unsqueeze(0), coeffs).squeeze(0)
        if x.ndim != self.rank + 2 or plain_shape(x)[1] != self.in_channels:
            raise ShapeError(
                f"{type(self).__name__} wants x of shape (B, {self.in_channels}, *S) with {self.rank} spatial axes; "
                f"got {tuple(x.shape)}"
            )
        if coeffs is None:
            if not torch.is_grad_enabled() and (y := prepared.infer(self, x)) is not None:
                return y
            coeffs = self.coefficients(x)
        else:
            coeffs = self.given(coeffs)
        x, padding = self.features(x), self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._pad_sides(x.shape[2:]), mode=self.padding_mode), 0
        return self.convolve(x, coeffs, padding)

    def features(self, x: Tensor) -> Tensor:
        """What is convolved, before it is padded: x (B, C, *S) itself, or as the method changes it."""
        return x

    def convolve(self, x: Tensor, coeffs: Any, padding: Size | str) -> Tensor:
        """The convolution itself: x (B, C, *S), padded already where the padding mode is not "zeros"."""
        geometry = {"stride": self.stride, "dilation": self.dilation, "groups": self.groups}
        return mixed_conv(x, self.weight, self.scaled(coeffs), self.bias, padding=padding, **geometry)

    def _pad_sides(self, size: Sequence[int]) -> list[int]:
        """``F.pad``'s argument for the padding modes other than zeros: last axis first."""
        if self.padding == "valid":
            return [0] * (2 * self.rank)
        if self.padding == "same":
            sides = same_padding(size, self.kernel_size, self.stride, self.dilation)
        else:
            sides = [(int(p), int(p)) for p in self.padding]
        return [amount for before_after in reversed(sides) for amount in before_after]

    def extra_repr(self) -> str:
        """Like ``nn.ConvNd``, with the number of experts."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, {self.extra_options()}"]
        defaults = {"stride": (1,) * self.rank, "padding": (0,) * self.rank, "dilation": (1,) * self.rank, "groups": 1}
        parts += [f"{name}={getattr(self, name)!r}" for name, usual in defaults.items() if getattr(self, name) != usual]
        if self.bias is None:
            parts.append("bias=False")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode!r}")
        return ", ".join(parts)

    def extra_options(self) -> str:
        """What the layer's representation tells of the method's options."""
        return f"experts={self.num_experts}"


def pads_like_tensorflow(conv: Any) -> bool:
    """Whether a convolution is timm's ``Conv2dSame``, whose own padding is 0: it pads in its forward, by x's size."""
    cls = type(conv)
    return cls.__name__ == "Conv2dSame" and cls.__module__.partition(".")[0] == "timm"


def per_expert_(weight: Tensor, init: Any) -> None:
    """Apply an initialiser to every kernel of a bank on its own: fan-in and fan-out are those of one kernel."""
    for kernel in weight:
        init(kernel)
