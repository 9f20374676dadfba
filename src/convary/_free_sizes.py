# SPDX-License-Identifier: Apache-2.0
"""Whether a model takes other sizes than the example's, asked before a graph is recorded that says so."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from convary.errors import ExportError


def check_sizes(model: nn.Module, inputs: tuple[Tensor, ...], axes: list[tuple[int, ...]]) -> None:
    """Raise where the model fixes free axes of height, width, ...: a recorder may write them as free all the same.

    Twice the size keeps what divides it; where that fails one less is tried, as nets with aligned corners take it.
    """
    sizes = [tuple(axis for axis in free if axis > 1) for free in axes]
    if not any(sizes):
        return
    doubled = tuple(
        x.repeat([2 if axis in free else 1 for axis in range(x.ndim)]) for x, free in zip(inputs, sizes, strict=True)
    )
    less = tuple(functools.reduce(_without_last, free, x) for x, free in zip(doubled, sizes, strict=True))
    failed: Exception | None = None
    for larger in (doubled, less):
        try:
            with torch.no_grad():
                model(*larger)
            return
        except Exception as error:  # whatever a model raises
            failed = failed or error
    wanted = sorted({axis for free in sizes for axis in free})
    raise ExportError(
        f"{type(model).__name__} runs at the example's size and fails at another, so the axes {wanted} can't be free: "
        f"{str(failed).strip().partition(chr(10))[0]}\n"
        "Give the axes that may change: dynamic=(0,), or --dynamic 0, is the batch alone."
    ) from failed


def _without_last(x: Tensor, axis: int) -> Tensor:
    return x.narrow(axis, 0, x.shape[axis] - 1)
