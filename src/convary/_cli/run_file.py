# SPDX-License-Identifier: Apache-2.0
"""What ``convary export`` says of a file that it wrote: by runtime its error, and its time against static's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from convary._runtimes import Run, Runtime

SECONDS = 2.0  # of timing, for each runtime


def outcomes(
    path: Path,
    model: nn.Module,
    x: Tensor,
    dynamic: Sequence[int] | None,
    runtime: str = "any",
    layers: Path | None = None,
    stage: Callable[[str], None] = lambda name: None,
) -> Iterator[str]:
    """Run a file, and that of the network folded to static layers, by one thread of every runtime that reads it.

    Args:
        path: The file.
        model: The network that it was made from.
        x: Images to run.
        dynamic: The axes that are free in the file.
        runtime: What it was written for.
        layers: The picture of the time of each layer of both files, if it is wanted.
        stage: Takes the name of what is done next.
    """
    import tempfile

    import torch

    import convary
    from convary._runtimes import RefusedError, of_file, opened
    from convary.nn import DynamicLayer

    with torch.no_grad():
        want = model.eval()(x)
    beside = any(isinstance(module, DynamicLayer) for module in model.modules())
    if not beside:
        yield "it has no dynamic layer"
    with tempfile.TemporaryDirectory() as folder:
        static = Path(folder) / path.name
        if beside:
            stage("writing the same network with static layers, to compare")
            convary.export(convary.fold(model, [x]).model, x, static, dynamic=dynamic)
        for name, each in of_file(path, runtime).items():
            stage(f"running both by {name}" if beside else f"running it by {name}")
            try:
                run = opened(each, path, 1, x)
                base = opened(each, static, 1, x) if beside else None
            except RefusedError as refusal:
                hint = "" if dynamic == () else "; it may take a file of one size, for one image: --image"
                yield f"{name}: does not take it: {refusal}{hint}"
                continue
            if run is None:
                yield f"{name}: not run, for it is not installed"
            else:
                with torch.no_grad():
                    got = run(x)
                if got.shape == want.shape:
                    yield f"{name}: {_error(got, want)}{_several(each, run, model, x, dynamic)}{_times(run, base, x)}"
                else:
                    yield f"{name}: WRONG, it answers {tuple(got.shape)} where the network answers {tuple(want.shape)}"
        if layers is not None and beside:
            stage("timing each layer")
            yield _drawn(path, static, x, layers)


def _drawn(path: Path, static: Path, x: Tensor, picture: Path) -> str:
    """Draw where the time of both files goes."""
    from convary._layer_times import layer_times
    from convary.report import draw_layer_times

    draw_layer_times({"static": layer_times(static, x), path.name: layer_times(path, x)}, picture)
    return f"wrote {picture}, the time of each layer of both files"


def _error(got: Tensor, want: Tensor) -> str:
    """How far its scores are from the network's, relative to the largest."""
    change = float((got - want).abs().max() / want.abs().max())
    return f"scores within {change:.1e} of the network's on {len(want)} image{'s' * (len(want) > 1)}"


def _several(runtime: Runtime, run: Run, model: nn.Module, x: Tensor, dynamic: Sequence[int] | None) -> str:
    """Of a file for any batch: how far its scores are for three images, none like another."""
    import torch

    if dynamic is not None and 0 not in dynamic:
        return ""
    images = torch.cat([x, x.flip(-1), x.roll(1, -2)])
    with torch.no_grad():
        want = model(images)
        try:
            got = run(images)
        except runtime.errors() as error:
            return f", but WRONG for {len(images)}: {str(error).splitlines()[0]}"
    if got.shape != want.shape:
        return f", but WRONG for {len(images)}, where it answers {tuple(got.shape)} and the network {tuple(want.shape)}"
    return f", {float((got - want).abs().max() / want.abs().max()):.1e} on {len(images)}"


def _times(run: Run, base: Run | None, x: Tensor) -> str:
    """Its time against that of the static file, in turns."""
    import torch

    from convary.bench.timing import fitting_clock, interleave, one_thread
    from convary.text import milliseconds

    if base is None:
        return ""
    with torch.no_grad(), one_thread():  # torch programs have torch's threads, the others their own
        t: Any = interleave(lambda: run(x), lambda: base(x), seconds=SECONDS, clock=fitting_clock(x.device))
    return (
        f"; {milliseconds(t.ms)}, {t.ratio:.2f} times ({t.low:.2f} to {t.high:.2f}) the {milliseconds(t.base_ms)} "
        "of the static network's file"
    )
