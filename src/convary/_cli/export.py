# SPDX-License-Identifier: Apache-2.0
"""``convary export``: a dynamic network as an ONNX file or a torch program, compared with the network it came from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from convary._cli.console import plain_console
from convary._cli.convert import network
from convary._cli.options import method_name, parse_with_method
from convary._cli.parse import parse
from convary.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from convary.methods import MethodConfig


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a network as ONNX or as a torch program, and say how its dynamic layers were written.

    Then run the file: how far its scores are from the network's, and its time against a static network's file.

    The network is a FILE that convary convert or convary compare wrote, or --model made dynamic with --method, whose
    own options are flags too: convary export --method odconv --help lists them.
    """

    file: Annotated[Positional[Path | None], arg(metavar="FILE")] = None
    """What convary convert wrote, or OUT/METHOD/seed-N/checkpoint.pt of convary compare."""
    out: Path
    """The file to write, by its suffix: .onnx, or .pt2 for torch.export.load."""
    model: str | None = None
    """Instead of FILE: torchvision:NAME or timm:NAME."""
    method: str | None = None
    """Makes that model dynamic: condconv, dyconv, ... None exports it as it is."""
    weights: str = "pretrained"
    """Of that model. pretrained: the library's own, downloaded. random: untrained. Or a FILE: a state dict."""
    where: str = "paper"
    """Of that model, which layers: as for convary convert."""
    strategy: Literal["auto", "grouped", "outputs", "bmm"] = "auto"
    """How dynamic layers are written. auto: grouped for a fixed batch, else bmm. grouped: a convolution with the mixed
    kernel. bmm: unfolded features, for any batch. outputs: constant weights, K times the arithmetic; for int8."""
    shape: tuple[int, int, int] | None = None
    """Channels, height and width of an image; None is what compare trained on, or 3 224 224."""
    dynamic: tuple[int, ...] | None = None
    """Axes of the input whose size may change; None is all but the channels. --dynamic 0: the batch only."""
    image: bool = False
    """For one image of this shape at a time: nothing may change, and the dynamic layers are ordinary convolutions."""
    runtime: Literal["any", "onnxruntime", "convary"] = "any"
    """onnxruntime: a file that only onnxruntime on a CPU reads, faster where the batch is fixed. convary: one for
    runtimes that are given convary's native library, the fastest on a CPU."""
    run: bool = True
    """Run the file, and a static network's of the same size beside it. --no-run only writes it."""


