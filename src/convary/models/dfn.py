# SPDX-License-Identifier: Apache-2.0
"""The Dynamic Filter Network that continues a video (De Brabandere et al., NIPS 2016, Sec. 4.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convary.errors import ConfigError, ShapeError
from convary.methods.dfn import init_filter_net, local_filter, odd_sizes, split_filters
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
    ) -> None:
        super().__init__()
        if min(channels, frames, hidden) < 1:
            raise ConfigError(f"channels, frames and hidden must be at least 1; got {channels}, {frames}, {hidden}")
        (k, _) = odd_sizes(kernel_size, 2)
        self.channels, self.frames, self.hidden = channels, frames, hidden
        self.kernel_size, self.dynamic_bias = k, dynamic_bias
        self.border: Border = border
        self.encoder = nn.Sequential(
            *_conv(frames * channels, 32), *_conv(32, 32, stride=2), *_conv(32, 64), *_conv(64, 64), *_conv(64, hidden)
        )
        self.recurrent = nn.Sequential(*_conv(hidden, hidden), *_conv(hidden, hidden))
        self.decoder = nn.Sequential(*_conv(hidden, 64), *_conv(64, 64))
        last = nn.Conv2d(128, k * k + dynamic_bias, 1)
        self.filters = nn.Sequential(*_conv(64, 64), *_conv(64, 64), *_conv(64, 128, kernel_size=1), last)
        init_filter_net(self)
        last.get_parameter("bias").data[k * k // 2] = focus

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
            predictions.append(self._predict(seen[-1], hidden))
            seen.append(predictions[-1].frame)
        return predictions

    def _remember(self, window: list[Tensor], hidden: Tensor | None) -> Tensor:
        """The next hidden map (B, hidden, ceil(H/2), ceil(W/2)); the first one follows on zeros."""
        z = self.encoder(torch.cat(window, 1))
        return z + self.recurrent(torch.zeros_like(z) if hidden is None else hidden)

    def _predict(self, last: Tensor, hidden: Tensor) -> Prediction:
        # To the frame's size: each pixel twice, and at odd sizes the last ones once.
        z = F.interpolate(self.decoder(hidden), size=last.shape[2:], mode="nearest")
        filters, bias = split_filters(self.filters(z), softmax=True, dynamic_bias=self.dynamic_bias)
        k, border = self.kernel_size, self.border
        return Prediction(local_filter(last, filters, bias, kernel_size=k, grouping=True, border=border), filters)


def _conv(C: int, O: int, *, kernel_size: int = 3, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(C, O, kernel_size, stride, kernel_size // 2), nn.LeakyReLU(0.01)
