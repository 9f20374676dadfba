# SPDX-License-Identifier: Apache-2.0
"""What holds for a model inside a block: its modules in eval mode, hooks on them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn
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
