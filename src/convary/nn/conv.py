# SPDX-License-Identifier: Apache-2.0
"""Dynamic convolutions: all of ``nn.ConvNd``'s arguments, and a kernel of its own for every sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convary.errors import ConfigError, DtypeError, ShapeError
from convary.nn.arguments import Device, Dtype, PaddingMode
from convary.nn.layer import DynamicLayer
from convary.nn.router import Router
from convary.nn.same import pads_like_tensorflow
from convary.ops import mixed_conv
from convary.ops.geometry import Size, autocasting, per_axis, same_padding, whole
from convary.ops.shapes import plain_shape

PADDING_MODES: tuple[str, ...] = get_args(PaddingMode)
CONVS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class DynamicConv(DynamicLayer):
    """Base of the dynamic convolutions: takes all of ``nn.ConvNd``'s arguments in its order, then the method's options.

    Subclasses set ``rank`` and ``config_type`` and define ``make_router``, ``initialise_`` and, where the bias is
    static, ``mixed_bias = False``. One that mixes no bank of whole kernels derives from ``AssembledConv``.

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
    mixed_bias: ClassVar[bool] = True
    # Asked first where no gradient is needed, for the output or None; ``convary.nn`` hangs ``prepared.infer`` here.
    fast_path: ClassVar[Callable[[Any, Tensor], Tensor | None] | None] = None

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
        padding_mode: PaddingMode = "zeros",
        device: Device = None,
        dtype: Dtype = None,
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
        if x.dtype != self.weight.dtype and not autocasting(x):
            raise DtypeError(
                f"{type(self).__name__} has weights of {self.weight.dtype} but x is {x.dtype}; cast one of them or use "
                "torch.autocast"
            )
        if coeffs is None:
            if self.fast_path is not None and not torch.is_grad_enabled() and (y := self.fast_path(x)) is not None:
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
