# SPDX-License-Identifier: Apache-2.0
"""What a model wants of a batch that somebody's loader gives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from convary.errors import ConvaryError, DataError, DtypeError, ShapeError

KEYS = ("pixel_values", "image", "images", "img", "input", "inputs", "x")  # Hugging Face, MONAI, Ultralytics, ...


def batches_of(loader: Iterable[Any] | Tensor) -> Iterable[Any]:
    """The batches of a loader; one tensor is one batch.

    Raises:
        DataError: nothing that gives batches, or one batch in the form of a dict.
    """
    if isinstance(loader, Tensor):
        return [loader]
    if isinstance(loader, Mapping):
        raise DataError(
            f"a loader gives batches; got one batch, a dict of {_names(loader)}; pass a list of it: [batch]"
        )
    if not isinstance(loader, Iterable):
        raise DataError(f"a loader gives batches of the model's input; got a {type(loader).__name__}")
    return loader


def input_of(batch: Any, device: torch.device | None = None) -> Any:
    """The model's input out of a batch: the batch, the first of a tuple or list, or the images of a dict.

    Args:
        batch: A tensor; a tuple or list that starts with the input; or a mapping with the input under one of ``KEYS``.
        device: Where the input's tensors are moved; None leaves them.

    Raises:
        DataError: no input is found.

    >>> input_of({"labels": torch.zeros(2), "pixel_values": torch.ones(2, 3)}).shape
    torch.Size([2, 3])
    """
    if isinstance(batch, Mapping):
        found = [key for key in KEYS if key in batch]
        if len(found) != 1:
            raise DataError(
                f"a batch is a dict of {_names(batch)}, with {', '.join(found) or 'no input'} where one of "
                f"{', '.join(KEYS)} is wanted; give the images alone: (batch[key] for batch in loader)"
            )
        x = batch[found[0]]
    else:
        x = batch[0] if isinstance(batch, tuple | list) and batch else batch
    moved = x if device is None else tree_map_only(Tensor, lambda tensor: tensor.to(device), x)
    if not isinstance(moved, Tensor | tuple | list):
        raise DataError(f"a batch must hold tensors; got a {type(moved).__name__}; collate it to tensors first")
    return moved


def input_like(model: nn.Module, x: Tensor | Sequence[int]) -> Tensor:
    """The input itself, or zeros of that shape, of the dtype and on the device of the model.

    >>> input_like(nn.Linear(3, 1).double(), (2, 3)).dtype
    torch.float64

    Raises:
        ShapeError: a negative size.
    """
    if not isinstance(x, tuple | list) or not all(isinstance(size, int) for size in x):
        return x  # type: ignore[return-value]
    if min(x, default=0) < 0:
        raise ShapeError(f"a shape has sizes of at least 0, as in (1, 3, 224, 224); got {tuple(x)}")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros(tuple(x), dtype=like.dtype, device=like.device)


@contextlib.contextmanager
def taken(model: nn.Module, x: Any) -> Iterator[None]:
    """Say what a model was given, where it can't take it.

    Raises:
        ShapeError, DtypeError: instead of torch's or Python's own error in the ``with`` block.
    """
    try:
        yield
    except ConvaryError:
        raise
    except (RuntimeError, TypeError, AttributeError, ValueError, IndexError) as error:
        given = f"{type(x).__name__} of shape {tuple(x.shape)}, {x.dtype}" if hasattr(x, "shape") else repr(type(x))
        kind = DtypeError if isinstance(x, Tensor) and not x.is_floating_point() else ShapeError
        reason = str(error).partition("\n")[0]
        raise kind(
            f"{type(model).__name__} can't take a {given}: {reason}; give a float tensor of the shape that its forward "
            "takes, such as torch.zeros(1, 3, 224, 224)"
        ) from error


def _names(batch: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, batch)) or "nothing"
