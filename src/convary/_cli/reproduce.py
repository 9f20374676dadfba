# SPDX-License-Identifier: Apache-2.0
"""``convary reproduce``: published tables beside ours, and the training of their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tyro.conf import Positional

from convary._cli.console import is_first, link, resumable, run_console
from convary._cli.parse import parse, wants_help
from convary.errors import ConfigError
from convary.extras import require
from convary.text import columns
from convary.train.run_config import Kind, RunConfig

if TYPE_CHECKING:
    from rich.console import Console

COCO = "coco:"
CLASSIFIERS = ("recipe", "anneal_epochs", "limit_train", "root", "jobs", "skip_broken", "accumulate", "channels_last",
               "sync_norms", "shard", "compile")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Reproduce(RunConfig):
    """Print published tables beside what this package makes of the same networks; with --data, train their rows.

    Without a table it lists them.
    """

    command_name: ClassVar[tuple[str, ...]] = ("reproduce",)
    shown: ClassVar[tuple[str, ...]] = ("tables", "out")
    positional: ClassVar[tuple[str, ...]] = ("tables",)

    tables: Positional[tuple[str, ...]] = ()
    """Which tables, as in odconv-resnet."""

    all: bool = False
    """All tables."""

    rows: tuple[str, ...] = ()
    """Only these rows."""

    format: Literal["text", "markdown", "json", "csv"] = "text"
    """How to print; without a table, other than as text: all of them."""

    data: str | None = None
    """Train the rows on these images, as in folder:/imagenet with train/ and val/; see convary compare --data.
    coco:FOLDER, in COCO's layout, trains detectors."""

    weights: tuple[Path, ...] = ()
    """With coco:FOLDER, what backbones start from: checkpoints of convary reproduce or compare, weight files of
    torchvision or timm whose names begin with the network's, or folders that have some."""

    measure: bool = True
    """Of tables of speed, time the rows here, in turns with the static network, by batches of --batch-size (1, in
    training 2)."""

    measure_seconds: float = 2.0
    """Time for each of these figures; at least nine pairs are taken."""

    released: Path | None = None
    """A checkout of the authors' code, whose networks are run and timed likewise (ODConv's, of tables of speed)."""

    recipe: str | None = None
    """A training for rows whose own is not known, as in odconv-resnet; the report says which. Others keep theirs."""

    seeds: int = 1
    """How many times to train each row."""

    out: Path = Path("runs/reproduce")
    """Folder for the trainings; an interrupted one in it is resumed."""

    epochs: int | None = None
    """Epochs instead of the recipe's."""

    anneal_epochs: float | None = None
    """Epochs over which temperatures fall, instead of the recipe's."""

    batch_size: int | None = None
    """Images per step instead of the recipe's."""

    image_size: int | None = None
    """Height and width for photographs (folder:, hf:), by default the recipe's, which is 224 for most."""

    limit_train: int | None = None
    """Train on this many images only, balanced over the classes."""

    root: Path | None = None
    """Where data sets lie."""

    threads: int | None = None
    """CPU threads."""

    cpu: bool = False
    """Stay on the CPU even where there is an accelerator."""

    jobs: int = 1
    """Trainings at a time; for CPUs."""

    workers: int = 0
    """Processes that read images, of each training process; several for ImageNet."""

    skip_broken: bool = False
    """Leave out images that can't be read, and count them."""

    accumulate: int | None = None
    """Parts that a step's images are trained in, to need less memory."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16, or on GPUs fp16: automatic mixed precision."""

    channels_last: bool = False
    """Keep images and kernels with their channels last, which GPUs convolve faster."""

    sync_norms: bool = False
    """On several GPUs: batch norms see the images of all processes, as on one; by default each sees its own."""

    shard: bool = False
    """Of several processes, each keeps a share of every weight and of what the optimizer keeps of it (FSDP2)."""

    compile: bool = False
    """Train through torch.compile, which takes a minute for each network before its first step."""

    log: tuple[Kind, ...] = ()
    """Give losses and scores, which log.csv of each training's folder always has, to tensorboard or wandb too."""

    def overrides(self) -> dict[str, Any]:
        """Fields of a comparison that are given here."""
        names = ("epochs", "anneal_epochs", "batch_size", "image_size", "limit_train", "root", "threads", "accumulate")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        same = ("data", "seeds", "cpu", "jobs", "workers", "skip_broken", "precision", "channels_last", "sync_norms",
                "shard", "compile", "log")  # fmt: skip
        return given | {name: getattr(self, name) for name in same}


def run(argv: Sequence[str]) -> int:
    """Parse; list, print, or train."""
    if not wants_help(argv):
        require("convary reproduce", "all", "torchvision", "timm", "accelerate", "torchmetrics")
    flags = parse(Reproduce, argv, "convary reproduce")
    from convary.papers import TABLES
    from convary.papers.page import FORMATS, records

    tables = _selected(flags)
    if not tables:
        print(_listing(TABLES))
        return 0
    if flags.data is not None:
        return _train_detectors(flags, tables) if flags.data.startswith(COCO) else _train(flags, tables)
    if flags.all and flags.format == "markdown":
        from convary.train.reproduce import whole_page

        print(whole_page(), end="")
        return 0
    measured = _measured(flags, tables)
    print(FORMATS[flags.format]([(table, records(table, measured=measured)) for table in tables]))
    return 0


