# SPDX-License-Identifier: Apache-2.0
"""``convary export``: a dynamic network as an ONNX file or a torch program, compared with the network it came from."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from convary._cli import export_detector
from convary._cli.console import plain_console
from convary._cli.convert import network
from convary._cli.options import method_name, parse_with_method
from convary._cli.parse import parse
from convary._cli.run_file import outcomes
from convary.errors import ConfigError, TemperatureWarning

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from convary.data.photo_format import PhotoFormat
    from convary.methods import MethodConfig


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a network as ONNX or as a torch program, and say how its dynamic layers were written.

    Then run the file by the runtimes that are installed: how far its scores are from the network's, and its time
    against a static network's file.

    The network is a FILE that convary convert or convary compare wrote, or --model made dynamic with --method, whose
    own options are flags too: convary export --method odconv --help lists them.
    """

    file: Annotated[Positional[Path | None], arg(metavar="FILE")] = None
    """What convary convert wrote, or OUT/METHOD/seed-N/checkpoint.pt of convary compare; or the folder of a detector
    that convary train wrote."""
    out: Path
    """The file to write, by its suffix: .onnx, or .pt2 for torch.export.load."""
    model: str | None = None
    """Instead of FILE: torchvision:NAME or timm:NAME."""
    method: str | None = None
    """Makes that model dynamic: condconv, dyconv, ... Without it the model is exported as it is."""
    weights: str = "pretrained"
    """Of that model. pretrained: the library's own, downloaded. random: untrained. Or a FILE: a state dict."""
    where: str = "paper"
    """Of that model, which layers: as for convary convert."""
    strategy: Literal["auto", "grouped", "outputs", "bmm"] = "auto"
    """How dynamic layers are written. auto: grouped for a fixed batch, else bmm. grouped: a convolution with the mixed
    kernel. bmm: unfolded features, for any batch. outputs: constant weights, K times the arithmetic; for int8."""
    shape: tuple[int, int, int] | None = None
    """Channels, height and width of an image; by default what compare tested on, or 3 224 224."""
    dynamic: tuple[int, ...] | None = None
    """Axes of the input whose size may change; by default all but the channels. --dynamic 0: the batch only."""
    image: bool = False
    """For one image of this shape at a time: nothing may change, and the dynamic layers are ordinary convolutions."""
    runtime: Literal["any", "onnxruntime", "openvino", "convary", "executorch"] = "any"
    """onnxruntime: a file that only onnxruntime on a CPU reads; faster, and for any number of images (--dynamic 0) many
    times so. openvino: one that is faster in OpenVINO, with --image or --dynamic 0. convary: one for runtimes that are
    given convary's native library, for every batch and size. executorch: a .pt2 for its XNNPACK, with --image."""
    bank_dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: banks of kernels in half the bytes, in an .onnx file with --runtime convary."""
    explain: bool = False
    """Write nothing: say how the layers would be written, how many nodes and how large the file would be, and what an
    image is expected to cost."""
    run: bool = True
    """Run the file by every runtime that is installed, and a static network's of the same size beside it. --no-run only
    writes it."""
    layers: Path | None = None
    """Draw the time of each layer of an .onnx file beside the static network's, by onnxruntime: .svg, .png or .pdf."""


def run(argv: Sequence[str]) -> int:
    """Parse, build, export, run the file, print."""
    config: MethodConfig | None = None
    if method_name(argv) is None:
        flags = parse(Export, argv, "convary export")
    else:
        flags, config = parse_with_method(Export, argv, "convary export")
    _check(flags, config)
    if (folder := export_detector.run_folder(flags.file)) is not None:
        return _detector(folder, flags)
    from rich.markup import escape

    console = plain_console(soft_wrap=True)
    with warnings.catch_warnings(record=True) as told, console.status("reading the network") as stage:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", TemperatureWarning)
        for line in _lines(flags, config, lambda name: stage.update(escape(name))):
            console.print(escape(line))
    for message in dict.fromkeys(str(warning.message) for warning in told):
        console.print(f"[yellow]note[/yellow]: {escape(message)}")
    return 0


