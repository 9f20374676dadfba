# SPDX-License-Identifier: Apache-2.0
"""The layouts of released checkpoints as data: rows of names and shapes, read in both directions by one mapper."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class How(NamedTuple):
    """How a tensor lies in their file and in our state dict.

    Attributes:
        read: Of theirs and the shape that ours has: ours. What doesn't fit is left as it is, so that the error that
            follows names both shapes.
        write: Of ours: theirs.
    """

    read: Callable[[Tensor, Sequence[int]], Tensor]
    write: Callable[[Tensor], Tensor]


SAME = How(lambda theirs, shape: theirs, lambda ours: ours)
ONE_KERNEL = How(lambda theirs, shape: theirs.unsqueeze(0), lambda ours: ours.squeeze(0))  # a bank of one here


def trailing(count: int) -> How:
    """Theirs has so many more axes, of one position each: a 1x1 convolution where we have a linear layer."""
    return How(
        lambda theirs, shape: theirs.flatten(len(shape) - 1), lambda ours: ours.reshape(*ours.shape, *(1,) * count)
    )


def reshaped(write: Callable[[Tensor], Tensor]) -> How:
    """The same numbers in the same order, in whatever shape."""
    return How(fitted, write)


def fitted(theirs: Tensor, shape: Sequence[int]) -> Tensor:
    """In a shape of as many numbers; as it is where there are more or fewer."""
    return theirs.reshape(shape) if theirs.numel() == torch.Size(shape).numel() else theirs


class Row(NamedTuple):
    """One tensor of ours.

    Attributes:
        ours: Its name in the layer's state dict.
        theirs: Its name in the file; or several, by name, each with its length: they lie one after the other along the
            first axis of ours.
        how: How each of them lies.
    """

    ours: str
    theirs: str | Mapping[str, int]
    how: How = SAME


def renamed(names: Mapping[str, str], leaves: Iterable[str]) -> list[Row]:
    """Rows of modules whose tensors lie alike.

    Args:
        names: Of the modules: ours, theirs.
        leaves: Names of the tensors that each of them has.
    """
    return [Row(f"{ours}.{leaf}", f"{theirs}.{leaf}") for ours, theirs in names.items() for leaf in leaves]


def read(rows: Iterable[Row], tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Our state dict of their tensors.

    Args:
        rows: The layout.
        tensors: Theirs, by name.
        shapes: Of ours, by name.

    Raises:
        KeyError: a tensor is missing, with its name.
    """
    state: dict[str, Tensor] = {}
    for ours, theirs, how in rows:
        if isinstance(theirs, str):
            state[ours] = how.read(tensors[theirs], shapes[ours])
        else:
            state[ours] = torch.cat([how.read(tensors[name], shapes[ours]) for name in theirs])
    return state


def write(rows: Iterable[Row], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors of our state dict."""
    tensors: dict[str, Tensor] = {}
    for ours, theirs, how in rows:
        if isinstance(theirs, str):
            tensors[theirs] = how.write(state[ours])
        else:
            parts = state[ours].split(list(theirs.values()))
            tensors |= {name: how.write(part) for name, part in zip(theirs, parts, strict=True)}
    return tensors
