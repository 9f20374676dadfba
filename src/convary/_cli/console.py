# SPDX-License-Identifier: Apache-2.0
"""What the commands that train say alike: where, with which links, and how to go on after Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from convary.train.run_config import RunConfig


def is_first() -> bool:
    """Whether this is the first, or the only, of the processes that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def plain_console(**options: Any) -> Console:
    """A console whose reader may go, as in ``convary data | head``: ``main`` ends well then, and rich with code 1."""
    from rich.console import Console

    class Piped(Console):
        def on_broken_pipe(self) -> None:
            raise  # what rich has caught

    return Piped(highlight=False, **options)


def run_console() -> Console:
    """The console of a run; the first process alone says something."""
    return plain_console(quiet=not is_first(), width=None if sys.stdout.isatty() else 110)


@contextlib.contextmanager
def stages(console: Console | None = None) -> Iterator[Callable[[str], None]]:
    """Say what a command is at while it has nothing to print yet: a line in a terminal, nothing elsewhere.

    Args:
        console: Where to; by default the standard output.

    Yields:
        What is called with the name of each stage.
    """
    from rich.console import Console
    from rich.markup import escape

    console = Console() if console is None else console
    if not console.is_terminal:
        yield lambda stage: None
        return
    with console.status("starting") as status:
        yield lambda stage: status.update(escape(stage))


def link(path: Path) -> str:
    """The path; a terminal that knows links opens it on a click."""
    from rich.markup import escape

    return f"[link={path.resolve().as_uri()}]{escape(str(path))}[/link]"


@contextlib.contextmanager
def resumable(config: RunConfig, out: Path, saved: Callable[[], str] = lambda: "what was done") -> Iterator[None]:
    """Say on Ctrl-C what is saved and how to go on."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        kept = (
            f"{saved()} is saved in {out}. Resume with"
            if out.is_dir() and any(out.iterdir())
            else "nothing was done yet. Start again with"
        )
        told = f"interrupted; {kept}: {config.command()}"
        raise KeyboardInterrupt(told) from interrupt
