# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C between two steps, where the state is whole, instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import torch
from accelerate import Accelerator


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

    def asked_anywhere(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked. All of them must call this, after the same step, and then stop there."""
        return anywhere(self.asked, accelerator)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def anywhere(here: bool, accelerator: Accelerator) -> bool:
    """Whether it is so in any process. All of them must ask, after the same step."""
    if accelerator.num_processes == 1:
        return here
    found = torch.tensor([float(here)], device=accelerator.device)
    return bool(torch.as_tensor(accelerator.reduce(found, "sum")).item())
