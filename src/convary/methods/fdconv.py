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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convary.errors import CheckpointError, ConfigError
from convary.methods.config import MethodConfig, check_positive
from convary.nn import DynamicConv, Router, Site, VectorBatchNorm
from convary.nn.bands import FrequencyBands, fft_macs, inverse, inverse_by_products
from convary.nn.routers import zero_
from convary.ops import sample_conv
from convary.ops.geometry import Size
from convary.ops.shapes import plain_shape, unflatten
from convary.ops.strategy import is_onnx_trace

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
        G, T, reach = self.in_channels // C_group, math.prod(k), plain_shape(self.local)[1]
        padded = F.pad(vector, (reach // 2, reach // 2))
        windows = torch.stack([padded[:, i : i + self.in_channels] for i in range(reach)], 2)
        logits = unflatten(windows, 1, (G, C_group)) @ unflatten(self.local, 0, (G, O // G * T)).transpose(1, 2)
        return 2 * unflatten(logits, 3, (O // G, T)).transpose(2, 3).reshape(-1, O, C_group * T).sigmoid()

    def neutral_(self) -> None:
        """Zero logits: every frequency's weight is 1/K, and the other attentions 1."""
        zero_(self.heads)
        if self.local_norm is not None:
            nn.init.zeros_(self.local)

    def macs(self) -> int:
        """Of the linear layers and of the convolution along the channels."""
        local = 0 if self.local_norm is None else self.local.numel() * self.kernel_shape[1]
        return super().macs() + local


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
        G, points = self.groups, [1] * self.rank
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
            mixed = weight.unsqueeze(0) * self._gain
        else:
            group = self.group_of.long().expand(frequency.shape[0], -1)
            share = torch.gather(frequency * (self.K * self._gain), 1, group).to(weight.dtype)
            mixed = unflatten(share, 1, (*plain_shape(weight)[:2], 1)) * weight
        if is_onnx_trace():  # that exporter has no transform
            return inverse_by_products(mixed, *self._matrix_shape).to(self.weight.dtype)
        spectrum = torch.view_as_complex(mixed)
        if 0 in plain_shape(spectrum):  # the transform takes no empty batch
            return mixed[..., :1, 0].expand(-1, -1, self._matrix_shape[1]).to(self.weight.dtype)
        return inverse(spectrum, self._matrix_shape).to(self.weight.dtype)

    @property
    def num_experts(self) -> int:
        """1: there is one weight, of whose frequencies the kernels are made."""
        return 1

    @property
    def size(self) -> str:
        """Groups of frequencies."""
        return f"{self.K} frequency groups"

    def extra_options(self) -> str:
        """Groups of frequencies."""
        return f"kernels={self.K}"

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
        rows = zip(
            router.sizes, own["router.heads.weight"].split(sizes), own["router.heads.bias"].split(sizes), strict=True
        )
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
