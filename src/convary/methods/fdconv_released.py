# SPDX-License-Identifier: Apache-2.0
"""Linwei-Chen/FDConv's layout of a layer, read and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from convary.errors import CheckpointError
from convary.nn.frequencies import by_released_radius

_AXES = {"channel": "channel_fc", "filter": "filter_fc", "tap": "spatial_fc", "frequency": "kernel_fc"}
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class ReleasedLayout:
    """What an FDConv layer knows of its authors' layout; ``self`` is the layer."""

    def from_released(self: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Linwei-Chen/FDConv's layout, with the weight as frequencies or (``convert_param=False``) as a kernel.

        Frequencies of equal radius are in the groups that ``indices`` says, the released layer's buffer, which its
        state dict leaves out; without it as the released code sorts them on this machine.
        """
        own, R = self._attention, self.config.param_ratio
        if "dft_weight" in tensors:
            weight = tensors["dft_weight"]
        elif self.kept is None:
            weight = self.spectrum(tensors["weight"]).expand(R, -1, -1, -1)
        else:
            raise CheckpointError("the released FDConv keeps all frequencies where its weight is a kernel")
        fits = weight.numel() == self.weight.numel()  # otherwise the error names both shapes
        group_of, kept = self._sorted(self._released_order(tensors).to(self.group_of.device))
        state = {"weight": weight.reshape(self.weight.shape) if fits else weight.squeeze(0), "group_of": group_of}
        state |= {} if kept is None else {"kept": kept}
        state |= {ours: tensors[theirs] for ours, theirs in self._released_names().items()}
        state["router.squeeze.weight"] = tensors["KSM_Global.fc.weight"].flatten(1)
        heads = [f"KSM_Global.{_AXES[axis]}" for axis in own.sizes]
        state["router.heads.weight"] = torch.cat([tensors[f"{head}.weight"].flatten(1) for head in heads])
        state["router.heads.bias"] = torch.cat([tensors[f"{head}.bias"] for head in heads])
        if own.local_norm is not None:
            state["router.local"] = tensors["KSM_Local.conv.weight"].flatten(1)
        for leaf in () if self.bands is None else ("weight", "bias"):
            gates = range(len(self.config.bands) + self.config.lowest_band)
            state[f"bands.{leaf}"] = torch.cat([tensors[f"FBM.freq_weight_conv_list.{i}.{leaf}"] for i in gates])
        return state

    def to_released(self: Any) -> dict[str, Tensor]:
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
        spectra = self.whole(own["weight"])
        shape = self._spectrum_shape if self.kept is None else (self._count,)
        state = {"dft_weight": spectra.reshape(self.config.param_ratio, *shape, 2), **self._released_indices()}
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

    def _released_order(self: Any, tensors: Mapping[str, Tensor]) -> Tensor:
        """Numbers of the frequencies in the order of the released layer."""
        if "indices" not in tensors:
            return by_released_radius(*self._matrix_shape)
        row, column = tensors["indices"][0].long().flatten(1)
        order = row * self._spectrum_shape[1] + column
        if len(order) != self._count:
            raise CheckpointError(f"indices holds {len(order)} frequencies; this layer has {self._count}")
        return order

    def _released_indices(self: Any) -> dict[str, Tensor]:
        """The released layer's buffer, (R, 2, K, frequencies / K), where it differs from what they make here."""
        count, reduced = self._count, self.kept is not None
        if count % self.K:
            raise CheckpointError(
                "the released FDConv wants kernels to divide the number of frequencies; "
                f"got {self.K} kernels, {count} frequencies"
            )
        theirs = self._sorted(by_released_radius(*self._matrix_shape).to(self.group_of.device))
        if torch.equal((self.group_of, self.kept)[reduced], theirs[reduced]):
            return {}
        order = self.group_of[:count].argsort(stable=True) if self.kept is None else self.kept
        half = self._spectrum_shape[1]
        places = torch.stack([order // half, order % half]).reshape(1, 2, self.K, -1)
        return {"indices": places.repeat(self.config.param_ratio, 1, 1, 1)}

    def _released_names(self: Any) -> dict[str, str]:
        """Names of the tensors that are alike: ours, theirs."""
        names = {f"router.norm.{leaf}": f"KSM_Global.bn.{leaf}" for leaf in _NORM}
        names |= {"router.scale": "KSM_Global.relu.scale", "router.shift": "KSM_Global.relu.bias"}
        if self._attention.local_norm is not None:
            names |= {f"router.local_norm.{leaf}": f"KSM_Local.norm.{leaf}" for leaf in ("weight", "bias")}
        return names if self.bias is None else names | {"bias": "bias"}
