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
theirs depend on the machine's sort; a batch of one can be trained on; the bands keep float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convary.errors import CheckpointError, ConfigError
from convary.methods.config import MethodConfig, check_positive
from convary.nn import DynamicConv, Router, Site, VectorBatchNorm
from convary.nn.routers import zero_
from convary.ops import sample_conv
from convary.ops.geometry import Size
from convary.ops.sample import CONV
from convary.ops.strategy import is_portable

_GRID = 64  # the released masks of the bands are made for 64 positions per axis, and resized
_MOST = 256  # numbers of groups are kept as bytes
_FEWEST = 16  # channels up to which the released layer stays static
_AXES = {"channel": "channel_fc", "filter": "filter_fc", "tap": "spatial_fc", "frequency": "kernel_fc"}
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


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
    """

    name: ClassVar[str] = "fdconv"
    title: ClassVar[str] = "FDConv"
    citation: ClassVar[str] = "Chen et al., FDConv, CVPR 2025"

    kernels: int = 64
    reduction: float = 16
    min_hidden: int = 16
    local: bool = True
    bands: tuple[int, ...] = (2, 4, 8)

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        check_positive("reduction", self.reduction)
        check_positive("min_hidden", self.min_hidden)
        if not 1 <= self.kernels <= _MOST:
            raise ConfigError(f"kernels must be from 1 to {_MOST}; got {self.kernels}")
        if not isinstance(self.bands, (tuple, list)) or not all(type(b) is int and b > 1 for b in self.bands):
            raise ConfigError(f"bands must be a tuple of ints above 1, such as (2, 4, 8); got {self.bands!r}")
        object.__setattr__(self, "bands", tuple(self.bands))  # JSON gives a list

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


@dataclass(frozen=True, kw_only=True)
class Modulation:
    """What an FDConv layer does to its kernel for a sample; what is None counts as 1.

    Attributes:
        frequency: (B, K) weight of each group of frequencies; their mean is 1/K at the start.
        filter: (B, 1, O).
        channel: (B, 1, C).
        tap: (B, 1, T).
        local: (B, O, C/G * T).
    """

    frequency: Tensor | None = None
    filter: Tensor | None = None
    channel: Tensor | None = None
    tap: Tensor | None = None
    local: Tensor | None = None

    def factors(self) -> dict[str, Tensor]:
        """Those that exist, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


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
        self.kernel_shape, self.sizes = kernel_shape, sizes
        hidden = max(int(in_channels / config.reduction), config.min_hidden)
        self.squeeze = nn.Linear(in_channels, hidden, bias=False, **factory)
        self.norm = VectorBatchNorm(hidden, **factory)
        self.scale, self.shift = (nn.Parameter(torch.full((1,), start, **factory)) for start in (1.0, 0.0))
        self.heads = nn.Linear(hidden, sum(sizes.values()), **factory)
        self.local_norm: nn.LayerNorm | None = None
        if config.local:
            reach = round(math.log2(in_channels) / 2 + 0.5) // 2 * 2 + 1  # efficient channel attention's, as released
            self.local_norm = nn.LayerNorm(in_channels, **factory)
            self.local = nn.Parameter(torch.empty(kernel_shape[0] * math.prod(kernel_shape[2:]), reach, **factory))
        nn.init.kaiming_normal_(self.squeeze.weight, mode="fan_out", nonlinearity="relu")
        self.neutral_()

    def coefficients(self, vector: Tensor) -> Modulation:
        """All attentions, from pooled features (B, C)."""
        hidden = self.scale * F.relu(self.norm(self.squeeze(vector))).square() + self.shift
        logits = self.heads(hidden).split_with_sizes(list(self.sizes.values()), 1)
        found = {axis: 2 * part.sigmoid() for axis, part in zip(self.sizes, logits, strict=True)}
        for axis, value in found.items():
            found[axis] = value / self.sizes[axis] if axis == "frequency" else value.unsqueeze(1)
        return Modulation(**found, local=None if self.local_norm is None else self._local(self.local_norm(vector)))

    def _local(self, vector: Tensor) -> Tensor:
        """(B, C) to (B, O, C/G * T): every channel and its neighbours tell the filters of the channel's group."""
        O, C_group, *k = self.kernel_shape
        G, T, reach = self.in_channels // C_group, math.prod(k), self.local.shape[1]
        padded = F.pad(vector, (reach // 2, reach // 2))
        windows = torch.stack([padded.narrow(1, i, self.in_channels) for i in range(reach)], 2)
        logits = windows.unflatten(1, (G, C_group)) @ self.local.unflatten(0, (G, O // G * T)).transpose(1, 2)
        return 2 * logits.unflatten(3, (O // G, T)).transpose(2, 3).reshape(-1, O, C_group * T).sigmoid()

    def neutral_(self) -> None:
        """Zero logits: every frequency's weight is 1/K, and the other attentions 1."""
        zero_(self.heads)
        if self.local_norm is not None:
            nn.init.zeros_(self.local)

    def macs(self) -> int:
        """Of the linear layers and of the convolution along the channels."""
        local = 0 if self.local_norm is None else self.local.numel() * self.kernel_shape[1]
        return super().macs() + local


class FrequencyBands(nn.Module):
    """Frequency band modulation: ``sum_i g_i(x) band_i(x) + rest(x)``, ``g = 2 sigmoid(conv(x))`` per position.

    Computed as x plus what the gates change of it, so that gates of 1 leave x as it is, bit for bit. A mask of a band
    is a box, as large as the released one: made for 64 positions per axis and resized to others, half an axis where the
    transform is real. It is not quite symmetric where 64 is no multiple of the size; the result's real part is taken.

    Args:
        in_channels: C.
        bands: Where the bands end; see ``FDConv``.
        rank: Spatial axes of x.
    """

    def __init__(self, in_channels: int, bands: Sequence[int], rank: int, device=None, dtype=None) -> None:
        super().__init__()
        self.ends = [_end(band) for band in bands]
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.zeros(len(bands), in_channels, *(3,) * rank, **factory))
        self.bias = nn.Parameter(torch.zeros(len(bands), **factory))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) to (B, C, *S), in x's dtype; transformed in float32 at least."""
        change = torch.tanh(CONV[x.ndim - 2](x, self.weight, self.bias, padding=1) / 2)  # 2 sigmoid(t) - 1, (B, n, *S)
        change = change.unbind(1)
        precise = x if x.dtype == torch.float64 else x.float()
        y = precise * (1 + change[0].unsqueeze(1))
        for low, this, after in zip(self.lows(precise), change, [*change[1:], None], strict=True):
            y = y + low * (-this if after is None else after - this).unsqueeze(1)
        return y.to(x.dtype)

    def kept(self, x: Tensor) -> list[list[Tensor]]:
        """Which frequencies of each axis are below each band's end."""
        size = x.shape[2:]
        return [[_kept(n, end, i == len(size) - 1, x.device) for i, n in enumerate(size)] for end in self.ends]

    def lows(self, x: Tensor) -> list[Tensor]:
        """What of x is below each band's end, (B, C, *S) each."""
        size, axes, kept = x.shape[2:], tuple(range(2, x.ndim)), self.kept(x)
        if torch.compiler.is_compiling() and is_portable():  # ONNX's transform takes no free sizes
            return [_lowpass(x, masks) for masks in kept]
        if 0 in x.shape:
            return [x for _ in kept]
        spectrum = torch.fft.rfftn(x, dim=axes)
        return [torch.fft.irfftn(spectrum * _box(masks), s=size, dim=axes) for masks in kept]

    def macs(self, positions: int) -> int:
        """Of the gates and the transforms, for one sample with that many positions."""
        return self.weight.numel() * positions + (1 + len(self.ends)) * self.weight.shape[1] * _fft_macs(positions)


def _end(band: int) -> int:
    """Of the frequencies 0, 1/64, 2/64, ... the first that is no longer below the end of a band."""
    frequencies = torch.arange(_GRID // 2 + 1, dtype=torch.float32, device="cpu") / _GRID
    # As released: in float32 the summand counts for 1/4 and 1/8 of the highest frequency, and is lost for 1/2.
    return int((frequencies < 0.5 / band + 1e-8).sum())


def _kept(n: int, end: int, last: bool, device: Any) -> Tensor:
    """Which of the frequencies of an axis of n positions stay below: (n,), of the last axis (n // 2 + 1,)."""
    count, grid = (n // 2 + 1, _GRID // 2 + 1) if last else (n, _GRID)
    place = torch.arange(count, device=device) * grid // count
    return torch.minimum(place, _GRID - place) < end


def _box(masks: Sequence[Tensor]) -> Tensor:
    """The mask over all axes, from one for each."""
    box = masks[0]
    for mask in masks[1:]:
        box = box.unsqueeze(-1) & mask
    return box


def _lowpass(x: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """The same by a matrix product per axis, whose sizes may be free: the masks are boxes."""
    real, imaginary = x, None
    for axis, mask in enumerate(masks, 2):
        n = x.shape[axis]
        weights = mask.to(x.dtype) / n
        if axis == x.ndim - 1:  # half a spectrum: all but the first, and the middle of an even size, stand for two
            number = torch.arange(n // 2 + 1, device=x.device)
            weights = weights * (2 - ((number == 0) | (2 * number == n)).to(x.dtype))
        place = torch.arange(n, device=x.device)
        turns = _rest(place.unsqueeze(1) * torch.arange(mask.shape[0], device=x.device), n)
        angle = turns.to(x.dtype) * (2 * math.pi / n)
        apart = _rest(place.unsqueeze(1) - place, n)  # the filter is the same everywhere: a circulant matrix
        cosine, sine = ((wave(angle) @ weights)[apart].mT for wave in (torch.cos, torch.sin))
        last = real.transpose(axis, -1), None if imaginary is None else imaginary.transpose(axis, -1)
        real, imaginary = last[0] @ cosine, last[0] @ sine
        if last[1] is not None:
            real, imaginary = real - last[1] @ sine, imaginary + last[1] @ cosine
        real, imaginary = real.transpose(axis, -1), imaginary.transpose(axis, -1)
    return real


def _rest(numbers: Tensor, n: int) -> Tensor:
    """``numbers % n``, which ONNX takes for no free n."""
    return numbers - numbers // n * n


def _fft_macs(n: int) -> int:
    """Multiply-adds of a real transform of n numbers."""
    return math.ceil(1.25 * n * math.log2(max(n, 2)))


class _FDConvNd(DynamicConv):
    config_type = FDConv
    config: FDConv
    mixed_bias = False
    absorbs = False  # every frequency is part of all filters
    group_of: Tensor

    def make_weight(self, **factory) -> None:
        """The spectrum, (rows, columns // 2 + 1, 2) real and imaginary parts, and the group of each frequency."""
        rows, half = self._matrix_shape[0], self._matrix_shape[1] // 2 + 1
        self.weight = nn.Parameter(torch.empty(rows, half, 2, **factory))
        self.register_buffer("group_of", self._groups(factory["device"]))
        point = math.prod(self.kernel_size) == 1
        bands = () if point else self.config.bands
        self.bands = FrequencyBands(self.in_channels, bands, self.rank, **factory) if bands else None

    def make_router(self, **factory) -> Router:
        depthwise = self.groups == self.in_channels == self.out_channels
        T = math.prod(self.kernel_size)
        sizes = {
            "channel": self.in_channels,
            "filter": 0 if depthwise else self.out_channels,
            "tap": 0 if T == 1 else T,
            "frequency": 0 if self.K == 1 else self.K,
        }
        sizes = {axis: size for axis, size in sizes.items() if size}
        return SpectralAttention(self.in_channels, self.kernel_shape, sizes, self.config, **factory)

    @property
    def _matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of the kernel as a matrix."""
        O, C_group, *k = self.kernel_shape
        return O * math.prod(k[:-1]), C_group * k[-1]

    @property
    def K(self) -> int:
        """Groups of frequencies."""
        rows, columns = self._matrix_shape
        return min(self.config.kernels, rows * (columns // 2 + 1))

    @property
    def _gain(self) -> int:
        """What a weight is smaller by than the frequency that it stands for, as released; times K for a_w."""
        return max(min(self.in_channels, self.out_channels) // 2, 1)

    def _groups(self, device: Any) -> Tensor:
        """(rows * half,) number of the group of each frequency: as many each as can be, sorted by radius."""
        rows, columns = self._matrix_shape
        down, across = torch.arange(rows, device=device), torch.arange(columns // 2 + 1, device=device)
        down = torch.minimum(down, rows - down)
        radius = (down * columns).square().unsqueeze(1) + (across * rows).square()  # integers: no rounding splits ties
        order = radius.flatten().argsort(stable=True)
        number = torch.arange(len(order), device=device) * self.K // len(order)
        return torch.empty_like(number).scatter_(0, order, number).to(torch.uint8)

    def reset_parameters(self) -> None:
        """The spectrum of ``nn.ConvNd``'s own kernel, and its bias."""
        kernel = torch.empty(self.kernel_shape, device=self.weight.device, dtype=torch.float32)
        nn.init.kaiming_uniform_(kernel, a=math.sqrt(5))
        with torch.no_grad():
            self.weight.copy_(self.spectrum(kernel))
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self.kernel_shape[1:]))
            nn.init.uniform_(self.bias, -bound, bound)

    def spectrum(self, kernel: Tensor) -> Tensor:
        """The weight that a kernel (O, C/G, *k) has: (rows, columns // 2 + 1, 2)."""
        matrix = kernel.double().movedim(1, -2).reshape(self._matrix_shape)
        return torch.view_as_real(torch.fft.rfft2(matrix)) / self._gain

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
        G, T = self.groups, math.prod(k)
        weight = self.weight if self.weight.dtype == torch.float64 else self.weight.float()
        weight = weight.flatten(0, 1) * self._gain
        if coeffs.frequency is None:
            mixed = weight.unsqueeze(0)
        else:
            own = coeffs.frequency.shape[0], -1
            share = torch.gather(coeffs.frequency * self.K, 1, self.group_of.long().expand(*own))
            mixed = share.unsqueeze(2) * weight
        mixed = torch.view_as_complex(mixed.unflatten(1, self.weight.shape[:2]))
        if 0 in mixed.shape:  # the transform takes no empty batch
            kernels = mixed.real[..., :1].expand(-1, -1, self._matrix_shape[1])
        else:
            kernels = torch.fft.irfft2(mixed, s=self._matrix_shape)
        kernels = kernels.to(self.weight.dtype)
        kernels = kernels.reshape(-1, O, *k[:-1], C_group, k[-1]).movedim(-2, 2).flatten(3)  # (B, O, C/G, T)
        if coeffs.local is not None:
            kernels = kernels * coeffs.local.unflatten(2, (C_group, T))
        if coeffs.tap is not None:
            kernels = kernels * coeffs.tap.unsqueeze(2)
        if coeffs.channel is not None:
            channel = coeffs.channel.reshape(-1, G, 1, C_group).expand(-1, -1, O // G, -1)
            kernels = kernels * channel.reshape(-1, O, C_group, 1)
        if coeffs.filter is not None:
            kernels = kernels * coeffs.filter.reshape(-1, O, 1, 1)
        return kernels.unflatten(3, k)

    @property
    def num_experts(self) -> int:
        """1: there is one weight, of whose frequencies the kernels are made."""
        return 1

    @property
    def size(self) -> str:
        """Groups of frequencies."""
        return f"{self.K} kernels of one"

    def extra_options(self) -> str:
        """Groups of frequencies."""
        return f"kernels={self.K}"

    def macs(self, positions: int) -> dict[str, int]:
        """The transforms of x count as convolution, those of the weight as assembly."""
        numel = math.prod(self.kernel_shape)
        bands = 0 if self.bands is None else self.bands.macs(positions * math.prod(self.stride))
        factors = 4 if self.config.local else 3
        return {
            "convolution": numel * positions + bands,
            "routing": 0 if self.router is None else self.router.macs(),
            "assembly": self.weight.numel() + _fft_macs(numel) + factors * numel,
        }

    @torch.no_grad()
    def load_static(self, weight: Tensor, bias: Tensor | None, noise: float, router: Router | None = None) -> None:
        """Become a static layer, exactly: all attentions are 1 and the gates leave x as it is.

        Args:
            weight: (O, C/G, *k).
            bias: (O,) or None.
            noise: Not used: the kernels differ by their frequencies.
            router: Not used.
        """
        if self.weight.is_meta:
            return
        if self.router is not None:
            self.router.neutral_()
        if self.bands is not None:
            nn.init.zeros_(self.bands.weight)
            nn.init.zeros_(self.bands.bias)
        self.weight.copy_(self.spectrum(weight))
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    def from_released(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Linwei-Chen/FDConv's layout, with the weight as frequencies or (``convert_param=False``) as a kernel.

        Which frequencies of equal radius belong to which group it doesn't say; they are sorted as in a new layer.
        """
        if "dft_weight" in tensors:
            weight = tensors["dft_weight"].squeeze(0)
        else:
            weight = self.spectrum(tensors["weight"])
        own = self._attention
        state = {"weight": weight, "group_of": self.group_of}
        state |= {ours: tensors[theirs] for ours, theirs in self._released_names().items()}
        state["router.squeeze.weight"] = tensors["KSM_Global.fc.weight"].flatten(1)
        heads = [f"KSM_Global.{_AXES[axis]}" for axis in own.sizes]
        state["router.heads.weight"] = torch.cat([tensors[f"{head}.weight"].flatten(1) for head in heads])
        state["router.heads.bias"] = torch.cat([tensors[f"{head}.bias"] for head in heads])
        if own.local_norm is not None:
            state["router.local"] = tensors["KSM_Local.conv.weight"].flatten(1)
        for leaf in () if self.bands is None else ("weight", "bias"):
            gates = range(len(self.config.bands))
            state[f"bands.{leaf}"] = torch.cat([tensors[f"FBM.freq_weight_conv_list.{i}.{leaf}"] for i in gates])
        return state

    def to_released(self) -> dict[str, Tensor]:
        """Linwei-Chen/FDConv's layout, the weight as frequencies.

        Raises:
            CheckpointError: theirs has no such layer.
        """
        if self.groups > 1 or self.kernel_size not in ((1, 1), (3, 3)):
            raise CheckpointError(
                "the released FDConv layout holds 1x1 and 3x3 convolutions without groups; got "
                f"kernel_size={self.kernel_size}, groups={self.groups}"
            )
        own, router = self.state_dict(), self._attention
        state = {"dft_weight": own["weight"].unsqueeze(0)}
        state |= {theirs: own[ours] for ours, theirs in self._released_names().items()}
        state["KSM_Global.fc.weight"] = own["router.squeeze.weight"][..., None, None]
        sizes = list(router.sizes.values())
        rows = zip(router.sizes, own["router.heads.weight"].split(sizes), own["router.heads.bias"].split(sizes), strict=True)
        for axis, weight, bias in rows:
            head = f"KSM_Global.{_AXES[axis]}"
            state |= {f"{head}.weight": weight[..., None, None], f"{head}.bias": bias}
        if router.local_norm is not None:
            state["KSM_Local.conv.weight"] = own["router.local"].unsqueeze(1)
        for leaf in () if self.bands is None else ("weight", "bias"):
            for i, gate in enumerate(own[f"bands.{leaf}"].split(1)):
                state[f"FBM.freq_weight_conv_list.{i}.{leaf}"] = gate
        return state

    def _released_names(self) -> dict[str, str]:
        """Names of the tensors that are alike: ours, theirs."""
        names = {f"router.norm.{leaf}": f"KSM_Global.bn.{leaf}" for leaf in _NORM}
        names |= {"router.scale": "KSM_Global.relu.scale", "router.shift": "KSM_Global.relu.bias"}
        if self._attention.local_norm is not None:
            names |= {f"router.local_norm.{leaf}": f"KSM_Local.norm.{leaf}" for leaf in ("weight", "bias")}
        return names if self.bias is None else names | {"bias": "bias"}

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
