# SPDX-License-Identifier: Apache-2.0
"""convary: convolutions that vary. Every dynamic convolution behind one small algebra, on the model you have.

>>> import torch, convary as cv
>>> layer = cv.ODConv2d(16, 32, 3, padding=1, experts=4)
>>> layer(torch.randn(2, 16, 8, 8)).shape
torch.Size([2, 32, 8, 8])
"""

from typing import TYPE_CHECKING

from convary import integrations as integrations  # says which programs it waits for
from convary.lazy import public_names

if TYPE_CHECKING:
    from convary import bench as bench
    from convary import data as data
    from convary import errors as errors
    from convary import methods as methods
    from convary import models as models
    from convary import nn as nn
    from convary import papers as papers
    from convary import report as report
    from convary import systems as systems
    from convary import train as train
    from convary import weights as weights
    from convary._names import *  # noqa: F403
    from convary._names import __all__ as __all__
else:
    __getattr__, __dir__ = public_names(__name__)

__version__ = "0.1.0"
