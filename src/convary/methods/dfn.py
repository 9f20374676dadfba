# SPDX-License-Identifier: Apache-2.0
"""Dynamic filters: a small network writes the filters, one per sample or one per position, for another input if wanted.

De Brabandere, Jia, Tuytelaars, Van Gool, "Dynamic Filter Networks", NIPS 2016, arXiv 1605.09673.

The filters are a function of a condition, ``F = g(condition)``. Dynamic convolution (Sec. 3.2) applies one F to every
position of x; dynamic local filtering (Sec. 3.3) has an F^(i,j) for each position. Here they are :class:`DFNConv2d` and
:class:`DFNLocalFilter2d`, with their likes in one and three dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from convary.errors import ConfigError, ShapeError
from convary.methods.dfn_generator import FilterGenerator
from convary.methods.dfn_local import local_filter, odd_sizes, split_filters
from convary.nn import Opaque
from convary.nn.arguments import Device, Dtype
from convary.ops import sample_conv
from convary.ops.geometry import Size, per_axis, whole
from convary.ops.pixel import Border
from convary.ops.shapes import plain_shape, unflatten


class DFNConv2d(Opaque):
    """Dynamic convolution: one generated kernel per sample, applied at every position (Sec. 3.2).

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: An int or one per axis.
        stride: An int or one per axis.
        padding: An int, one per axis, "same" or "valid".
        dilation: An int or one per axis.
        groups: G; divides C and O.
        softmax: Normalise what is summed for one output, C/G*T coefficients, by a softmax.
        dynamic_bias: Generate a bias (B, O) too.
        condition_channels: D of the condition; by default C, for the condition is then x.
        generator: A network from the condition to (B, ``filter_channels``), axes of length one may follow; by default
            the mean of the condition over its positions goes through a :class:`FilterGenerator`.
        hidden: Of the default generator.
        device: Of the default generator's parameters.
        dtype: Likewise.

    Shape:
        x (B, C, H, W) and a condition (B, D, *any, *any) to (B, O, H_out, W_out). A generator of the user's decides
        what its condition looks like.

    Raises:
        ConfigError: groups that do not divide the channels, a size below 1.

    >>> layer = DFNConv2d(3, 8, 5, padding=2, condition_channels=1)
    >>> layer(torch.randn(2, 3, 16, 16), torch.randn(2, 1, 7, 9)).shape
    torch.Size([2, 8, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        *,
        softmax: bool = False,
        dynamic_bias: bool = False,
        condition_channels: int | None = None,
        generator: nn.Module | None = None,
        hidden: Sequence[int] = (64, 128),
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__()
        in_channels, out_channels, groups = whole(in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            raise ConfigError(
                f"groups must divide in_channels and out_channels, all at least 1; got {in_channels=}, "
                f"{out_channels=}, {groups=}"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = per_axis(kernel_size, 2, "kernel_size")
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.softmax, self.dynamic_bias = softmax, dynamic_bias
        if generator is None:
            D = in_channels if condition_channels is None else condition_channels
            net = FilterGenerator(D, self.filter_channels, hidden=hidden, kernel_size=1, device=device, dtype=dtype)
            generator = nn.Sequential(nn.AdaptiveAvgPool2d(1), net)
        self.generator = generator

    @property
    def weight(self) -> Tensor:
        """No kernel: (0, C/G, kh, kw), which initialisers that go by "Conv" in a class's name leave as it is."""
        return torch.empty(0, self.in_channels // self.groups, *self.kernel_size)

    @property
    def filter_channels(self) -> int:
        """What the generator gives per sample: O*C/G*T kernel coefficients (O slowest), then O of the bias if any."""
        kernel = self.out_channels * self.in_channels // self.groups * prod(self.kernel_size)
        return kernel + self.out_channels * self.dynamic_bias

    def filters(self, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        """The kernels (B, O, C/G, kh, kw) and the bias (B, O) or None that the generator makes of a condition.

        Raises:
            ShapeError: the generator gives something else than (B, ``filter_channels``).
        """
        theta = self.generator(condition)
        if theta.ndim < 2 or plain_shape(theta)[1] != self.filter_channels or prod(plain_shape(theta)[2:]) != 1:
            raise ShapeError(
                f"the generator must give (B, {self.filter_channels}), one set of filters per sample; "
                f"got {tuple(theta.shape)}"
            )
        O = self.out_channels
        kernel, bias = theta.flatten(1).split([self.filter_channels - O * self.dynamic_bias, O * self.dynamic_bias], 1)
        kernel = unflatten(kernel, 1, (O, -1))
        kernel = kernel.softmax(2) if self.softmax else kernel
        return unflatten(kernel, 2, (-1, *self.kernel_size)), bias if self.dynamic_bias else None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Filter x by what the generator makes of the condition, x itself by default.

        Raises:
            ShapeError: x, the condition or the generator's output do not fit.
        """
        _check(self, x)
        kernel, bias = self.filters(x if condition is None else condition)
        return sample_conv(
            x, kernel, bias, stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups
        )

    def extra_repr(self) -> str:
        """The sizes and what differs from the defaults."""
        usual = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "softmax": False, "dynamic_bias": False}
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}" + _unusual(self, usual)


class DFNLocalFilter2d(Opaque):
    """Dynamic local filtering: one generated filter per position (Sec. 3.3); stride 1, as large as x.

    Args:
        in_channels: C of x.
        kernel_size: Odd; an int or one per axis. The authors take 9x9 (Moving MNIST), 11x11 (driving), 1x13 (stereo).
        grouping: Filter each channel by the same filter; by default all channels are contracted to one.
        softmax: Normalise what is summed for one output by a softmax; the output is then a mean of x. The authors
            leave it out where filters have negative taps (steerable filters).
        dynamic_bias: Generate one more channel, added to x before filtering, as the released code does.
        border: What is read outside x; see ``ops.pixel_conv``.
        condition_channels: D of the condition; by default C, for the condition is then x.
        generator: A network from the condition to (B, ``filter_channels``, H, W); by default a
            :class:`FilterGenerator`.
        hidden: Of the default generator.
        generator_kernel_size: Odd, of the default generator.
        device: Of the default generator's parameters.
        dtype: Likewise.

    Shape:
        x (B, C, H, W) and a condition (B, D, H, W) to (B, 1, H, W), with ``grouping`` (B, C, H, W). A generator of the
        user's decides what its condition looks like.

    Raises:
        ConfigError: an even kernel size, a size below 1.

    >>> layer = DFNLocalFilter2d(3, 9, grouping=True, condition_channels=6)
    >>> layer(torch.randn(2, 3, 16, 16), torch.randn(2, 6, 16, 16)).shape
    torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: Size,
        *,
        grouping: bool = False,
        softmax: bool = True,
        dynamic_bias: bool = False,
        border: Border = "zeros",
        condition_channels: int | None = None,
        generator: nn.Module | None = None,
        hidden: Sequence[int] = (64, 128),
        generator_kernel_size: int = 3,
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__()
        (in_channels,) = whole(in_channels=in_channels)
        self.in_channels, self.kernel_size = in_channels, odd_sizes(kernel_size, 2)
        self.grouping, self.softmax, self.dynamic_bias = grouping, softmax, dynamic_bias
        self.border: Border = border
        if generator is None:
            D = in_channels if condition_channels is None else condition_channels
            k = generator_kernel_size
            generator = FilterGenerator(
                D, self.filter_channels, hidden=hidden, kernel_size=k, device=device, dtype=dtype
            )
        self.generator = generator

    @property
    def filter_channels(self) -> int:
        """What the generator gives per position: C*T coefficients, T with ``grouping``, then one of the bias if any."""
        return (1 if self.grouping else self.in_channels) * prod(self.kernel_size) + self.dynamic_bias

    def filters(self, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        """The filters as ``local_filter`` takes them, normalised, and the bias (B, 1, H, W) or None.

        Raises:
            ShapeError: the generator gives another number of channels than ``filter_channels``.
        """
        theta = self.generator(condition)
        if theta.ndim != 4 or plain_shape(theta)[1] != self.filter_channels:
            raise ShapeError(
                f"the generator must give (B, {self.filter_channels}, H, W), one filter per position; "
                f"got {tuple(theta.shape)}"
            )
        return split_filters(theta, softmax=self.softmax, dynamic_bias=self.dynamic_bias)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Filter x by what the generator makes of the condition, x itself by default.

        Raises:
            ShapeError: x, the condition or the generator's output do not fit.
        """
        _check(self, x)
        filters, bias = self.filters(x if condition is None else condition)
        return local_filter(x, filters, bias, kernel_size=self.kernel_size, grouping=self.grouping, border=self.border)

    def extra_repr(self) -> str:
        """The sizes and what differs from the defaults."""
        usual = {"grouping": False, "softmax": True, "dynamic_bias": False, "border": "zeros"}
        return f"{self.in_channels}, kernel_size={self.kernel_size}" + _unusual(self, usual)


def _check(layer: DFNConv2d | DFNLocalFilter2d, x: Tensor) -> None:
    if x.ndim != 4 or plain_shape(x)[1] != layer.in_channels:
        raise ShapeError(
            f"{type(layer).__name__} wants x of shape (B, {layer.in_channels}, H, W); got {tuple(x.shape)}"
        )


def _unusual(layer: nn.Module, usual: dict[str, Any]) -> str:
    given = {name: getattr(layer, name) for name, value in usual.items() if getattr(layer, name) != value}
    return "".join(f", {name}={value!r}" for name, value in given.items())
