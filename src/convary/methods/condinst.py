# SPDX-License-Identifier: Apache-2.0
"""CondInst's dynamic mask head: three 1x1 convolutions whose kernels a controller generates for every instance.

``m_n = conv(relu(conv(relu(conv([rel_n, F], W0_n)), W1_n)), W2_n)`` where F are the mask features of the instance's
image and ``rel_n(p) = (location_n - p) / size_n`` the coordinates as the instance sees them.

Tian, Shen, Chen, "Conditional Convolutions for Instance Segmentation", ECCV 2020. Nothing normalises the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from convary.errors import ConfigError, ShapeError
from convary.ops import sample_conv
from convary.ops.shapes import plain_shape

Kernel = tuple[Tensor, Tensor]
"""Weight (N, O, C, 1, 1) and bias (N, O) of a layer, for each of N instances."""


@dataclass(frozen=True, kw_only=True)
class MaskHead:
    """The shape of a dynamic mask head, and how its numbers lie in the controller's output.

    Attributes:
        features: Channels of the mask features.
        channels: Channels between the layers.
        layers: Convolutions; the last one gives the logits.
        coordinates: Whether the first layer also reads the two relative coordinates, before the features.
        order: "weights_first" is [w0, w1, ..., b0, b1, ...] as in the authors' code; "by_layer" is
            [w0, b0, w1, b1, ...] as in some ports. A checkpoint fits only one of them.
    """

    features: int = 8
    channels: int = 8
    layers: int = 3
    coordinates: bool = True
    order: Literal["weights_first", "by_layer"] = "weights_first"

    def __post_init__(self) -> None:
        for name in ("features", "channels", "layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.order not in ("weights_first", "by_layer"):
            raise ConfigError(f"order must be weights_first or by_layer; got {self.order!r}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels before, between and after the layers."""
        return (self.features + 2 * self.coordinates, *[self.channels] * (self.layers - 1), 1)

    @property
    def num_params(self) -> int:
        """Numbers the controller generates per instance.

        >>> MaskHead().num_params
        169
        """
        return sum(O * C + O for C, O in pairwise(self.widths))


def split_params(params: Tensor, head: MaskHead) -> list[Kernel]:
    """The controller's output as the kernels of the layers.

    Args:
        params: (N, head.num_params).
        head: The shape of the head and the order of its numbers.

    Returns:
        Per layer the weight (N, O, C, 1, 1) and the bias (N, O); views of ``params``.

    Raises:
        ShapeError: ``params`` has another width.
    """
    if params.ndim != 2 or plain_shape(params)[1] != head.num_params:
        raise ShapeError(
            f"the head of widths {head.widths} takes params of (N, {head.num_params}); got {tuple(params.shape)}"
        )
    shapes = [(O, C) for C, O in pairwise(head.widths)]
    weights, biases = [O * C for O, C in shapes], [O for O, _ in shapes]
    if head.order == "weights_first":
        parts = params.split(weights + biases, 1)
        pairs = zip(parts[: head.layers], parts[head.layers :], strict=True)
    else:
        parts = params.split([n for pair in zip(weights, biases, strict=True) for n in pair], 1)
        pairs = zip(parts[::2], parts[1::2], strict=True)
    return [(w.reshape(-1, O, C, 1, 1), b) for (w, b), (O, C) in zip(pairs, shapes, strict=True)]


def mask_logits(
    features: Tensor,
    params: Tensor,
    index: Tensor,
    location: Tensor,
    size: Tensor,
    head: MaskHead,
    *,
    stride: int = 8,
) -> Tensor:
    """Run every instance's head on its image's features, all instances of a batch in one call per layer.

    The relative coordinates differ per instance, but ``W_rel (location - p) / size`` is
    ``-(W_rel / size) p + W_rel location / size``: a kernel of the instance's own on coordinates p that all share, and a
    bias. So the first layer is one ``sample_conv`` with ``index`` on features that are never gathered per instance.

    Args:
        features: (B, head.features, H, W) mask features.
        params: (N, head.num_params) of the controller.
        index: (N,) image of each instance, in [0, B).
        location: (N, 2) x and y in input pixels of the position that generated the instance.
        size: (N,) input pixels that make one unit of the relative coordinates: 8 strides of the level.
        head: The shape of the head.
        stride: Input pixels per feature position; the pixel of position i is ``i * stride + stride // 2``.

    Returns:
        (N, 1, H, W) logits.

    Raises:
        ShapeError: the tensors do not fit together.
    """
    N = plain_shape(params)[0]
    if features.ndim != 4 or plain_shape(features)[1] != head.features:
        raise ShapeError(f"features must be (B, {head.features}, H, W); got {tuple(features.shape)}")
    if plain_shape(index) != (N,) or plain_shape(location) != (N, 2) or plain_shape(size) != (N,):
        raise ShapeError(
            f"{N} instances want index ({N},), location ({N}, 2) and size ({N},); got {tuple(index.shape)}, "
            f"{tuple(location.shape)} and {tuple(size.shape)}"
        )
    (weight, bias), *rest = split_params(params, head)
    if head.coordinates:
        relative, own = weight.split((2, head.features), 2)
        relative = relative / size.reshape(-1, 1, 1, 1, 1)
        bias = bias + (relative.flatten(2) @ location.unsqueeze(2).to(relative.dtype)).squeeze(2)
        weight = torch.cat((-relative, own), 2)
        features = torch.cat((_pixels(features, stride), features), 1)
    y = sample_conv(features, weight, bias, index=index)
    for weight, bias in rest:
        y = sample_conv(y.relu(), weight, bias)
    return y


def _pixels(features: Tensor, stride: int) -> Tensor:
    """(B, 2, H, W): x and y of every position, in input pixels."""
    B, _, H, W = features.shape
    x, y = (torch.arange(n, device=features.device, dtype=features.dtype) * stride + stride // 2 for n in (W, H))
    return torch.stack((x.expand(H, W), y.unsqueeze(1).expand(H, W))).expand(B, 2, H, W)


def aligned_bilinear(x: Tensor, factor: int) -> Tensor:
    """Enlarge so that position i lies at ``i * factor + factor // 2``, which plain bilinear interpolation does not.

    Args:
        x: (B, C, H, W).
        factor: How many times.

    Returns:
        (B, C, factor*H, factor*W).
    """
    if factor < 1:
        raise ConfigError(f"factor must be at least 1; got {factor}")
    if factor == 1:
        return x
    H, W = x.shape[2:]
    x = F.pad(x, (0, 1, 0, 1), mode="replicate")
    x = F.interpolate(x, size=(factor * H + 1, factor * W + 1), mode="bilinear", align_corners=True)
    x = F.pad(x, (factor // 2, 0, factor // 2, 0), mode="replicate")
    return x[:, :, : factor * H, : factor * W]


def dice_loss(probability: Tensor, target: Tensor, eps: float = 1e-5) -> Tensor:
    """``1 - 2 sum(p g) / (sum p^2 + sum g^2 + eps)`` per instance.

    Args:
        probability: (N, ...) in [0, 1].
        target: Of the same shape, 0 or 1.
        eps: Keeps an empty mask finite; mmdetection's port has 5e-6.

    Returns:
        (N,).
    """
    if probability.shape != target.shape:
        raise ShapeError(
            f"got probability {tuple(probability.shape)} and target {tuple(target.shape)}; make them equal"
        )
    p, g = probability.flatten(1), target.flatten(1).to(probability.dtype)
    return 1 - 2 * (p * g).sum(1) / (p.square().sum(1) + g.square().sum(1) + eps)
