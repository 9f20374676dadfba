# SPDX-License-Identifier: Apache-2.0
"""``convary eval``: a checkpoint's accuracy on its test images, overall and per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from convary._cli.console import plain_console, stages
from convary._cli.parse import parse
from convary.errors import ConfigError
from convary.text import of_few

if TYPE_CHECKING:
    from rich.table import Table

    from convary.train import Evaluation


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Evaluate a checkpoint of convary compare on the test images: top-1, and per class."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """OUT/METHOD/seed-N/checkpoint.pt."""
    data: str | None = None
    """A data set with the same classes; by default the one that the network was trained on."""
    root: Path | None = None
    """Where data sets lie; by default $CONVARY_DATA, or a folder in your cache."""
    batch_size: int = 100
    """Images at a time."""
    test_size: int | None = None
    """Height and width that the centres of photographs (folder:, hf:) are cut to; by default as in the training."""
    workers: int = 0
    """Processes that read images."""


def run(argv: Sequence[str]) -> int:
    """Parse, evaluate, print."""
    flags = parse(Eval, argv, "convary eval")
    if flags.batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1; got {flags.batch_size}")
    if flags.checkpoint.suffix in (".onnx", ".pt2"):
        raise ConfigError(
            f"{flags.checkpoint} is an exported file, which convary predict reads; evaluate the checkpoint that it was "
            "made of: OUT/METHOD/seed-N/checkpoint.pt"
        )
    with stages() as tell:
        tell("loading torch")
        from convary.train import evaluate

        tell(f"evaluating {flags.checkpoint}")
        options = {"batch_size": flags.batch_size, "test_size": flags.test_size, "workers": flags.workers}
        found = evaluate(flags.checkpoint, flags.data, root=flags.root, **options)
    from rich.markup import escape

    console = plain_console()
    console.print(f"{escape(f'{found.model}, {found.method}, on {found.data}')} ({found.images:,} test images)")
    console.print(f"top-1 [bold]{found.top1:.2f} %[/bold], loss {found.loss:.4f}")
    if doubt := of_few(found.top1, found.images):
        console.print(f"[yellow]{doubt}[/yellow]")
    console.print()
    console.print(_table(found))
    return 0


def _table(found: Evaluation) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 3, 0, 0))
    table.add_column("class")
    table.add_column("images", justify="right")
    table.add_column("top-1 (%)", justify="right")
    table.add_column("most often taken for")
    names = list(found.classes)
    for index, (name, row) in enumerate(zip(names, found.confusion, strict=True)):
        wrong = [count if other != index else 0 for other, count in enumerate(row)]
        worst = max(range(len(wrong)), key=wrong.__getitem__)
        taken = f"{names[worst]} ({wrong[worst]})" if wrong[worst] else ""
        table.add_row(escape(name), f"{sum(row):,}", f"{found.classes[name]:.1f}", escape(taken))
    return table
