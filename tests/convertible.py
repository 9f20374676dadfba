# SPDX-License-Identifier: Apache-2.0
"""A small network with layers of every sort, and how near two outputs are."""

import torch
from torch import nn


class Net(nn.Module):
    """A convolution of every rank and sort, and a shared one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.dw = nn.Conv2d(8, 8, 5, padding="same", groups=8, padding_mode="reflect")
        self.pw = nn.Conv2d(8, 12, 1)
        self.again = self.pw
        self.up = nn.ConvTranspose2d(12, 4, 2)
        self.line = nn.Conv1d(4, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pw(self.dw(self.stem(x)).relu()) + self.again(self.dw(self.stem(x)))
        return self.fc(self.line(self.up(x).flatten(2)).mean(-1))


def jiggle(model: nn.Module) -> nn.Module:
    """Give norms and biases values as if trained."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert (a - b).abs().max() <= 1e-4 * b.abs().max()