def run(argv: Sequence[str]) -> int:
    """Parse, build, export, run the file, print."""
    config: MethodConfig | None = None
    if method_name(argv) is None:
        flags = parse(Export, argv, "convary export")
    else:
        flags, config = parse_with_method(Export, argv, "convary export")
    if min(flags.shape or (1,)) < 1:
        raise ConfigError(f"--shape must be at least 1; got {flags.shape}")
    if (flags.file is None) == (flags.model is None):
        raise ConfigError("convary export wants FILE or --model, and not both; see convary export --help")
    if flags.file is not None and config is not None:
        raise ConfigError(f"--method goes with --model; {flags.file} says itself what it is")

    import torch
    from rich.markup import escape

    import convary

    model, shape = _built(flags, config)
    dynamic = () if flags.image else flags.dynamic
    x = torch.randn(1 if flags.image else 2, *(flags.shape or shape), generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", convary.TemperatureWarning)
        if flags.image and flags.dynamic:
            raise ConfigError(f"--image is for one image of one shape: --dynamic {flags.dynamic} can't go with it")
        if any(not 0 <= axis < x.ndim for axis in flags.dynamic or ()):
            raise ConfigError(f"--dynamic takes axes of the input, 0 to {x.ndim - 1}; got {flags.dynamic}")
        convary.export(model, x, flags.out, strategy=flags.strategy, dynamic=dynamic, runtime=flags.runtime)
        x = x if dynamic is not None and 0 not in dynamic else x[:1]
        checked = [_checked(flags.out, model, x), _against_static(flags.out, model, x, dynamic)] if flags.run else []
    console = plain_console(soft_wrap=True)
    for line in _forms(flags.out):
        console.print(escape(line))
    size = sum(
        part.stat().st_size for part in (flags.out, flags.out.with_name(f"{flags.out.name}.data")) if part.exists()
    )
    console.print(f"wrote [bold]{escape(str(flags.out))}[/bold] ({size / 1024:,.0f} KiB){_nodes(flags.out)}")
    for line in checked:
        console.print(escape(line))
    for message in dict.fromkeys(str(warning.message) for warning in told):
        console.print(f"[yellow]note[/yellow]: {escape(message)}")
    return 0


def _built(flags: Export, config: MethodConfig | None) -> tuple[nn.Module, tuple[int, int, int]]:
    """The network in eval mode, and the shape of its images where nobody says another."""
    import convary
    from convary.selector import selector

    usual = (3, 224, 224)
    if flags.file is not None:
        return _read(flags.file, usual)
    model = network(str(flags.model), flags.weights).eval()
    if config is not None:
        model = convary.convert(model, config, selector(flags.where, config))
    return model, usual


def _read(path: Path, usual: tuple[int, int, int]) -> tuple[nn.Module, tuple[int, int, int]]:
    from convary.models import fold_excitation, restore

    try:
        return restore(path), usual
    except CheckpointError as error:
        from convary.train.checkpoint import load_model, read_checkpoint

        try:
            shape = read_checkpoint(path)["architecture"]["shape"]
        except CheckpointError:
            raise error from None
        return fold_excitation(load_model(path)), tuple(shape)


def _forms(path: Path) -> Iterator[str]:
    """How many layers were written in which way, and which."""
    from convary import export_forms

    by_form: dict[tuple[str, str, str], list[str]] = {}
    for layer, *form in export_forms(path):
        by_form.setdefault((form[0], form[1], form[2]), []).append(layer or "the layer")
    for (op, strategy, reason), layers in by_form.items():
        ends = layers[0] if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"
        yield f"{len(layers):>4} x {strategy} ({op}): {reason}; {ends}"


def _nodes(path: Path) -> str:
    if path.suffix != ".onnx":
        return ""
    import onnx

    return f", {len(onnx.load(path, load_external_data=False).graph.node)} nodes"


def _checked(path: Path, model: nn.Module, x: Tensor) -> str:
    """Runs the file on x; how far from the network's its output is, relative to the largest."""
    import torch

    if (runner := _runner(path)) is None:
        return "not run: onnxruntime is not installed"
    run, by = runner
    with torch.no_grad():
        want, got = model.eval()(x), run(x)
    change = float((got - want).abs().max() / want.abs().max())
    return f"run by {by} on {len(x)} image{'s' * (len(x) > 1)}: scores within {change:.1e} of the network's"


def _against_static(path: Path, model: nn.Module, x: Tensor, dynamic: tuple[int, ...] | None) -> str:
    """Times the file and that of the network folded to static layers, in turns, by one thread."""
    import tempfile

    import torch

    import convary
    from convary.bench.timing import interleave
    from convary.nn import DynamicLayer

    if not any(isinstance(module, DynamicLayer) for module in model.modules()):
        return "it has no dynamic layer"
    with tempfile.TemporaryDirectory() as folder:
        static = Path(folder) / path.name
        convary.export(convary.fold(model, [x]).model, x, static, dynamic=dynamic)
        ours, base = _runner(path), _runner(static)
        if ours is None or base is None:
            return "not timed: onnxruntime is not installed"
        with torch.no_grad():
            t = interleave(lambda: ours[0](x), lambda: base[0](x), seconds=3.0)
    return (
        f"{t.ms:.1f} ms, {t.ratio:.2f} times ({t.low:.2f} to {t.high:.2f}) the {t.base_ms:.1f} ms of the static "
        f"network's file"
    )


def _runner(path: Path) -> tuple[Callable[[Tensor], Tensor], str] | None:
    """What runs a file, and its name; None where onnxruntime is not installed."""
    import torch

    import convary

    if path.suffix == ".pt2":
        return torch.export.load(path).module(), "torch"
    try:
        import onnx
        import onnxruntime
    except ModuleNotFoundError:
        return None
    from convary._custom_ops import DOMAIN

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if any(opset.domain == DOMAIN for opset in onnx.load(path, load_external_data=False).opset_import):
        options.register_custom_ops_library(convary.custom_ops_library())
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]), "onnxruntime"