def _lines(flags: Export, config: MethodConfig | None, stage: Callable[[str], None]) -> Iterator[str]:
    """What is said, each line when it is known: the forms before the file is written, then what runs it.

    Args:
        flags: What is wanted.
        config: The method's options.
        stage: Takes the name of what is done next.
    """
    import torch

    source = _source(flags, config)
    model, shape = source.model, flags.shape or source.shape
    photos = _resized(source, shape)
    dynamic = () if flags.image else flags.dynamic
    x = torch.randn(1 if flags.image else 2, *shape, generator=torch.Generator().manual_seed(0))
    forms = yield from _file_lines(flags, model, x, {} if photos is None else photos.notes(), stage)
    if flags.explain:
        return
    if flags.run:
        x = x if dynamic is not None and 0 not in dynamic else x[:1]
        yield from outcomes(flags.out, model, x, dynamic, flags.runtime, flags.layers, stage)
        if flags.runtime == "any" and flags.out.suffix == ".onnx" and forms:
            yield "faster in onnxruntime: --runtime onnxruntime, or --runtime convary with a library beside the file"
            if flags.image or flags.dynamic == (0,):
                yield "faster in OpenVINO: --runtime openvino"
            elif flags.dynamic is None:
                yield "faster still for images of one size: --dynamic 0, or --image for one of them at a time"
    yield from _classes(flags.out, source, photos)


def _file_lines(
    flags: Export, model: nn.Module, x: Tensor, notes: dict[str, str], stage: Callable[[str], None]
) -> Generator[str, None, bool]:
    """Write the file, or one that is thrown away where it is only asked for; answers whether it has dynamic layers."""
    import tempfile

    import torch

    from convary._export import recorded
    from convary._exported import EACH_IMAGE

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / flags.out.name if flags.explain else flags.out
        stage(f"recording {type(model).__name__}")
        program, write = recorded(
            model, x, path, strategy=flags.strategy, dynamic=() if flags.image else flags.dynamic,
            runtime=flags.runtime, bank_dtype=getattr(torch, flags.bank_dtype), notes=notes,
        )  # fmt: skip
        forms = list(_forms(program))
        yield from forms
        if program.graph_module.meta[EACH_IMAGE]:
            yield "any number of images, one after the other: the graph is of one image, in a loop"
        if forms:
            yield from _expected(model, x, flags)
        stage("trying the file" if flags.explain else f"writing {flags.out}")
        write()
        size = _size(path)
        yield f"{flags.out} would have {size}; nothing was written" if flags.explain else f"wrote {path} ({size})"
    return bool(forms)


def _detector(folder: Path, flags: Export) -> int:
    """A detector has one form of file: what asks for another is refused."""
    for field in dataclasses.fields(flags):
        if field.name not in export_detector.FREE and getattr(flags, field.name) != field.default:
            raise ConfigError(f"--{field.name.replace('_', '-')} is for classifiers; {folder} is of a system")
    console = plain_console(soft_wrap=True)
    for line in export_detector.lines(folder, flags.out, check=flags.run):
        console.print(line, markup=False)
    return 0


