# SPDX-License-Identifier: Apache-2.0
"""The items of a system as one stream of epochs, each in its own order, from any step on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

from convary.data import epoch_order, generator
from convary.data.reading import leave_interrupts

if TYPE_CHECKING:
    from convary.train.system import System

_ITEM = 2  # sets an item's random numbers apart from those of weights and dropout


def stream(system: System, first: int, rank: int, world: int) -> DataLoader:
    """One process's share of every step's batch.

    Args:
        system: Has the items.
        first: The step to begin with.
        rank: Which process.
        world: Of how many.
    """
    steps = _Steps(system, first, slice(rank, None, world))
    workers = system.config.workers
    quiet = leave_interrupts if workers else None
    return DataLoader(
        _Items(system), batch_sampler=steps, collate_fn=system.collate, num_workers=workers, worker_init_fn=quiet
    )


class _Items(Dataset):
    """The system's items by (index, numbers that seed their generator)."""

    def __init__(self, system: System) -> None:
        self.system = system

    def __getitem__(self, key: tuple[int, tuple[int, ...]]) -> Any:
        index, numbers = key
        return self.system.item(index, generator(*numbers))


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
