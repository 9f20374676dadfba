# SPDX-License-Identifier: Apache-2.0
"""Modules of Triton kernels, which are decorated for its interpreter or for a GPU when they are imported."""

import sys

MODULES = ("triton.reduce", "triton.router_kernel", "sample.triton_kernels", "sample.triton_direct",
           "pixel.triton_kernels")  # fmt: skip


def forget() -> None:
    """Let the next use import all of them anew: they take functions from each other."""
    for module in MODULES:
        room, _, name = module.rpartition(".")
        sys.modules.pop(f"convary.ops.{module}", None)
        vars(sys.modules[f"convary.ops.{room}"]).pop(name, None)
