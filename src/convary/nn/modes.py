# SPDX-License-Identifier: Apache-2.0
"""What holds for a model inside a block: its modules in eval mode, hooks on them, shapes without numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside the block, each back in its own mode after; warns of nothing."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def hooked(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Hooks that are registered on entry, one by one, and all removed on exit, also where one can't be.

    Args:
        hooks: What ``register_forward_hook`` and the like return; best a generator.
    """
    with contextlib.ExitStack() as stack:
        for hook in hooks:
            stack.callback(hook.remove)
        yield


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """What is built inside the block is on the meta device, and draws no random numbers.

    Nobody sees them there, and drawing them takes most of the time.
    """
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    drawing = (
        Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_normal_,
        nn.init.kaiming_uniform_, nn.init.xavier_uniform_,
    )  # fmt: skip

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in self.drawing:
            tensor = args[0] if args else (kwargs or {})["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **(kwargs or {}))
