# SPDX-License-Identifier: Apache-2.0
"""What large and published trainings have beyond small ones: streamed images, crops and mixes, averaged weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from convary.errors import ConfigError

_RAND_AUGMENT = re.compile(r"rand(-(m|n|p|mstd|mmax|inc)[0-9.]+)+")
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """Fields of ``CompareConfig``."""

    workers: int = 0
    """Processes that read and augment images; 0: the training process itself. Another number gives the same results."""

    skip_broken: bool = False
    """Leave out images of folder:PATH that can't be read, list them in OUT/skipped.txt and count them in the results;
    without it the first one ends the training. All test images are read once at the start."""

    crops: bool = False
    """Train on random parts of the images, scaled to --image-size and mirrored at random, instead of --augment, and
    test on the centres of larger ones: the usual way on ImageNet. The images then stay in their files."""

    test_size: int | None = None
    """Height and width for testing with --crops; by default those for training."""

    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How --crops scales images."""

    rand_augment: str | None = None
    """With --crops: RandAugment as timm writes it, as in rand-m9-mstd0.5-inc1."""

    erasing: float = 0.0
    """With --crops: probability of filling a rectangle of an image with noise."""

    mixup: float = 0.0
    """Blend images in pairs, by shares from a beta distribution with this alpha."""

    mixup_epochs: float = 0.0
    """Epochs over which that alpha rises from 0."""

    cutmix: float = 0.0
    """Likewise, but paste a rectangle of the other image; with --mixup each batch gets one of both."""

    stochastic_depth: float | None = None
    """Probability of leaving out the last residual branch for an image, falling to 0 at the first; by default the
    network's own."""

    ema: float | None = None
    """Average the weights over the steps with this decay, as in 0.9999; the average is tested and kept."""

    accumulate: int = 1
    """Parts that a step's images are trained in, one after the other, to need less memory; norms see one at a time."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16, or on GPUs fp16: automatic mixed precision."""

    channels_last: bool = False
    """Keep images and kernels with their channels last, which GPUs convolve faster."""

    def check_scale(self) -> None:
        """Raise ConfigError for a value that cannot work."""
        for name, least in (("workers", 0), ("accumulate", 1), ("mixup", 0), ("cutmix", 0), ("mixup_epochs", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if self.test_size is not None and self.test_size < 1:
            raise ConfigError(f"test_size must be at least 1; got {self.test_size}")
        if not 0 <= self.erasing <= 1:
            raise ConfigError(f"erasing must be a probability; got {self.erasing}")
        for name in ("stochastic_depth", "ema"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"{name} must be at least 0 and below 1; got {value}")
        usual = ScaleOptions()
        for name in ("test_size", "interpolation", "rand_augment", "erasing"):
            if not self.crops and getattr(self, name) != getattr(usual, name):
                raise ConfigError(f"{name} is a part of --crops; give both, or neither")
        if self.rand_augment is not None and not _RAND_AUGMENT.fullmatch(self.rand_augment):
            raise ConfigError(f"rand_augment is written as in rand-m9-mstd0.5-inc1; got {self.rand_augment!r}")
        if self.mixup_epochs and not self.mixup:
            raise ConfigError("mixup_epochs is a part of --mixup; give both, or neither")
        if self.precision not in get_args(Precision):
            raise ConfigError(f"precision must be one of {', '.join(get_args(Precision))}; got {self.precision!r}")
