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
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convary.errors import ConfigError
from convary.methods.config import MethodConfig, check_positive
from convary.methods.fdconv_released import ReleasedLayout
from convary.nn import DynamicConv, Router, Site, VectorBatchNorm
from convary.nn.bands import FrequencyBands, fft_macs, inverse, inverse_by_products
from convary.nn.base import zero_sum_noise
from convary.nn.frequencies import by_radius, numbered
from convary.nn.norm import normalised
from convary.nn.routers import zero_
from convary.ops import sample_conv
from convary.ops.coefficients import Factors
from convary.ops.geometry import Size
from convary.ops.shapes import plain_shape, unflatten
from convary.ops.tracing import is_onnx_trace

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
        band_activation: Of their gates, all 1 at logits of zero: "sigmoid" is ``2 sigmoid``, "tanh" ``1 + tanh``.
        lowest_band: Whether what is below all of the bands has a gate too.
        param_ratio: R, spectra per layer, each with K groups; R K is 256 at most.
        param_reduction: Below 1, the part of the frequencies that is kept, from the lowest. A trained network's weights
            can't be taken over then.
        kernel_attention_only: Whether a_w is the only global attention; a_l is there too unless ``local=False``.
        activation: Of the global attentions, all 1 (a_w: 1/K) at logits of zero: "sigmoid" is ``2 sigmoid``, "tanh"
            ``1 + tanh``; "softmax" is for a_w alone.
        local_activation: Of a_l.
        temperature: Divides the logits of a_c, a_f and a_s; a constant, as released.
        kernel_temperature: Divides those of a_w; None: ``temperature`` does.
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
        check_positive("reduction", self.reduction)
        check_positive("min_hidden", self.min_hidden)
        check_positive("temperature", self.temperature)
        check_positive("kernel_temperature", self.temperatures["frequency"])
        if not 1 <= self.kernels <= _MOST:
            raise ConfigError(f"kernels must be from 1 to {_MOST}; got {self.kernels}")
        if not 1 <= self.param_ratio <= _MOST // self.kernels:
            raise ConfigError(
                f"param_ratio must be at least 1, and kernels * param_ratio at most {_MOST}; got {self.param_ratio} "
                f"with kernels={self.kernels}"
            )
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


class Modulation(Factors):
    """What an FDConv layer does to its kernel for a sample; what is None counts as 1.

    Attributes:
        frequency: (B, K) weight of each group of frequencies; their mean is 1/K at the start.
        filter: (B, 1, O).
        channel: (B, 1, C).
        tap: (B, 1, T).
        local: (B, O, C/G * T).
    """

    __slots__ = ()
    frequency: Tensor | None = None
    filter: Tensor | None = None
    channel: Tensor | None = None
    tap: Tensor | None = None
    local: Tensor | None = None


