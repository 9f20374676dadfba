# SPDX-License-Identifier: Apache-2.0
"""``convary bench``: what dynamic convolutions cost against static ones, layer by layer and in whole networks."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from convary._cli.parse import parse
from convary.errors import ConfigError, ConvaryError, nearest
from convary.train.run_config import check_threads

if TYPE_CHECKING:
    from convary.bench.tables import Record

Mode = Literal["inference", "training"]
Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Time single dynamic convolutions of the shapes of ResNet and MobileNetV2; every line is checked first."""

    threads: tuple[int, ...] = (1, 2)
    """Numbers of threads, one after the other."""
    modes: tuple[Mode, ...] = ("inference", "training")
    """inference is the forward pass, training forward and backward."""
    factors: tuple[Literal["kernel", "all"], ...] = ("kernel", "all")
    """kernel: one coefficient per kernel, as in CondConv and DyConv. all: the four of ODConv."""
    layouts: tuple[Literal["contiguous", "channels_last"], ...] = ("contiguous",)
    """Memory format of features and static weights."""
    against: Literal["static", "grouped"] = "static"
    """static: the ordinary convolution of that size. grouped: the same dynamic one as released code runs it."""
    strategy: str | None = None
    """Force a strategy; by default the automatic choice."""
    dtypes: tuple[Literal["float32", "bf16"], ...] = ("float32",)
    """Of all tensors."""
    device: str = "cpu"
    """Where: cpu, cuda, cuda:1. A GPU is timed by its own events."""
    seconds: float = 1.0
    """Time for each line; at least nine pairs are taken."""
    out: Path | None = None
    """Folder to save the table to, as layers.json, layers-grouped.json, layers-bf16.json, layers-cuda.json; by default
    it is only printed."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """Time whole networks, dynamic against static, and take the peak memory of training; every line checked first."""

    mode: Literal["eager", "compiled", "aoti", "onnxruntime", "openvino"] = "eager"
    """What runs both networks: torch itself; torch.compile; AOTInductor, ahead of time; a file in another runtime.
    But for eager, lines are also against the static network in the mode that it is fastest in."""
    models: tuple[str, ...] = ("torchvision:mobilenet_v2", "torchvision:resnet18")
    """mobilenet_v2_tiny, resnet20, torchvision:NAME or timm:NAME."""
    methods: tuple[str, ...] = ("condconv", "dyconv", "odconv")
    """Names of methods; four kernels each."""
    batches: tuple[int, ...] = (1, 16)
    """Batch sizes."""
    modes: tuple[Mode, ...] = ("inference", "training")
    """inference is the forward pass in eval mode, training forward and backward in training mode, by torch alone."""
    forms: tuple[str, ...] = ()
    """Of files, as of convary export --runtime: any, onnxruntime, convary, convary-bf16 in onnxruntime; any, openvino
    (one image) in OpenVINO; else all."""
    free_batch: bool = False
    """Files for any batch, in place of files for this one."""
    dtypes: tuple[Literal["float32", "bf16"], ...] = ("float32",)
    """bf16 is both networks under autocast, compared with the static one in float32 too."""
    device: str = "cpu"
    """Where: cpu, cuda, cuda:1. A GPU is timed by its own events; of the other modes compiled runs there."""
    layout: Literal["contiguous", "channels_last"] = "contiguous"
    """Memory format of images and weights, in eager mode."""
    threads: tuple[int, ...] = (1, 2)
    """Numbers of threads, one after the other."""
    image_size: int = 224
    """Height and width of the images."""
    against: Literal["static", "grouped"] = "static"
    """static: the network as it was. grouped: the same dynamic one as released code runs it."""
    memory: bool = True
    """Also measure the peak memory of training at the largest batch."""
    seconds: float = 6.0
    """Time for each line; at least nine pairs are taken."""
    out: Path | None = None
    """Folder to save the table to, as models.json, models-bf16.json, models-grouped.json, models-cuda.json or
    models-MODE.json; without it printed."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Fit the cost model, by which strategies are chosen, to this machine: about five minutes, on an idle one."""

    device: str = "cpu"
    """cpu, or cuda: its choices in bfloat16 and float32."""

    threads: int = 2
    """Threads of torch, as they will be used."""
    seconds: float = 0.3
    """Time for each shape."""
    check: bool = False
    """Fit nothing: say how often the costs in use choose well here, on a CPU."""
    out: Path | None = None
    """The file; by default this machine's own, which convary reads from then on ($CONVARY_CACHE, ~/.cache/convary)."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Write docs/benchmarks.md from saved tables."""

    results: Path = Path("benchmarks/results")
    """Folder that layers and models saved to."""
    out: Path = Path("docs/benchmarks.md")
    """The page."""


