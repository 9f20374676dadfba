# SPDX-License-Identifier: Apache-2.0
"""A detector that measures its own strides when it is built, as Ultralytics YOLO does: one image of zeros, in training.

Attention modules with a BatchNorm on pooled features fail there: a batch of one has no variance. convary's routers
don't, whether a network is converted before its strides are measured or after.

    python examples/detector.py --method odconv
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import convary as cv


def block(C: int, O: int, stride: int) -> nn.Sequential:
    """Convolution, normalisation, SiLU."""
    return nn.Sequential(nn.Conv2d(C, O, 3, stride, 1, bias=False), nn.BatchNorm2d(O), nn.SiLU())


class Detector(nn.Module):
    """A backbone with three levels and one prediction layer for each.

    Args:
        num_outputs: Predictions per position.
        convert: Applied to the backbone before the strides are measured; None for a static detector.
    """

    def __init__(self, num_outputs: int = 10, convert: cv.MethodConfig | None = None) -> None:
        super().__init__()
        self.backbone = nn.ModuleList(
            [nn.Sequential(block(3, 16, 2), block(16, 32, 2)), block(32, 64, 2), block(64, 64, 2)]
        )
        if convert is not None:
            self.backbone = cv.convert(self.backbone, convert, cv.where.all())
        self.heads = nn.ModuleList([nn.Conv2d(C, num_outputs, 1) for C in (32, 64, 64)])
        self.stride = self.measure_strides()

    def measure_strides(self, size: int = 256) -> Tensor:
        """(levels,) input pixels per position of every level."""
        return torch.tensor([size / y.shape[-2] for y in self(torch.zeros(1, 3, size, size))])

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to one (B, outputs, H/stride, W/stride) per level."""
        levels = []
        for stage, head in zip(self.backbone, self.heads, strict=True):
            x = stage(x)
            levels.append(head(x))
        return levels


def main() -> None:
    """Build the detector both ways and print its strides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="odconv", choices=[config.name for config in cv.METHODS])
    config = cv.method(parser.parse_args().method)

    before = Detector(convert=config)
    after = cv.convert(Detector(), config, cv.where.all())
    for name, model in (("converted, then measured", before), ("measured, then converted", after)):
        model.train()
        strides = model.measure_strides()  # a batch of one, in training mode
        assert torch.equal(strides, model.stride)
        sum(level.square().mean() for level in model(torch.randn(1, 3, 64, 64))).backward()
        print(f"{name}: strides {[int(s) for s in strides]}")


if __name__ == "__main__":
    main()
