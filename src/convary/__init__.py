# SPDX-License-Identifier: Apache-2.0
"""convary: convolutions that vary. Every dynamic convolution behind one small algebra, on the model you have.

>>> import torch, convary as cv
>>> layer = cv.ODConv2d(16, 32, 3, padding=1, experts=4)
>>> layer(torch.randn(2, 16, 8, 8)).shape
torch.Size([2, 32, 8, 8])
"""

from typing import TYPE_CHECKING

import convary.integrations as integrations  # noqa: F401  (says which programs it waits for)
from convary.lazy import public_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from convary._names import *  # noqa: F403
    from convary._names import __all__ as __all__
else:
    __getattr__, __dir__ = public_names(__name__)