KINDS = {"layers": Layers, "models": Models, "fit": Fit, "page": Page}
HELP = """usage: convary bench {layers,models,fit,page} [FLAGS]

What dynamic convolutions cost, in ratios of interleaved calls with their spread.

  layers  single convolutions against the static one, or against what released code does
  models  whole networks: time of inference and training, peak memory
  fit     the cost model for this machine, which then chooses by it
  page    the tables as docs/benchmarks.md

convary bench layers --help shows the flags and their defaults."""


def run(argv: Sequence[str]) -> int:
    """Parse, measure, print and save."""
    kind, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if kind in ("-h", "--help"):
        print(HELP)
        return 0
    if kind not in KINDS:
        raise ConfigError(f"convary bench knows {', '.join(KINDS)}; got {kind!r}{nearest(kind, KINDS)}")
    flags = parse(KINDS[kind], rest, f"convary bench {kind}")
    if isinstance(flags, Page):
        return _page(flags)
    if isinstance(flags, Fit):
        return _fit(flags)
    _check(flags)
    return _measure(kind, flags)


def _check_numbers(numbers: Mapping[str, Iterable[float]]) -> None:
    for threads in numbers["threads"]:
        check_threads(int(threads), "--threads")
    for name, values in numbers.items():
        for value in values:
            if not value > 0:
                raise ConfigError(f"--{name} must be above 0; got {value:g}")


def _check(flags: Layers | Models) -> None:
    from convary.bench.timing import device_here
    from convary.ops import strategies

    device_here(flags.device)
    numbers: dict[str, Iterable[float]] = {"threads": flags.threads, "seconds": (flags.seconds,)}
    if isinstance(flags, Models):
        numbers |= {"batches": flags.batches, "image-size": (flags.image_size,)}
        _check_mode(flags)
    _check_numbers(numbers)
    if isinstance(flags, Layers) and flags.strategy is not None and flags.strategy not in strategies():
        hint = nearest(flags.strategy, strategies())
        raise ConfigError(f"no strategy {flags.strategy!r}; choose from {', '.join(strategies())}{hint}")
    if flags.out is not None and flags.out.exists() and not flags.out.is_dir():
        raise ConfigError(f"{flags.out} is a file; choose a folder with --out")


def _check_mode(flags: Models) -> None:
    """Raise unless the mode is there and has what is asked for."""
    eager, usual = flags.mode == "eager", ("static", ("float32",), "contiguous")
    if not eager and (flags.against, flags.dtypes, flags.layout) != usual:
        raise ConfigError(
            f"--mode {flags.mode} is against static, in float32, contiguous; leave out --against, --dtypes and --layout"
        )
    if eager and (flags.forms or flags.free_batch):
        raise ConfigError("--forms and --free-batch are of files; choose --mode onnxruntime or --mode openvino")
    if eager:
        return
    from convary.bench.engines import ENGINES
    from convary.extras import require

    engine = ENGINES[flags.mode]
    if flags.device != "cpu" and not engine.accelerated:
        able = ", ".join(["eager", *(name for name, entry in ENGINES.items() if entry.accelerated)])
        raise ConfigError(f"--mode {flags.mode} runs on CPUs; on --device {flags.device} run the modes {able}")
    if engine.extra is not None:
        require(f"--mode {flags.mode}", engine.extra, engine.module)
    unknown = [form for form in flags.forms if form not in engine.forms]
    if unknown or (flags.free_batch and not engine.files):
        raise ConfigError(f"--mode {flags.mode} has the forms {', '.join(engine.forms)}; got {', '.join(unknown)}")
    single = [form for form in flags.forms if engine.forms[form].one_image]
    if single and not flags.free_batch and flags.batches != (1,):
        raise ConfigError(f"--forms {single[0]} is for one image or any number: give --batches 1, or --free-batch")
    if not set(flags.modes) & set(engine.modes):
        raise ConfigError(f"--mode {flags.mode} has no {' or '.join(flags.modes)}; choose --modes inference")


