# SPDX-License-Identifier: Apache-2.0
"""DCD's layers, convolutional or linear: a static kernel and a residual of low rank; their authors' layout."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convary.methods.dcd_fusion import Fusion, FusionRouter
from convary.nn import BatchNorm, DynamicLayer, Router
from convary.nn.layout import BATCH_NORM, ONE_KERNEL, Row, renamed, trailing
from convary.nn.norm import normalised, scale_and_shift
from convary.ops.shapes import unflatten

_BLOCK = r"features\.(\d+)\.conv"
# Their blocks of MobileNetV2 are flat, their classifiers a sequence of one, or of two with dropout.
_NETWORKS = {
    "ResNet": ((r"fc\.(.*)", r"classifier.0.\1"), (r"fc\.(.*)", r"classifier.1.\1")),
    "MobileNetV2": (
        (r"features\.1\.conv\.1\.(.*)", r"features.1.conv.3.\1"),
        (r"features\.1\.conv\.2\.(.*)", r"features.1.conv.4.\1"),
        (rf"{_BLOCK}\.0\.(\d)\.(.*)", r"features.\1.conv.\2.\3"),
        (rf"{_BLOCK}\.1\.0\.(.*)", r"features.\1.conv.3.\2"),
        (rf"{_BLOCK}\.1\.1\.(.*)", r"features.\1.conv.4.\2"),
        (rf"{_BLOCK}\.2\.(.*)", r"features.\1.conv.6.\2"),
        (rf"{_BLOCK}\.3\.(.*)", r"features.\1.conv.7.\2"),
        (r"features\.18\.(.*)", r"conv.\1"),
        (r"classifier\.1\.(.*)", r"classifier.0.\1"),
    ),
}


class Decomposed(DynamicLayer):
    """What the convolutions and the classifier have in common; ``weight`` is W0, as a bank of one."""

    takes = Fusion
    released_network = _NETWORKS
    router: FusionRouter
    q: nn.Parameter
    p: nn.Parameter

    def make_residual(self, C: int, O: int, latent: int, **factory: Any) -> None:
        """Q (latent, C), P (O, latent) and the two normalisations, uninitialised."""
        self.q = nn.Parameter(torch.empty(latent, C, **factory))
        self.p = nn.Parameter(torch.empty(O, latent, **factory))
        self.norm1, self.norm2 = BatchNorm(latent, **factory), BatchNorm(latent, **factory)

    def initialise_(self) -> None:
        """Normal with the fan-out of each map."""
        super().initialise_()
        O, taps = self.weight.shape[1], math.prod(self.weight.shape[3:])
        for weight, fan_out in ((self.weight, O * taps), (self.q, len(self.q)), (self.p, len(self.p))):
            nn.init.normal_(weight, 0, math.sqrt(2 / fan_out))

    def residual(self, q: Tensor, fusion: Fusion) -> Tensor:
        """``P (BN(Phi q) + q)`` with ``q = BN(Q x)``: (B, latent, *S) to (B, O, *S)."""
        flat = normalised(self.norm1, q).flatten(2)
        fused = normalised(self.norm2, fusion.latent @ flat) + flat
        return unflatten(self.p @ fused, 2, q.shape[2:])

    @property
    def label(self) -> str:
        """The latent width."""
        return f"latent {len(self.q)}"

    def extra_options(self) -> str:
        """The latent width."""
        return f"latent={len(self.q)}"

    def macs(self, positions: int) -> dict[str, int]:
        """Of W0, and of Q, Phi and P; nothing is assembled."""
        per_position = self.weight.numel() + self.q.numel() + len(self.q) ** 2 + self.p.numel()
        return {"convolution": per_position * positions, "routing": self.router.macs(), "assembly": 0}

    def kernels(self, coeffs: Fusion) -> Tensor:
        """In eval mode, where the normalisations are linear: (B, O, C, *k), dense even where W0 has groups."""
        weight = self._dense()  # (O, C, *k)
        weight = coeffs.filter[:, 0].reshape(-1, weight.shape[0], *[1] * (weight.ndim - 1)) * weight
        residual = self._fused(coeffs) @ (scale_and_shift(self.norm1)[0][:, None] * self.q)  # (B, O, C)
        T = math.prod(weight.shape[3:])
        centre = F.one_hot(torch.tensor(self._centre(), device=weight.device), T)
        taps = residual.unsqueeze(3) * centre.to(residual.dtype)
        return weight + taps.reshape(*residual.shape, *weight.shape[3:])

    def biases(self, coeffs: Fusion) -> Tensor:
        """In eval mode: (B, O)."""
        shift = self._fused(coeffs) @ scale_and_shift(self.norm1)[1] + self.p @ scale_and_shift(self.norm2)[1]
        return shift if self.bias is None else shift + coeffs.filter[:, 0] * self.bias

    def _fused(self, coeffs: Fusion) -> Tensor:
        """``P (s Phi + 1)`` with the second normalisation's scale s: (B, O, latent)."""
        unit = torch.eye(len(self.q), device=self.q.device, dtype=self.q.dtype)
        return self.p @ (scale_and_shift(self.norm2)[0][:, None] * coeffs.latent + unit)

    def _dense(self) -> Tensor:
        """W0 without groups, (O, C, *k)."""
        return self.weight[0].unsqueeze(2)

    def _centre(self) -> int:
        """Number of the tap that Q reads."""
        return 0

    def absorb_(self, scale: Tensor, shift: Tensor) -> Tensor | None:
        """W0, P and the bias are scaled; the shift, which L would scale, is left."""
        self.weight.mul_(scale.reshape(-1, *[1] * (self.weight.ndim - 2)))
        self.p.mul_(scale[:, None])
        if self.bias is not None:
            self.bias.mul_(scale)
        return shift

    def take_(self, weight: Tensor, noise: float, router: Router | None) -> float:
        """Become a static layer, exactly: L is 1 whatever the input, and P is 0. There are no experts to differ."""
        nn.init.zeros_(self.p)
        self.weight.copy_(weight)
        return 1.0

    def released(self, present: Container[str] | None) -> Iterator[Row]:
        """liyunsheng13/dcd's layouts: of its ResNets, its MobileNetV2 and its classifier.

        Raises:
            CheckpointError: to write, a convolution with a bias.
        """
        kind = self.released_kind() if present is None else _kind(present)
        static = "cls" if kind == "cls_" else "conv"
        yield Row("weight", f"{static}.weight", ONE_KERNEL)
        if self.bias is not None:
            yield Row("bias", f"{static}.bias")
        points = trailing(0 if kind == "cls_" else self.weight.ndim - 3)
        yield from (Row(name, f"{kind}{name}.weight", points) for name in ("q", "p"))
        yield from renamed({"norm1": "bn1", "norm2": "bn2"}, BATCH_NORM)
        yield from renamed({"router.squeeze": "fc.0", "router.gate": "fc.1.fc.0"}, ("weight",))
        phi, scale = self.router.sizes
        yield Row("router.heads.weight", {"fc_phi.weight": phi, "fc_scale.weight": scale})

    def released_kind(self) -> str:
        """What the authors write in front of q and p."""
        return "cls_"


def _kind(present: Container[str]) -> str:
    return next((kind for kind in ("conv_", "cls_") if f"{kind}q.weight" in present), "")
