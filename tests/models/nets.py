# SPDX-License-Identifier: Apache-2.0
"""Small networks of the published kinds."""

from torch import nn

from convary.models.hdfnet import HDFNet


def tiny_hdfnet(**options):
    """HDFNet's wiring on encoders of two channels' worth of work."""
    channels = {1: 64, 2: 64, 4: 64, 8: 64, 16: 64}

    def encoder(first):
        sizes = [first, *channels.values()]
        return {
            s: nn.Sequential(nn.Conv2d(a, b, 3, 1 if s == 1 else 2, 1, groups=1 if a < b else b), nn.ReLU())
            for s, a, b in zip(channels, sizes, sizes[1:], strict=False)
        }

    return HDFNet(encoder(3), encoder(1), channels, **options)
