# SPDX-License-Identifier: Apache-2.0
"""Which layers a network's outputs come from, read off the order of its modules: nothing is run.

A layer is one of them where no layer that is registered later can read it: none behind it takes as many channels as it
makes, except one that takes what it takes itself, which then stands beside it (the two branches of a detector's head).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from torch import nn

# Between a layer and the output these change nothing about what the layer is for.
_OUTPUT = (nn.Sigmoid, nn.LogSigmoid, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Tanh)
_NORMS = "torch.nn.modules.batchnorm torch.nn.modules.instancenorm torch.nn.modules.normalization".split()
_ACTIVATIONS = ("relu", "elu", "swish", "silu", "mish", "activation")  # in names of classes that are not torch's


@dataclass(frozen=True)
class _Reach:
    """How a module meets the modules around it.

    Attributes:
        takes: Channels that its first layers take.
        ends: Its layers whose outputs are its outputs.
        closes: Whether it begins with a normalisation or an activation, which belongs to what stands before it.
        flat: Whether its first layer is linear.
    """

    takes: tuple[int, ...] = ()
    ends: tuple[Any, ...] = ()
    closes: bool = False
    flat: bool = False

    @property
    def passes(self) -> bool:
        """Whether nothing in it is a layer, a normalisation or an activation: dropout, pooling, resizing."""
        return not (self.takes or self.closes)

    @property
    def makes(self) -> tuple[int, ...]:
        return tuple(layer.out_channels for layer in self.ends)


def predictions(model: nn.Module, constants: frozenset[nn.Module] = frozenset()) -> frozenset[nn.Module]:
    """The convolutions that a network's outputs come from; none where it is itself a layer, or ends otherwise.

    Args:
        model: Any module.
        constants: Layers that are looked through.
    """
    if is_layer(model):
        return frozenset()
    return frozenset(_reach(model, constants).ends)


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a convolution, ordinary or not, by what it holds."""
    return all(hasattr(module, name) for name in ("weight", "kernel_size", "in_channels", "out_channels"))


def _reach(module: Any, constants: frozenset[nn.Module]) -> _Reach:
    if module in constants:
        return _Reach()
    if isinstance(module, nn.Linear):
        return _Reach((module.in_features,), flat=True)
    if is_layer(module):
        return _Reach((module.in_channels,), (module,))
    children = [child for child in (_reach(m, constants) for m in module.children()) if not child.passes]
    if not children:
        return _Reach(closes=_closes(module))
    first, last = children[0], children[-1]
    if isinstance(module, nn.Sequential):
        return _Reach(first.takes, last.ends, first.closes, first.flat)
    listed = isinstance(module, nn.ModuleList | nn.ModuleDict)
    ends = [child for i, child in enumerate(children) if not any(_reads(c, child, listed) for c in children[i + 1 :])]
    beside = listed and all(not _reads(b, a, listed) for a, b in itertools.pairwise(children))
    takes = sum((child.takes for child in children), ()) if beside else first.takes
    return _Reach(takes, sum((child.ends for child in ends), ()), first.closes, first.flat)


def _closes(module: nn.Module) -> bool:
    """Whether a module without layers normalises or activates."""
    if any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False)):
        return True
    if isinstance(module, _OUTPUT) or any(True for _ in module.children()):
        return False
    named = any(word in type(module).__name__.lower() for word in _ACTIVATIONS)
    return named or type(module).__module__ in ("torch.nn.modules.activation", *_NORMS)


def _reads(later: _Reach, before: _Reach, listed: bool) -> bool:
    """Whether a module can take what one before it makes, alone or, outside of lists, among other things."""
    if later.closes or not before.ends:
        return True
    if later.flat:
        return any(later.takes[0] % channels == 0 for channels in before.makes)
    one_each = len(later.takes) == len(before.takes) == 1
    if later.takes == before.makes or (one_each and later.takes[0] == before.makes[-1]):
        return True
    beside = set(later.takes) <= set(before.takes) or (later.ends and later.makes == before.makes)
    return not (listed or beside) and max(later.takes) >= min(before.makes)
