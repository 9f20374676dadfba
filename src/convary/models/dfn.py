# SPDX-License-Identifier: Apache-2.0
"""The Dynamic Filter Networks that continue a video or make another view (De Brabandere et al., NIPS 2016, Sec. 4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convary.errors import ConfigError, ShapeError
from convary.methods.dfn_generator import init_filter_net
from convary.methods.dfn_local import local_filter, odd_sizes, split_filters
from convary.ops.geometry import Size, per_axis
from convary.ops.pixel import Border


class Prediction(NamedTuple):
    """One step into the future.

    Attributes:
        frame: (B, C, H, W) predicted.
        filters: (B, T, H, W), at least 0 and summing to 1 over the taps.
    """

    frame: Tensor
    filters: Tensor


class DFN(nn.Module):
    """Predicts frame after frame; each pixel is a mean of the last frame's pixels around it, by its own filter.

    A recurrent network sees the last ``frames`` frames and generates a filter per position, by which the last frame is
    filtered, all channels alike. As published it has one channel, sees one frame and keeps the rest in its hidden map:
    637,361 parameters. The structure is that of the released code for Moving MNIST: the hidden map is
    ``h_t = z_t + f(h_{t-1})``, a plain sum without gates.

    Args:
        channels: C of a frame.
        frames: How many frames are seen at once.
        hidden: Channels of the hidden map, which has half the height and width.
        kernel_size: Odd; how far a pixel can come from.
        dynamic_bias: Generate one more channel, which is added to the last frame before filtering (the authors' driving
            experiment), so that what was nowhere in it can appear.
        focus: Bias of every filter's middle tap before training. 0 as released, where filters start as a blur; with 8
            they start as a copy of the last frame.
        border: What filters read outside the frame, see ``ops.pixel_conv``; zeros as released, which is black.
        refine: Add what a small network (the authors' refinement network) makes of the filtered frame and the frames
            seen; a prediction is then no mean of pixels any more. The published parameter counts are without it.

    Shape:
        frames (B, N, C, H, W), N at least ``frames``, to the frames that follow, (B, steps, C, H, W). Any H and W.

    Raises:
        ConfigError: an even kernel size, a size below 1.

    >>> net = DFN()
    >>> sum(p.numel() for p in net.parameters())
    637361
    >>> net(torch.rand(1, 3, 1, 16, 16), steps=2).shape
    torch.Size([1, 2, 1, 16, 16])
    """

    def __init__(
        self,
        channels: int = 1,
        *,
        frames: int = 1,
        hidden: int = 128,
        kernel_size: int = 9,
        dynamic_bias: bool = False,
        focus: float = 0.0,
        border: Border = "zeros",
        refine: bool = False,
    ) -> None:
        super().__init__()
        if min(channels, frames, hidden) < 1:
            raise ConfigError(f"channels, frames and hidden must be at least 1; got {channels}, {frames}, {hidden}")
        (k, _) = odd_sizes(kernel_size, 2)
        self.channels, self.frames, self.hidden = channels, frames, hidden
        self.kernel_size, self.dynamic_bias = k, dynamic_bias
        self.border: Border = border
        self.encoder, self.recurrent, self.decoder, hidden_layers = self._parts(frames * channels, hidden)
        last = nn.Conv2d(128, k * k + dynamic_bias, 1)
        self.filters = nn.Sequential(*hidden_layers, last)
        self.refinement = _refinement(channels, frames) if refine else None
        init_filter_net(self)
        last.get_parameter("bias").data[k * k // 2] = focus

    def _parts(self, seen: int, hidden: int) -> tuple[nn.Sequential, nn.Sequential, nn.Sequential, nn.Sequential]:
        """From the frames to z, from a hidden map to the next, and two from there to 128 channels, enlarged between."""
        encoder = nn.Sequential(
            *_conv(seen, 32), *_conv(32, 32, stride=2), *_conv(32, 64), *_conv(64, 64), *_conv(64, hidden)
        )
        recurrent = nn.Sequential(*_conv(hidden, hidden), *_conv(hidden, hidden))
        decoder = nn.Sequential(*_conv(hidden, 64), *_conv(64, 64))
        return (
            encoder,
            recurrent,
            decoder,
            nn.Sequential(*_conv(64, 64), *_conv(64, 64), *_conv(64, 128, kernel_size=1)),
        )

    def forward(self, frames: Tensor, steps: int = 1) -> Tensor:
        """The next ``steps`` frames; from the second on they are made of predicted ones.

        Raises:
            ShapeError: frames of another shape, or fewer than the network sees at once.
            ConfigError: no steps.
        """
        return torch.stack([prediction.frame for prediction in self.predict(frames, steps)], 1)

    def predict(self, frames: Tensor, steps: int = 1) -> list[Prediction]:
        """Like ``forward``, but each frame with the filters that made it."""
        if frames.ndim != 5 or frames.shape[2] != self.channels or frames.shape[1] < self.frames:
            raise ShapeError(
                f"frames must be (B, N, {self.channels}, H, W) with N at least {self.frames}; got {tuple(frames.shape)}"
            )
        if steps < 1:
            raise ConfigError(f"steps must be at least 1; got {steps}")
        seen = list(frames.unbind(1))
        # Before the last frame only the hidden map matters: the released code predicts there too, and discards it.
        hidden = None
        for last in range(self.frames, len(seen)):
            hidden = self._remember(seen[last - self.frames : last], hidden)
        predictions = []
        for _ in range(steps):
            hidden = self._remember(seen[-self.frames :], hidden)
            predictions.append(self._predict(seen[-self.frames :], hidden))
            seen.append(predictions[-1].frame)
        return predictions

    def _remember(self, window: list[Tensor], hidden: Tensor | None) -> Tensor:
        """The next hidden map (B, hidden, ceil(H/2), ceil(W/2)); the first one follows on zeros."""
        z = self.encoder(torch.cat(window, 1))
        return z + self.recurrent(torch.zeros_like(z) if hidden is None else hidden)

    def _predict(self, window: list[Tensor], hidden: Tensor) -> Prediction:
        last = window[-1]
        # To the frame's size: each pixel twice, and at odd sizes the last ones once.
        z = F.interpolate(self.decoder(hidden), size=last.shape[2:], mode="nearest")
        filters, bias = split_filters(self.filters(z), softmax=True, dynamic_bias=self.dynamic_bias)
        k, border = self.kernel_size, self.border
        frame = local_filter(last, filters, bias, kernel_size=k, grouping=True, border=border)
        if self.refinement is not None:
            frame = frame + self.refinement(torch.cat([frame, *window], 1))
        return Prediction(frame, filters)


class HighwayDFN(DFN):
    """The network of the authors' driving experiment: grey frames of one size, of which it sees two at once.

    A narrower ``DFN`` with 64 hidden channels, 11x11 filters and a dynamic bias, whose first convolution has a bias for
    every pixel: 368,122 parameters for frames of 64x64.

    Args:
        size: Height and width of the frames, or an int for both.
        refine: See ``DFN``.
        focus: See ``DFN``.
        border: See ``DFN``.

    Shape:
        frames (B, N, 1, *size), N at least 2, to (B, steps, 1, *size).

    Raises:
        ConfigError: a size below 1.

    >>> sum(p.numel() for p in HighwayDFN().parameters())
    368122
    """

    def __init__(self, size: Size = 64, *, refine: bool = False, focus: float = 0.0, border: Border = "zeros") -> None:
        self._size = per_axis(size, 2, "size")
        super().__init__(
            frames=2, hidden=64, kernel_size=11, dynamic_bias=True, focus=focus, border=border, refine=refine
        )

    def _parts(self, seen: int, hidden: int) -> tuple[nn.Sequential, nn.Sequential, nn.Sequential, nn.Sequential]:
        first = _UntiedConv2d(seen, 32, self._size)
        encoder = nn.Sequential(first, nn.LeakyReLU(0.01), *_conv(32, 32, stride=2), *_conv(32, 64), *_conv(64, hidden))
        recurrent = nn.Sequential(*_conv(hidden, hidden), *_conv(hidden, hidden))
        decoder = nn.Sequential(*_conv(hidden, 64))
        return (
            encoder,
            recurrent,
            decoder,
            nn.Sequential(*_conv(64, 32), *_conv(32, 64), *_conv(64, 128, kernel_size=1)),
        )


class StereoDFN(nn.Module):
    """Makes one view of a stereo pair from the other: filters of one row, for every pixel of a grey image.

    No recurrence; the last convolution at half the size has a bias for every position, which ties the network to one
    size. 464,494 parameters for images of 64x64 with 1x13 filters, as published.

    Args:
        size: Height and width of the images, or an int for both.
        width: Odd, of the filters: how far to both sides a pixel can come from is half of it.
        focus: Bias of every filter's middle tap before training, see ``DFN``.
        border: What filters read outside the image, see ``ops.pixel_conv``.

    Shape:
        x (B, 1, *size) to (B, 1, *size).

    Raises:
        ConfigError: an even width, a size below 1.

    >>> sum(p.numel() for p in StereoDFN().parameters())
    464494
    """

    def __init__(self, size: Size = 64, *, width: int = 13, focus: float = 0.0, border: Border = "zeros") -> None:
        super().__init__()
        self.kernel_size = (1, *odd_sizes(width, 1))
        self.border: Border = border
        half = tuple(-(-s // 2) for s in per_axis(size, 2, "size"))
        self.encoder = nn.Sequential(
            *_conv(1, 32), *_conv(32, 32, stride=2), *_conv(32, 64), *_conv(64, 64),
            _UntiedConv2d(64, 128, half), nn.LeakyReLU(0.01),
        )  # fmt: skip
        self.decoder = nn.Sequential(*_conv(128, 64), *_conv(64, 64))
        last = nn.Conv2d(128, width + 1, 1)
        self.filters = nn.Sequential(*_conv(64, 64), *_conv(64, 64), *_conv(64, 128, kernel_size=1), last)
        init_filter_net(self)
        last.get_parameter("bias").data[width // 2] = focus

    def forward(self, x: Tensor) -> Tensor:
        """The other view of x.

        Raises:
            ShapeError: x has another shape than (B, 1, *size).
        """
        return self.predict(x).frame

    def predict(self, x: Tensor) -> Prediction:
        """Like ``forward``, with the filters (B, width, H, W) that made the view."""
        if x.ndim != 4 or x.shape[1] != 1:
            raise ShapeError(f"StereoDFN wants grey images (B, 1, H, W); got {tuple(x.shape)}")
        z = F.interpolate(self.decoder(self.encoder(x)), size=x.shape[2:], mode="nearest")
        filters, bias = split_filters(self.filters(z), softmax=True, dynamic_bias=True)
        view = local_filter(x, filters, bias, kernel_size=self.kernel_size, grouping=True, border=self.border)
        return Prediction(view, filters)


class _UntiedConv2d(nn.Conv2d):
    """A 3x3 convolution that keeps the map's size and has a bias for every position, (O, H, W)."""

    def __init__(self, C: int, O: int, size: tuple[int, ...]) -> None:
        super().__init__(C, O, 3, padding=1, bias=False)
        self.untied = nn.Parameter(torch.zeros(O, *size))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != self.untied.shape[1:]:
            raise ShapeError(
                f"this network has a bias for every position of {tuple(self.untied.shape[1:])}; got a map of "
                f"{tuple(x.shape[2:])}; give size= of your frames when you build it"
            )
        return super().forward(x) + self.untied


def _refinement(channels: int, frames: int) -> nn.Sequential:
    """Of the filtered frame and those that were seen; as released, a LeakyReLU is behind the last layer too."""
    seen = channels * (1 + frames)
    return nn.Sequential(*_conv(seen, 32), *_conv(32, 64), *_conv(64, 32), *_conv(32, channels))


def _conv(C: int, O: int, *, kernel_size: int = 3, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(C, O, kernel_size, stride, kernel_size // 2), nn.LeakyReLU(0.01)
