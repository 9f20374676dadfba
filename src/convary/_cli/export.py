# SPDX-License-Identifier: Apache-2.0
"""``convary export``: a dynamic network as an ONNX file or a torch program, compared with the network it came from."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from convary._cli.convert import network
from convary._cli.options import method_name, parse_with_method
from convary._cli.parse import parse
from convary.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from convary.methods import MethodConfig


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a network as ONNX or as a torch program, run the file, and say how far its scores are from the network's.

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
    strategy: Literal["bmm", "outputs"] = "bmm"
    """bmm: the kernels are mixed in the graph. outputs: constant weights, K times the arithmetic; for int8."""
    shape: tuple[int, int, int] | None = None
    """Channels, height and width of an image; None is what compare trained on, or 3 224 224."""
    dynamic: tuple[int, ...] | None = None
    """Axes of the input whose size may change; None is all but the channels. --dynamic 0: the batch only."""


def run(argv: Sequence[str]) -> int:
    """Parse, build, export, run the file, print."""
    config: MethodConfig | None = None
    if method_name(argv) is None:
        flags = parse(Export, argv, "convary export")
    else:
        flags, config = parse_with_method(Export, argv, "convary export")
    if (flags.file is None) == (flags.model is None):
        raise ConfigError("convary export wants FILE or --model, and not both; see convary export --help")
    if flags.file is not None and config is not None:
        raise ConfigError(f"--method goes with --model; {flags.file} says itself what it is")

    import torch
    from rich.console import Console
    from rich.markup import escape

    import convary

    model, shape = _built(flags, config)
    x = torch.randn(2, *(flags.shape or shape), generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", convary.TemperatureWarning)
        if any(not 0 <= axis < x.ndim for axis in flags.dynamic or ()):
            raise ConfigError(f"--dynamic takes axes of the input, 0 to {x.ndim - 1}; got {flags.dynamic}")
        convary.export(model, x, flags.out, strategy=flags.strategy, dynamic=flags.dynamic)
        checked = _checked(flags.out, model, x if flags.dynamic is not None and 0 not in flags.dynamic else x[:1])
    console = Console(highlight=False, soft_wrap=True)
    size = sum(
        part.stat().st_size for part in (flags.out, flags.out.with_name(f"{flags.out.name}.data")) if part.exists()
    )
    console.print(f"wrote [bold]{escape(str(flags.out))}[/bold] ({size / 1024:,.0f} KiB), {checked}")
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


def _checked(path: Path, model: nn.Module, x: Tensor) -> str:
    """Runs the file on x; how far from the network's its output is, relative to the largest."""
    import torch

    with torch.no_grad():
        want = model.eval()(x)
    if path.suffix == ".pt2":
        got, by = torch.export.load(path).module()(x), "torch"
    else:
        try:
            import onnxruntime
        except ModuleNotFoundError:
            return "not run: onnxruntime is not installed"
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
        by = "onnxruntime"
    change = float((got - want).abs().max() / want.abs().max())
    return f"run by {by} on {len(x)} image{'s' * (len(x) > 1)}: scores within {change:.1e} of the network's"