def _measured(flags: Reproduce, tables: Sequence[Any]) -> dict[tuple[str, str], Any]:
    """What the rows of tables of speed take here, by table and row."""
    wanted = [table for table in tables if table.measured and flags.measure and not flags.all]
    if flags.released is not None and not any(row.released for table in wanted for row in table.rows):
        raise ConfigError("--released is for ODConv in a table of speed, as in convary reproduce odconv-speed")
    if not wanted:
        return {}
    import torch

    from convary._cli.console import stages
    from convary.bench.rows import measure
    from convary.train.run_config import check_threads

    check_threads(flags.threads, "--threads")
    if flags.threads is not None:
        torch.set_num_threads(flags.threads)
    batch = 1 if flags.batch_size is None else flags.batch_size
    if batch < 1 or flags.measure_seconds <= 0:
        raise ConfigError(f"--batch-size and --measure-seconds must be above 0; got {batch}, {flags.measure_seconds:g}")
    device = "cuda" if torch.cuda.is_available() and not flags.cpu else "cpu"
    found = {}
    with stages() as tell:
        for table in wanted:
            for row in table.rows:
                tell(f"timing {row.name}")
                found[table.name, row.name] = measure(
                    row, batch=batch, seconds=flags.measure_seconds, released=flags.released, device=device
                )
    return found


def _selected(flags: Reproduce) -> list[Any]:
    """The tables that are asked for, with only the rows that are."""
    from convary.papers import TABLES, table

    everything = flags.all or (flags.format != "text" and not flags.rows and flags.data is None)
    tables = [table(name) for name in flags.tables] or (list(TABLES) if everything else [])
    if flags.rows and len(tables) != 1:
        raise ConfigError(f"--rows wants the one table that they are of; got {len(tables)} tables")
    if flags.data is not None and not tables:
        raise ConfigError("--data wants a table whose rows to train, as in convary reproduce odconv-resnet")
    return [found.select(flags.rows) for found in tables]


def _listing(tables: Sequence[Any]) -> str:
    lines = [(table.name, f"{len(table.rows)} rows", table.title) for table in tables]
    told = "\n".join(f"  {line}" for line in columns([("table", "", ""), *lines]))
    return f"published tables:\n{told}\n\nconvary reproduce TABLE prints one beside ours; --data trains its rows."


def _train(flags: Reproduce, tables: Sequence[Any]) -> int:
    require("convary reproduce --data", "all", "matplotlib", "jinja2")
    from convary import report
    from convary._cli.progress import LiveProgress
    from convary.train.reproduce import plan, train

    if flags.weights:
        raise ConfigError(f"--weights is for detectors, --data {COCO}FOLDER; got --data {flags.data}")
    planned = plan(tables, flags.out, flags.recipe, **flags.overrides())
    console = run_console()
    _tell_left_out(console, planned.left_out)
    for group in planned.groups:
        console.print(f"{group.config.model}: {', '.join(group.config.methods)}; {group.config.training()}")
    with resumable(flags, flags.out), LiveProgress(console) as progress:
        reached = train(planned.groups, progress)
    if is_first():
        for group in planned.groups:
            report.write(report.load(group.config.out / "results.json"), group.config.out / "report.html")
        _write(flags, tables, reached, console)
    return 0


def _train_detectors(flags: Reproduce, tables: Sequence[Any]) -> int:
    require("convary reproduce --data", "all", "matplotlib", "jinja2")
    from convary._cli.progress import LiveProgress
    from convary.systems.detection_rows import plan, train

    for name in CLASSIFIERS:
        if getattr(flags, name) != Reproduce.__dataclass_fields__[name].default:
            raise ConfigError(f"--{name.replace('_', '-')} is for classifiers; {flags.data} trains detectors")
    names = ("epochs", "image_size", "batch_size", "threads")
    given = {name: value for name in names if (value := getattr(flags, name)) is not None}
    given |= {name: getattr(flags, name) for name in ("cpu", "precision", "log")}
    given |= {"workers": flags.workers} if flags.workers else {}
    folder = Path(str(flags.data).removeprefix(COCO))
    planned = plan(tables, flags.out, folder, flags.weights, flags.seeds, **given)
    console = run_console()
    _tell_left_out(console, planned.left_out)
    for (_, name), configs in planned.runs.items():
        console.print(f"{name}: {configs[0].steps} steps, from {configs[0].weights}", markup=False)
    with resumable(flags, flags.out), LiveProgress(console) as progress:
        reached = train(planned, progress)
    if is_first():
        _write(flags, tables, reached, console)
    return 0


def _tell_left_out(console: Console, left_out: Mapping[tuple[str, str], str]) -> None:
    for (_, name), reason in left_out.items():
        console.print(f"not trained: {name}, {reason}", markup=False)


def _write(flags: Reproduce, tables: Sequence[Any], reached: Mapping[tuple[str, str], Any], console: Console) -> None:
    """Published beside reached: in the folder, and printed."""
    from convary.files import write_whole
    from convary.papers.page import FORMATS, records

    found = [(table, records(table, reached)) for table in tables]
    for name, format in (("tables.md", "markdown"), ("tables.json", "json")):
        write_whole(flags.out / name, (FORMATS[format](found) + "\n").encode())
    print(FORMATS[flags.format](found))
    console.print(f"\ntables   {link(flags.out / 'tables.md')}", soft_wrap=True)
