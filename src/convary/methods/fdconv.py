# SPDX-License-Identifier: Apache-2.0
"""FDConv: a bank of kernels that hold disjoint groups of the frequencies of one weight, and so cost no more than it.

The weight is the spectrum of the kernel seen as a matrix (filters and taps down, channels and the last axis' taps
across). Its frequencies, sorted by radius, make K groups, and a kernel is the inverse transform of a group. Per sample:

    kernel = a_f a_c a_s a_l irfft2(a_w[group] spectrum)       y = kernel * bands(x)

Channel, filter, spatial and kernel attention (a_c, a_f, a_s: ``2 sigmoid``; a_w: ``2 sigmoid / K``) are linear in
``z = StarReLU(BN(Linear(GAP(x))))``, ``StarReLU(t) = s relu(t)^2 + b``. The dense a_l is ``2 sigmoid`` of a convolution
along the channels of LayerNorm(GAP(x)), with O T outputs. ``bands`` gates the frequency bands of x position by
position, where the kernel is larger than 1.

Chen, Gu, Li, Yan, Fu, "Frequency Dynamic Convolution for Dense Image Prediction", CVPR 2025. Their design starts as the
static convolution; their code draws the filter attention at random by mistake, and does not. We follow the design: all
attentions start at exactly 1, where the code draws from a normal distribution of width 1e-6.

Differences from the released code: any of ``nn.ConvNd``'s arguments works (theirs stops for groups, for odd C k, and
where K does not divide the frequencies: here groups of frequencies differ in size by one then); with G groups of
channels the matrix has the columns of C/G channels; frequencies of one radius are sorted by row and column, where
theirs depend on the machine's sort (a loaded layer keeps theirs); a batch of one can be trained on; the bands keep
float64. With R = ``param_ratio`` spectra there are R K kernels, whose sum is the static kernel at the start, where
theirs is R times that. With ``param_reduction`` below 1 only the lowest frequencies are kept, and theirs loses the
factor that makes up for a_w's 1/K: its kernels start 1/K as large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from convary.errors import ConfigError
from convary.methods.config import MethodConfig, check_positive
from convary.methods.fdconv_attention import Modulation, SpectralAttention
from convary.methods.fdconv_bands import FrequencyBands
from convary.methods.fdconv_released import ReleasedSpectralConv
from convary.methods.fdconv_spectrum import by_radius
from convary.methods.fdconv_transforms import fft_macs
from convary.nn import Router, Site
from convary.nn.arguments import Device, Dtype, PaddingMode, Size
from convary.nn.upcycle import spread, zero_sum_noise

_MOST = 256  # numbers of groups are kept as bytes
_FEWEST = 16  # channels up to which the released layer stays static


@dataclass(frozen=True, kw_only=True)
class FDConv(MethodConfig):
    """Options of FDConv.

    Attributes:
        kernels: K, the groups of frequencies, 256 at most; 64 is published. A weight of fewer frequencies has one per
            group.
        reduction: The hidden width is max(int(C / reduction), min_hidden).
        min_hidden: See reduction.
        local: Whether there is the dense modulation a_l.
        bands: Where the bands of x end, from high to low, each as a part of the highest frequency: 2 for one half.
            Empty for none. A kernel of one position never has any.
        band_activation: Of their gates, all 1 at logits of zero: "sigmoid" is 2 sigmoid, "tanh" 1 + tanh.
        lowest_band: Whether what is below all of the bands has a gate too.
        param_ratio: R, spectra per layer, each with K groups; R K is 256 at most.
        param_reduction: Below 1, the part of the frequencies that is kept, from the lowest. A trained network's weights
            can't be taken over then.
        kernel_attention_only: Whether a_w is the only global attention; a_l is there too unless local=False.
        activation: Of the global attentions, all 1 (a_w: 1/K) at logits of zero: "sigmoid" is 2 sigmoid, "tanh"
            1 + tanh; "softmax" is for a_w alone.
        local_activation: Of a_l.
        temperature: Divides the logits of a_c, a_f and a_s; a constant, as released.
        kernel_temperature: Divides those of a_w; None: temperature does.

    Examples:
        >>> from torch import nn
        >>> layer = FDConv(bands=(2, 4)).build(nn.Conv2d(16, 32, 3, padding=1))
        >>> type(layer).__name__, tuple(layer.weight.shape)
        ('FDConv2d', (96, 25, 2))
    """

    name: ClassVar[str] = "fdconv"
    title: ClassVar[str] = "FDConv"
    citation: ClassVar[str] = "Chen et al., FDConv, CVPR 2025"

    kernels: int = 64
    reduction: float = 16
    min_hidden: int = 16
    local: bool = True
    bands: tuple[int, ...] = (2, 4, 8)
    band_activation: Literal["sigmoid", "tanh"] = "sigmoid"
    lowest_band: bool = False
    param_ratio: int = 1
    param_reduction: float = 1.0
    kernel_attention_only: bool = False
    activation: Literal["sigmoid", "tanh", "softmax"] = "sigmoid"
    local_activation: Literal["sigmoid", "tanh"] = "sigmoid"
    temperature: float = 1.0
    kernel_temperature: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        for name in ("reduction", "min_hidden", "temperature"):
            check_positive(name, getattr(self, name))
        check_positive("kernel_temperature", self.temperatures["frequency"])
        if not 1 <= self.kernels <= _MOST:
            raise ConfigError(f"kernels must be from 1 to {_MOST}; got {self.kernels}")
        most = _MOST // self.kernels
        if not 1 <= self.param_ratio <= most:
            raise ConfigError(f"param_ratio must be from 1 to {_MOST} // kernels = {most}; got {self.param_ratio}")
        if not 0 < self.param_reduction <= 1:
            raise ConfigError(f"param_reduction must be above 0 and at most 1; got {self.param_reduction}")
        if self.activation == "softmax" and not self.kernel_attention_only:
            raise ConfigError("activation='softmax' is for a_w alone; pass kernel_attention_only=True with it")
        if not isinstance(self.bands, (tuple, list)) or not all(type(b) is int and b > 1 for b in self.bands):
            raise ConfigError(f"bands must be a tuple of ints above 1, such as (2, 4, 8); got {self.bands!r}")
        object.__setattr__(self, "bands", tuple(self.bands))  # JSON gives a list
        if self.lowest_band and not self.bands:
            raise ConfigError("lowest_band=True wants bands above it, such as (2, 4, 8); got none")

    @property
    def temperatures(self) -> dict[str, float]:
        """By attention, where it isn't ``temperature``."""
        return {"frequency": self.temperature if self.kernel_temperature is None else self.kernel_temperature}

    @property
    def promise(self) -> float:
        """R spectra, or a part of one."""
        return self.param_ratio * self.param_reduction

    @classmethod
    def placement(cls, site: Site) -> bool:
        """The ungrouped convolutions of the blocks with more than 16 channels in and out; not the shortcuts'.

        A network without blocks: all but the first, whatever their channels.
        """
        if not site.is_conv or site.gate or site.shortcut:
            return False
        if not site.block_count:
            return site.index > 0
        conv = site.module
        return site.block is not None and conv.groups == 1 and min(conv.in_channels, conv.out_channels) > _FEWEST