def _check(flags: Export, config: MethodConfig | None) -> None:
    """Raise ConfigError for flags that don't go together."""
    if min(flags.shape or (1,)) < 1:
        raise ConfigError(f"--shape must be at least 1; got {flags.shape}")
    if (flags.file is None) == (flags.model is None):
        raise ConfigError("convary export wants FILE or --model, and not both; see convary export --help")
    if flags.file is not None and config is not None:
        raise ConfigError(f"--method goes with --model; {flags.file} says itself what it is")
    if flags.image and flags.dynamic:
        raise ConfigError(f"--image is for one image of one shape: --dynamic {flags.dynamic} can't go with it")
    if flags.layers is not None and (not flags.run or flags.explain or flags.out.suffix != ".onnx"):
        raise ConfigError("--layers wants an .onnx file that is run; leave out --no-run and --explain")
    if flags.layers is not None and flags.layers.suffix not in (".svg", ".png", ".pdf"):
        raise ConfigError(f"--layers must end in .svg, .png or .pdf; got {flags.layers}")
    if any(not 0 <= axis < 4 for axis in flags.dynamic or ()):
        raise ConfigError(f"--dynamic takes axes of the input, 0 to 3; got {flags.dynamic}")


@dataclass(frozen=True)
class Source:
    """A network in eval mode, and what is known of its images: a shape, or all that is said in the file."""

    model: nn.Module
    shape: tuple[int, int, int] = (3, 224, 224)
    format: PhotoFormat | None = None


def _source(flags: Export, config: MethodConfig | None) -> Source:
    if flags.file is not None:
        return _read(flags.file)
    import convary
    from convary.selector import selector

    model = network(str(flags.model), flags.weights).eval()
    if config is not None:
        model = convary.convert(model, config, selector(flags.where, config))
    return Source(model)


def _read(path: Path) -> Source:
    from convary._checkpoint import contents
    from convary.models import fold_excitation, restore

    model = fold_excitation(restore(path))
    _, held = contents(path)
    if "architecture" not in held:  # convary convert wrote it
        return Source(model)
    from convary.train.classifier import photo_format

    found = photo_format(held)
    return Source(model, tuple(held["architecture"]["shape"]) if found is None else found.shape, found)


def _resized(source: Source, shape: tuple[int, int, int]) -> PhotoFormat | None:
    """The format of photographs for a file of images of this shape; None where nobody knows, or they are no squares."""
    found = source.format
    if found is None or shape[0] != found.shape[0] or shape[1] != shape[2]:
        return None
    return dataclasses.replace(found, middle=dataclasses.replace(found.middle, size=shape[1]))


def _forms(program: ExportedProgram) -> Iterator[str]:
    """How many layers were written in which way, and which."""
    from convary import export_forms

    by_form: dict[tuple[str, str, str], list[str]] = {}
    for layer, *form in export_forms(program):
        by_form.setdefault((form[0], form[1], form[2]), []).append(layer or "the layer")
    for (op, strategy, reason), layers in by_form.items():
        ends = layers[0] if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"
        yield f"{len(layers):>4} x {strategy} ({op}): {reason}; {ends}"


def _expected(model: nn.Module, x: Tensor, flags: Export) -> Iterator[str]:
    """What can be said of its cost before it is there, and what is meant to read it."""
    from convary import summary
    from convary._runtimes import of_file

    found = summary(model, x[:1])
    added = found.routing + found.assembly
    rest, size = found.macs - added, 4 * found.params / 2**20
    yield (
        f"for an image {_amount(found.macs / 1e6)} million multiply-adds, {found.macs / rest:.2f} times a static "
        f"network's, and {_amount(size)} MiB of weights to read; for {' and '.join(of_file(flags.out, flags.runtime))}"
    )


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _size(path: Path) -> str:
    size = sum(part.stat().st_size for part in (path, path.with_name(f"{path.name}.data")) if part.exists())
    nodes = ""
    if path.suffix == ".onnx":
        from convary._exported import onnx_nodes

        nodes = f", {len(onnx_nodes(path))} nodes"
    return f"{size / 1024:,.0f} KiB{nodes}"


def _classes(path: Path, source: Source, photos: PhotoFormat | None) -> Iterator[str]:
    """Whether the file says the classes of photographs, where the network's own does."""
    if photos is not None:
        yield f"it knows its {len(photos.classes)} classes: convary predict {path} PHOTO..."
    elif source.format is not None:
        yield "it does not say its classes: photographs are seen as squares, which --shape is not"