class SpectralAttention(Router):
    """Kernel spatial modulation, global and local.

    Args:
        in_channels: C.
        kernel_shape: (O, C/G, *k).
        sizes: Logits per global attention, by name; one that is missing counts as 1.
        config: The method's options.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_shape: tuple[int, ...],
        sizes: dict[str, int],
        config: FDConv,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(in_channels)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.kernel_shape, self.sizes, self.config = kernel_shape, sizes, config
        hidden = max(int(in_channels / config.reduction), config.min_hidden)
        self.squeeze = nn.Linear(in_channels, hidden, bias=False, **factory)
        self.norm = VectorBatchNorm(hidden, **factory)
        self.scale, self.shift = (nn.Parameter(torch.empty(1, **factory)) for _ in range(2))
        self.heads = nn.Linear(hidden, sum(sizes.values()), **factory)
        self.local_norm: nn.LayerNorm | None = None
        if config.local:
            reach = round(math.log2(in_channels) / 2 + 0.5) // 2 * 2 + 1  # efficient channel attention's, as released
            self.local_norm = nn.LayerNorm(in_channels, **factory)
            self.local = nn.Parameter(torch.empty(kernel_shape[0] * math.prod(kernel_shape[2:]), reach, **factory))
        self.initialise_()

    def initialise_(self) -> None:
        """The squeeze Kaiming-normal (fan-out); the rest neutral."""
        super().initialise_()
        nn.init.kaiming_normal_(self.squeeze.weight, mode="fan_out", nonlinearity="relu")
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.shift)
        self.neutral_()

    def coefficients(self, vector: Tensor) -> Modulation:
        """All attentions, from pooled features (B, C)."""
        hidden = self.scale * F.relu(normalised(self.norm, self.squeeze(vector))).square() + self.shift
        logits = self.heads(hidden).split_with_sizes(list(self.sizes.values()), 1)
        found = {axis: self._activated(axis, part) for axis, part in zip(self.sizes, logits, strict=True)}
        return Modulation(**found, local=None if self.local_norm is None else self._local(self.local_norm(vector)))

    def _activated(self, axis: str, logits: Tensor) -> Tensor:
        temperature = self.config.temperatures.get(axis, self.config.temperature)
        logits = logits if temperature == 1 else logits / temperature
        if self.config.activation == "softmax":
            return logits.softmax(1)
        value = _doubled(logits, self.config.activation)
        return value / self.sizes[axis] if axis == "frequency" else value.unsqueeze(1)

    def _local(self, vector: Tensor) -> Tensor:
        """(B, C) to (B, O, C/G * T): every channel and its neighbours tell the filters of the channel's group."""
        O, C_group, *k = self.kernel_shape
        G, T, reach = self.in_channels // C_group, math.prod(k), plain_shape(self.local)[1]
        padded = F.pad(vector, (reach // 2, reach // 2))
        windows = torch.stack([padded[:, i : i + self.in_channels] for i in range(reach)], 2)
        logits = unflatten(windows, 1, (G, C_group)) @ unflatten(self.local, 0, (G, O // G * T)).transpose(1, 2)
        logits = unflatten(logits, 3, (O // G, T)).transpose(2, 3).reshape(-1, O, C_group * T)
        return _doubled(logits, self.config.local_activation)

    def neutral_(self) -> None:
        """Zero logits: every frequency's weight is 1/K, and the other attentions 1."""
        zero_(self.heads)
        if self.local_norm is not None:
            nn.init.zeros_(self.local)

    def macs(self) -> int:
        """Of the linear layers and of the convolution along the channels."""
        local = 0 if self.local_norm is None else self.local.numel() * self.kernel_shape[1]
        return super().macs() + local


def _doubled(logits: Tensor, activation: str) -> Tensor:
    """From 0 to 2, and 1 at 0."""
    return 2 * logits.sigmoid() if activation == "sigmoid" else 1 + logits.tanh()


class _FDConvNd(ReleasedLayout, DynamicConv):
    config_type = FDConv
    config: FDConv
    takes = Modulation
    mixed_bias = False
    absorbs = False  # every frequency is part of all filters
    group_of: Tensor
    kept: Tensor | None

    def make_weight(self, **factory) -> None:
        """The spectra, (R rows, columns // 2 + 1, 2) real and imaginary parts, and the group of each frequency.

        Of kept frequencies (R kept, 1, 2), from low to high.
        """
        shape = self._spectrum_shape if self.config.param_reduction == 1 else (self._count, 1)
        self.weight = nn.Parameter(torch.empty(self.config.param_ratio * shape[0], shape[1], 2, **factory))
        device, count = factory["device"], self._count
        group_of = torch.empty(self.config.param_ratio * count, dtype=torch.uint8, device=device)
        self.register_buffer("group_of", group_of)
        whole = self.config.param_reduction == 1
        self.register_buffer("kept", None if whole else torch.empty(count, dtype=torch.long, device=device))
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
        sizes = {axis: size for axis, size in sizes.items() if size}
        if self.config.kernel_attention_only:
            sizes = {"frequency": K}
        return SpectralAttention(self.in_channels, self.kernel_shape, sizes, self.config, **factory)

    @property
    def _matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of the kernel as a matrix."""
        O, C_group, *k = self.kernel_shape
        return O * math.prod(k[:-1]), C_group * k[-1]

    @property
    def _spectrum_shape(self) -> tuple[int, int]:
        """Rows and columns of a spectrum."""
        rows, columns = self._matrix_shape
        return rows, columns // 2 + 1

    @property
    def _count(self) -> int:
        """Frequencies that are kept of a spectrum."""
        return max(int(math.prod(self._spectrum_shape) * self.config.param_reduction), 1)

    @property
    def K(self) -> int:
        """Groups of the frequencies of a spectrum."""
        return min(self.config.kernels, self._count)

    @property
    def _gain(self) -> int:
        """Stored coefficients are the spectrum divided by this, as released; a_w's 1/K is undone apart."""
        return max(min(self.in_channels, self.out_channels) // 2, 1)

    @property
    def _scale(self) -> int:
        """What a_w times a stored coefficient is multiplied by; of a reduced spectrum nothing, as released."""
        return self._gain * self.K * self.config.param_ratio if self.kept is None else 1

    def _sorted(self, order: Tensor) -> tuple[Tensor, Tensor | None]:
        """From the frequencies in an order: the group of each stored coefficient, and the frequencies that are kept."""
        R, count = self.config.param_ratio, self._count
        number, kept = numbered(count, self.K, order.device), order[:count]
        if self.config.param_reduction == 1:
            number, kept = torch.empty_like(number).scatter_(0, order, number), None
        copies = torch.arange(R, device=order.device).unsqueeze(1) * self.K
        return (copies + number).flatten().to(torch.uint8), kept

    def initialise_(self) -> None:
        """The spectrum of ``nn.ConvNd``'s own kernel, and its bias; R spectra are of kernels with such a sum."""
        super().initialise_()
        R = self.config.param_ratio
        group_of, kept = self._sorted(by_radius(*self._matrix_shape, self.weight.device))
        self.group_of.copy_(group_of)
        if self.kept is not None and kept is not None:
            self.kept.copy_(kept)
        kernels = torch.empty(R, *self.kernel_shape, device=self.weight.device, dtype=torch.float32)
        for kernel in kernels:
            nn.init.kaiming_uniform_(kernel, a=math.sqrt(5))
        with torch.no_grad():
            self.weight.copy_(self._stored(kernels / math.sqrt(R)))
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self.kernel_shape[1:]))
            nn.init.uniform_(self.bias, -bound, bound)

    def spectrum(self, kernel: Tensor) -> Tensor:
        """The weight that a kernel (O, C/G, *k) has: (rows, columns // 2 + 1, 2)."""
        matrix = kernel.double().movedim(1, -2).reshape(self._matrix_shape)
        return torch.view_as_real(torch.fft.rfft2(matrix)) / self._gain

    def _stored(self, kernels: Tensor) -> Tensor:
        """The weight of R kernels whose sum the layer starts with, (R, O, C/G, *k)."""
        spectra = torch.stack([self.spectrum(kernel).flatten(0, 1) for kernel in kernels])  # (R, frequencies, 2)
        if self.kept is not None:
            spectra = spectra[:, self.kept] * (self._gain * self.K * len(kernels) / self._scale)
        return spectra.reshape(self.weight.shape)

    def convolve(self, x: Tensor, coeffs: Modulation, padding: Size | str) -> Tensor:
        """Assemble the kernels, then convolve each sample with its own."""
        geometry = {"stride": self.stride, "dilation": self.dilation, "groups": self.groups}
        return sample_conv(x, self.kernels(coeffs), self.bias, padding=padding, **geometry)

    def features(self, x: Tensor) -> Tensor:
        """x, its frequency bands gated."""
        return x if self.bands is None else self.bands(x)

    def kernels(self, coeffs: Modulation) -> Tensor:
        """(B, O, C/G, *k): groups are mixed as frequencies, for one inverse transform per sample."""
        O, C_group, *k = self.kernel_shape
        G, points, coeffs = self.groups, [1] * self.rank, self.scaled(coeffs)
        made = self._transformed(coeffs.frequency).reshape(-1, G, O // G, *k[:-1], C_group, k[-1])
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

    def _transformed(self, frequency: Tensor | None) -> Tensor:
        """The kernels as matrices (B, rows, columns), from the weights of the groups (B, K); one for all without."""
        weight = self.weight if self.weight.dtype == torch.float64 else self.weight.float()
        if frequency is None:
            mixed = weight.unsqueeze(0) * self._scale
        else:
            group = self.group_of.long().expand(frequency.shape[0], -1)
            share = torch.gather(frequency * self._scale, 1, group).to(weight.dtype)
            mixed = unflatten(share, 1, (*plain_shape(weight)[:2], 1)) * weight
        mixed = self._summed(mixed)
        if is_onnx_trace():  # that exporter has no transform
            return inverse_by_products(mixed, *self._matrix_shape).to(self.weight.dtype)
        spectrum = torch.view_as_complex(mixed)
        if 0 in plain_shape(spectrum):  # the transform takes no empty batch
            return mixed[..., :1, 0].expand(-1, -1, self._matrix_shape[1]).to(self.weight.dtype)
        return inverse(spectrum, self._matrix_shape).to(self.weight.dtype)

    def _summed(self, mixed: Tensor) -> Tensor:
        """(B, R rows, half, 2) to (B, rows, half, 2), frequencies that are not kept as zeros."""
        if self.config.param_ratio > 1:
            mixed = unflatten(mixed, 1, (self.config.param_ratio, -1)).sum(1)
        if self.kept is None:
            return mixed
        whole = mixed.new_zeros(len(mixed), math.prod(self._spectrum_shape), 2)
        return unflatten(whole.index_copy(1, self.kept, mixed.squeeze(2)), 1, self._spectrum_shape)

    @property
    def num_experts(self) -> int:
        """1: there is one weight, of whose frequencies the kernels are made."""
        return 1

    @property
    def num_alike(self) -> int:
        """R: that many spectra are summed."""
        return self.config.param_ratio

    @property
    def size(self) -> str:
        """Groups of frequencies."""
        return f"{self.K * self.config.param_ratio} frequency groups"

    def extra_options(self) -> str:
        """Groups of frequencies."""
        return f"kernels={self.K * self.config.param_ratio}"

    def macs(self, positions: int) -> dict[str, int]:
        """Assembly is that of the kernels, and of x from its bands, whose size is taken for the outputs' by stride."""
        numel = math.prod(self.kernel_shape)
        bands = 0 if self.bands is None else self.bands.macs(positions * math.prod(self.stride))
        factors = 4 if self.config.local else 3
        return {
            "convolution": numel * positions,
            "routing": self._attention.macs(),
            "assembly": self.weight.numel() + fft_macs(numel) + factors * numel + bands,
        }

    @torch.no_grad()
    def load_static(self, weight: Tensor, bias: Tensor | None, noise: float, router: Router | None = None) -> None:
        """Become a static layer, exactly: all attentions are 1 and the gates leave x as it is.

        ``scale`` makes the transform keep lengths, so that a step of the spectrum is as long a step of the kernel.

        Args:
            weight: (O, C/G, *k).
            bias: (O,) or None.
            noise: Of R spectra: the standard deviation of what their kernels differ by, relative to that of the
                weights. One spectrum's kernels differ by their frequencies.
            router: Not used.

        Raises:
            ConfigError: not all frequencies are kept.
        """
        if self.kept is not None:
            raise ConfigError(
                f"a spectrum with param_reduction={self.config.param_reduction} can't hold a trained kernel; use "
                "param_reduction=1, or convert with upcycle=False"
            )
        if self.weight.is_meta:
            return
        if self.router is not None:
            self.router.neutral_()
        if self.bands is not None:
            self.bands.reset_parameters()
        R = self.config.param_ratio
        gain = R * self._gain / math.sqrt(weight.numel() / 2)  # a unitary transform has 1
        share = gain / self.compensate_(gain) / R
        kernels = weight.unsqueeze(0).expand(R, *weight.shape)
        spread = noise * weight.float().std(correction=0).to(weight.dtype)
        self.weight.copy_(self._stored((kernels + spread * zero_sum_noise(kernels)) * share))
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    @property
    def _attention(self) -> SpectralAttention:
        """The router, by its type."""
        router = self.router
        if not isinstance(router, SpectralAttention):
            raise TypeError("an FDConv layer has its own attention")
        return router


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
