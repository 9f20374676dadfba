# SPDX-License-Identifier: Apache-2.0
"""The items of a system as one stream of epochs, each in its own order, from any step on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

from convary.data import epoch_order, generator
from convary.data.reading import leave_interrupts
from convary.errors import DataError

if TYPE_CHECKING:
    from convary.train.system import System

_ITEM = 2  # sets an item's random numbers apart from those of weights and dropout


def stream(system: System, first: int, rank: int, world: int) -> Iterator[Any]:
    """One process's share of every step's batch.

    Args:
        system: Has the items.
        first: The step to begin with.
        rank: Which process.
        world: Of how many.

    Raises:
        DataError: an item can't be read.
    """
    steps = _Steps(system, first, slice(rank, None, world))
    workers = system.config.workers
    quiet = leave_interrupts if workers else None
    loader = DataLoader(
        _Items(system), batch_sampler=steps, collate_fn=_Collate(system), num_workers=workers, worker_init_fn=quiet
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


class _Items(Dataset):
    """The system's items by (index, numbers that seed their generator); what can't be read, as its error.

    What a worker raises arrives with its traceback in its message, which nobody wants to read.
    """

    def __init__(self, system: System) -> None:
        self.system = system

    def __getitem__(self, key: tuple[int, tuple[int, ...]]) -> Any:
        index, numbers = key
        try:
            return self.system.item(index, generator(*numbers))
        except DataError as error:
            return error


class _Collate:
    """The system's batch of items, or the first error among them."""

    def __init__(self, system: System) -> None:
        self.system = system

    def __call__(self, items: list[Any]) -> Any:
        broken = [item for item in items if isinstance(item, DataError)]
        return broken[0] if broken else self.system.collate(items)


class _Steps:
    def __init__(self, system: System, first: int, share: slice) -> None:
        self.system, self.first, self.share = system, first, share

    def __iter__(self) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
        config, size = self.system.config, self.system.size
        epoch, order = -1, torch.empty(0)
        for step in range(self.first, config.steps):
            batch = []
            for position in range(step * config.batch_size, (step + 1) * config.batch_size):
                now, place = divmod(position, size)
                if now != epoch:
                    epoch, order = now, epoch_order(size, config.seed, now)
                batch.append((int(order[place]), (config.seed, position, _ITEM)))
            yield batch[self.share]

    def __len__(self) -> int:
        return self.system.config.steps - self.first
