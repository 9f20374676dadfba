# SPDX-License-Identifier: Apache-2.0
"""What may end a training early waits for the end of a step, where the state is whole in every process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from convary.data.reading import lost_worker
from convary.errors import DataError


class Interrupt:
    """While it is entered, the first Ctrl-C only sets ``asked``; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class Feed:
    """The batches of a training; what goes wrong with them, or with who reads them, is kept in ``error``.

    torch raises an error wherever the first process is when one that reads for it dies, in the middle of a step too.
    While this is entered, that waits for the next ``read``.

    Args:
        batches: What to read.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = iter(batches)
        self.error: DataError | None = None
        self._handler: Any = None  # torch's, which is there from the first batch on
        self._heard: tuple[Any, ...] | None = None
        self._holds = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *exception: object) -> None:
        self._release()

    def read(self) -> Any:
        """The next batch; None after the last one, and where there is an ``error``."""
        try:
            self._release()
            if self._heard is not None:
                heard, self._heard = self._heard, None
                self._handler(*heard)
            return next(self.batches, None)
        except DataError as error:
            self.error = error
        except RuntimeError as error:
            self.error = lost_worker(error)
            if self.error is None:
                raise
        finally:
            self._hold()
        return None

    def _hold(self) -> None:
        if self._holds and callable(now := signal.getsignal(signal.SIGCHLD)):
            self._handler = now
            signal.signal(signal.SIGCHLD, self._hear)

    def _release(self) -> None:
        if self._holds and signal.getsignal(signal.SIGCHLD) == self._hear:
            signal.signal(signal.SIGCHLD, self._handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard = number, None


def anywhere(accelerator: Accelerator, *here: bool) -> list[bool]:
    """Whether each is so in any process. All of them must ask, after the same step."""
    if accelerator.num_processes == 1:
        return [bool(value) for value in here]
    found = torch.tensor([float(value) for value in here], device=accelerator.device)
    return [value > 0 for value in torch.as_tensor(accelerator.reduce(found, "sum")).tolist()]


def first_error(accelerator: Accelerator, error: DataError | None) -> DataError:
    """This process' error, or where it has none the first of another one's. All must ask, where one has any."""
    told: list[str] = gather_object([str(error or "")]) if accelerator.num_processes > 1 else []
    return error or next(DataError(f"process {rank}: {text}") for rank, text in enumerate(told) if text)