def _page(flags: Page) -> int:
    from convary.bench.page import page
    from convary.files import write_whole

    write_whole(flags.out, page(flags.results).encode())
    print(f"wrote {flags.out}")
    return 0


def _fit(flags: Fit) -> int:
    from convary.bench import fit
    from convary.bench.timing import device_here
    from convary.files import write_json
    from convary.ops import cost
    from convary.ops.cost.times import own

    _check_numbers({"threads": (flags.threads,), "seconds": (flags.seconds,)})
    device = device_here(flags.device)
    if device.type not in ("cpu", "cuda") or (flags.check and device.type != "cpu"):
        raise ConfigError(f"bench fit knows CPUs and CUDA devices, and --check CPUs; got --device {flags.device}")

    def told(line: str) -> None:
        print(line, flush=True)

    if flags.check:
        good, rows = fit.checked(cost.fitted()["rates"], flags.threads, flags.seconds, told)
        print(f"costs fitted on {cost.fitted()['machine']}: {good} of {rows} choices within 15 % of the fastest")
        return 0
    on_cpu = device.type == "cpu"
    path = flags.out or own("cost" if on_cpu else "cost-cuda")
    fitted = fit.fitted(flags.threads, flags.seconds, told) if on_cpu else fit.fitted_on(device, flags.seconds, told)
    write_json(path, fitted)
    checks = {"of the fit": fitted["good"]} | ({"of others": fitted["good_elsewhere"]} if on_cpu else {})
    for words, (good, rows) in checks.items():
        print(f"{words}, {good} of {rows} shapes: the choice is within 15 % of the fastest")
    print(f"wrote {path}; convary reads it from now on" if flags.out is None else f"wrote {path}")
    return 0


def _only(kind: type[Config], options: Mapping[str, Any]) -> Config:
    """A config of those options that it has."""
    return kind(**{name: options[name] for name in options.keys() & {f.name for f in fields(kind)}})  # type: ignore


def _unusual(flags: Layers | Models) -> list[str]:
    """What the name of a table's file says: the kind of device first, for the page keeps those apart."""
    words = [flags.device.partition(":")[0]] if flags.device != "cpu" else []
    words += [flags.against] if flags.against != "static" else []
    words += [mode for mode in [getattr(flags, "mode", "eager")] if mode != "eager"]
    return words + [dtype for dtype in getattr(flags, "dtypes", ()) if dtype != "float32"]


def _measure(kind: str, flags: Layers | Models) -> int:
    from convary.bench import layers, models, modes
    from convary.bench.machine import load, machine
    from convary.bench.tables import head, line
    from convary.files import write_json

    options = {name: value for name, value in asdict(flags).items() if name != "out"}
    facts = machine(flags.device)
    if flags.device != "cpu":
        print(facts["device"])
    print(f"{facts['cpu']}, {facts['cores']} cores, torch {facts['torch']}, native {facts['native']}, load {load()}")
    print(f"ratio of the dynamic one to {flags.against}; p10 and p90 of the pairwise ratios\n")
    table = kind if getattr(flags, "mode", "eager") == "eager" else "modes"
    print(head(table), flush=True)
    content: dict[str, Any] = {
        "schema": 1, "kind": kind, "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": facts, "options": {name: value for name, value in options.items()}, "rows": [],
    }  # fmt: skip

    def save() -> None:
        if flags.out is not None:
            write_json(flags.out / f"{'-'.join([kind, *_unusual(flags)])}.json", content)

    def add(rows: Iterable[Record], table: str, to: list[Record]) -> None:
        for row in rows:
            print(line(table, row), flush=True)
            to.append(row)
            save()

    if isinstance(flags, Layers):
        add(layers.measure(layers.LayersConfig(**options)), kind, content["rows"])
    elif table == "modes":
        add(modes.measure(_only(modes.ModesConfig, options)), table, content["rows"])
    else:
        config = _only(models.ModelsConfig, options)
        add(models.measure(config), kind, content["rows"])
        if flags.memory and flags.against == "static":
            print(f"\n{head('memory')}", flush=True)
            content["memory"] = []
            add(models.measure_memory(config), "memory", content["memory"])
    wrong = [row for row in content["rows"] if "ratio" not in row]
    if wrong:
        raise ConvaryError(f"{len(wrong)} of {len(content['rows'])} lines disagree with the reference; see the table")
    return 0
