# SPDX-License-Identifier: Apache-2.0
"""Linwei-Chen/FDConv's layout of a layer, read and written."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from convary.errors import CheckpointError
from convary.methods.fdconv_attention import SpectralAttention
from convary.methods.fdconv_spectrum import SpectralConv, by_released_radius
from convary.nn.layout import BATCH_NORM, How, Row, fitted, renamed, trailing

_AXES = {"channel": "channel_fc", "filter": "filter_fc", "tap": "spatial_fc", "frequency": "kernel_fc"}
_ONE_CHANNEL = How(lambda theirs, shape: theirs.flatten(1), lambda ours: ours.unsqueeze(1))


class ReleasedSpectralConv(SpectralConv):
    """What an FDConv layer knows of its authors' layout.

    Frequencies of equal radius are in the groups that ``indices`` says, the released layer's buffer, which its state
    dict leaves out; without it as the released code sorts them on this machine.
    """

    router: SpectralAttention
    bands: Any

    def released(self, present: Container[str] | None) -> Iterator[Row]:
        """All but the groups of the frequencies.

        Raises:
            CheckpointError: theirs has no such layer, or holds the weight as a kernel that this layer can't hold.
        """
        if present is None and (self.groups > 1 or self.kernel_size not in ((1, 1), (3, 3))):
            raise CheckpointError(
                "the released FDConv layout holds 1x1 and 3x3 convolutions without groups; got "
                f"kernel_size={self.kernel_size}, groups={self.groups}"
            )
        yield self._released_weight(present)
        if self.bias is not None:
            yield Row("bias", "bias")
        heads = {f"KSM_Global.{_AXES[axis]}": size for axis, size in self.router.sizes.items()}
        yield Row("router.squeeze.weight", "KSM_Global.fc.weight", trailing(2))
        yield from renamed({"router.norm": "KSM_Global.bn"}, BATCH_NORM)
        yield Row("router.scale", "KSM_Global.relu.scale")
        yield Row("router.shift", "KSM_Global.relu.bias")
        yield Row("router.heads.weight", {f"{head}.weight": size for head, size in heads.items()}, trailing(2))
        yield Row("router.heads.bias", {f"{head}.bias": size for head, size in heads.items()})
        if self.router.local_norm is not None:
            yield from renamed({"router.local_norm": "KSM_Local.norm"}, ("weight", "bias"))
            yield Row("router.local", "KSM_Local.conv.weight", _ONE_CHANNEL)
        for leaf in () if self.bands is None else ("weight", "bias"):
            gates = range(len(self.config.bands) + self.config.lowest_band)
            yield Row(f"bands.{leaf}", {f"FBM.freq_weight_conv_list.{i}.{leaf}": 1 for i in gates})

    def _released_weight(self, present: Container[str] | None) -> Row:
        """The weight: as frequencies or, to read, as a kernel (``convert_param=False``)."""
        R, shape = self.config.param_ratio, self.spectrum_shape if self.kept is None else (self.count,)
        if present is None or "dft_weight" in present:
            return Row("weight", "dft_weight", How(fitted, lambda ours: ours.reshape(R, *shape, 2)))
        if self.kept is not None:
            raise CheckpointError("the released FDConv keeps all frequencies where its weight is a kernel")

        def transformed(kernel: Tensor, shape: Any) -> Tensor:
            spectra = [self.spectrum(kernel)] * R if kernel.shape == self.kernel_shape else [kernel]
            return torch.cat(spectra)

        return Row("weight", "weight", How(transformed, lambda ours: ours))

    def from_released(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As ``released`` says, and the groups of the frequencies."""
        state = super().from_released(tensors)
        state["group_of"], kept = self.grouped(self._released_order(tensors).to(self.group_of.device))
        return state if kept is None else state | {"kept": kept}

    def to_released(self) -> dict[str, Tensor]:
        """As ``released`` says, and the groups of the frequencies where theirs would differ.

        Raises:
            CheckpointError: theirs has no such layer.
        """
        return super().to_released() | self._released_indices()

    def _released_order(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Numbers of the frequencies in the order of the released layer."""
        if "indices" not in tensors:
            return by_released_radius(*self.matrix_shape)
        row, column = tensors["indices"][0].long().flatten(1)
        order = row * self.spectrum_shape[1] + column
        if len(order) != self.count:
            raise CheckpointError(f"indices holds {len(order)} frequencies; this layer has {self.count}")
        return order

    def _released_indices(self) -> dict[str, Tensor]:
        """The released layer's buffer, (R, 2, K, frequencies / K), where it differs from what they make here."""
        if self.count % self.K:
            raise CheckpointError(
                "the released FDConv wants kernels to divide the number of frequencies; "
                f"got {self.K} kernels, {self.count} frequencies"
            )
        group_of, kept = self.grouped(by_released_radius(*self.matrix_shape).to(self.group_of.device))
        same = torch.equal(self.group_of, group_of) if kept is None else torch.equal(self.kept, kept)  # type: ignore[arg-type]
        if same:
            return {}
        order = self.group_of[: self.count].argsort(stable=True) if self.kept is None else self.kept
        half = self.spectrum_shape[1]
        places = torch.stack([order // half, order % half]).reshape(1, 2, self.K, -1)
        return {"indices": places.repeat(self.config.param_ratio, 1, 1, 1)}