class _FDConvNd(ReleasedSpectralConv):
    config_type = FDConv
    config: FDConv
    takes = Modulation
    absorbs = False  # every frequency is part of all filters

    if TYPE_CHECKING:  # by scripts/signatures.py

        def __init__(
            self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1, padding: Size | str = 0,
            dilation: Size = 1, groups: int = 1, bias: bool = True, padding_mode: PaddingMode = "zeros",
            device: Device = None, dtype: Dtype = None, *, kernels: int = 64, reduction: float = 16,
            min_hidden: int = 16, local: bool = True, bands: tuple[int, ...] = (2, 4, 8),
            band_activation: Literal["sigmoid", "tanh"] = "sigmoid", lowest_band: bool = False, param_ratio: int = 1,
            param_reduction: float = 1.0, kernel_attention_only: bool = False,
            activation: Literal["sigmoid", "tanh", "softmax"] = "sigmoid",
            local_activation: Literal["sigmoid", "tanh"] = "sigmoid", temperature: float = 1.0,
            kernel_temperature: float | None = None
        ) -> None:  # fmt: skip
            """Torch's arguments, then the method's options, which its config explains."""

    def make_weight(self, **factory) -> None:
        """The spectra, and the gates of the bands."""
        super().make_weight(**factory)
        point = math.prod(self.kernel_size) == 1
        bands = () if point else self.config.bands
        gates: dict[str, Any] = {"activation": self.config.band_activation, "lowest": self.config.lowest_band}
        self.bands = FrequencyBands(self.in_channels, bands, self.rank, **factory, **gates) if bands else None

    def make_router(self, **factory) -> Router:
        depthwise = self.groups == self.in_channels == self.out_channels
        T, K = math.prod(self.kernel_size), self.K * self.config.param_ratio
        sizes = {
            "channel": self.in_channels,
            "filter": 0 if depthwise else self.out_channels,
            "tap": 0 if T == 1 else T,
            "frequency": 0 if K == 1 else K,
        }
        there = {"frequency": K} if self.config.kernel_attention_only else {a: n for a, n in sizes.items() if n}
        return SpectralAttention(self.in_channels, self.kernel_shape, there, self.config, **factory)

    def initialise_(self) -> None:
        """The spectrum of ``nn.ConvNd``'s own kernel, and its bias; R spectra are of kernels with such a sum."""
        super().initialise_()
        group_of, kept = self.grouped(by_radius(*self.matrix_shape, self.weight.device))
        self.group_of.copy_(group_of)
        if self.kept is not None and kept is not None:
            self.kept.copy_(kept)
        kernels = torch.empty(self.num_alike, *self.kernel_shape, device=self.weight.device, dtype=torch.float32)
        for kernel in kernels:
            nn.init.kaiming_uniform_(kernel, a=math.sqrt(5))
        with torch.no_grad():
            self.weight.copy_(self.stored(kernels / math.sqrt(len(kernels))))
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self.kernel_shape[1:]))
            nn.init.uniform_(self.bias, -bound, bound)

    def features(self, x: Tensor) -> Tensor:
        """x, its frequency bands gated."""
        return x if self.bands is None else self.bands(x)

    def kernels(self, coeffs: Modulation) -> Tensor:
        """(B, O, C/G, *k): groups are mixed as frequencies, for one inverse transform per sample."""
        O, C_group, *k = self.kernel_shape
        G, points, coeffs = self.groups, [1] * self.rank, self.scaled(coeffs)
        made = self.transformed(coeffs.frequency).reshape(-1, G, O // G, *k[:-1], C_group, k[-1])
        made = made.movedim(self.rank + 2, 3)
        if coeffs.local is not None:
            made = coeffs.local.reshape(-1, G, O // G, C_group, *k) * made
        inputs = None if coeffs.channel is None else coeffs.channel.reshape(-1, G, 1, C_group, *points)
        if coeffs.tap is not None:  # small factors meet first
            tap = coeffs.tap.reshape(-1, 1, 1, 1, *k)
            inputs = tap if inputs is None else inputs * tap
        if inputs is not None:
            made = made * inputs
        if coeffs.filter is not None:
            made = made * coeffs.filter.reshape(-1, G, O // G, 1, *points)
        return made.reshape(-1, O, C_group, *k)

    @property
    def num_experts(self) -> int:
        """1: there is one weight, of whose frequencies the kernels are made."""
        return 1

    @property
    def num_alike(self) -> int:
        """R: that many spectra are summed."""
        return self.config.param_ratio

    @property
    def label(self) -> str:
        """Groups of frequencies."""
        return f"{self.K * self.config.param_ratio} frequency groups"

    def extra_options(self) -> str:
        """Groups of frequencies."""
        return f"kernels={self.K * self.config.param_ratio}"

    def macs(self, positions: int) -> dict[str, int]:
        """Assembly is that of the kernels, and of x from its bands, whose size is taken for the outputs' by stride."""
        numel = math.prod(self.kernel_shape)
        bands = 0 if self.bands is None else self.bands.macs(positions * math.prod(self.stride))
        return {
            "convolution": numel * positions,
            "routing": self.router.macs(),
            "assembly": self.weight.numel() + fft_macs(numel) + (4 if self.config.local else 3) * numel + bands,
        }

    def cannot_hold(self) -> str | None:
        """A part of the frequencies does not hold a kernel."""
        part = self.config.param_reduction
        wanted = "use param_reduction=1, or convert with upcycle=False"
        told = f"a spectrum with param_reduction={part} can't hold a trained kernel; {wanted}"
        return None if self.kept is None else told

    def take_(self, weight: Tensor, noise: float, router: Router | None) -> float:
        """Become a static layer, exactly: all attentions are 1 and the gates leave x as it is.

        ``scale`` makes the transform keep lengths, so that a step of the spectrum is as long a step of the kernel. The
        kernels of R spectra differ by the noise; those of one spectrum differ by their frequencies.
        """
        if self.bands is not None:
            self.bands.reset_parameters()
        R = self.config.param_ratio
        gain = R * self.gain / math.sqrt(weight.numel() / 2)  # a unitary transform has 1
        share = gain / self.compensate_(gain) / R
        kernels = weight.unsqueeze(0).expand(R, *weight.shape)
        self.weight.copy_(self.stored((kernels + spread(weight, noise) * zero_sum_noise(kernels)) * share))
        return 1.0


class FDConv1d(_FDConvNd):
    """FDConv over (B, C, L): ``nn.Conv1d``'s arguments, then the options of ``FDConv``."""

    rank = 1


class FDConv2d(_FDConvNd):
    """FDConv over (B, C, H, W): ``nn.Conv2d``'s arguments, then the options of ``FDConv``.

    >>> layer = FDConv2d(64, 128, 3, padding=1, kernels=64)
    >>> layer(torch.randn(1, 64, 5, 5)).shape
    torch.Size([1, 128, 5, 5])
    """

    rank = 2


class FDConv3d(_FDConvNd):
    """FDConv over (B, C, D, H, W): ``nn.Conv3d``'s arguments, then the options of ``FDConv``."""

    rank = 3


FDConv.layers = {1: FDConv1d, 2: FDConv2d, 3: FDConv3d}
