# SPDX-License-Identifier: Apache-2.0
"""What the command line lists before torch is imported. Tests hold every list to what the code has."""

from __future__ import annotations

# Of convary.METHODS, in its order.
METHOD_NAMES = ("condconv", "dyconv", "dynet", "odconv", "kernelwarehouse", "dcd", "weightnet", "cgc", "fdconv")
