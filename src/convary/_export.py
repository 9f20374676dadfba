# SPDX-License-Identifier: Apache-2.0
"""Exporting a model to ONNX or ``torch.export``: one graph for every batch and size."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from convary import ops
from convary._schedule import tempered_routers
from convary.errors import ConfigError, ExportError, StrategyError, TemperatureWarning
from convary.extras import require
from convary.files import staged
from convary.nn import evaluating, hooked

Strategy = Literal["bmm", "outputs"]
SUFFIXES = (".onnx", ".pt2")
_NO_LIMIT = 1 << 40


def export(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    path: str | Path | None = None,
    *,
    strategy: Strategy = "bmm",
    dynamic: Sequence[int] | None = None,
) -> torch.export.ExportedProgram:
    """Record a model in eval mode as a graph of plain torch operations, and write it as ONNX or as a torch program.

    No size is written into the graph: one file serves every batch, and no convolution has the batch in its groups.

    Args:
        model: Any model; its parameters are not changed.
        example: The model's input (B, C, *S), or a tuple of inputs. A batch of one is repeated: a recorder takes a 1
            for a constant.
        path: ``"model.onnx"`` for ONNX, ``"model.pt2"`` for ``torch.export.load``; None writes nothing.
        strategy: How dynamic layers are written. ``"bmm"``: the kernels are mixed in the graph, and a matrix product
            applies them; the arithmetic of one convolution. ``"outputs"``: convolutions with constant weights whose
            outputs are mixed; K times the arithmetic, but what int8 quantisation and compilers for small devices need.
        dynamic: Axes of the inputs whose size may change; by default all but the channels: 0, 2, 3, ...

    Returns:
        The recorded program. ``program.module()`` is callable.

    Raises:
        ConfigError: an unknown strategy or a path of another kind.
        ExportError: the target can't hold the model; says which operation of which layer, and what to choose instead.
        MissingExtraError: ONNX is asked for but not installed.

    Warns:
        TemperatureWarning: routers are hotter than their final temperature, which the graph then keeps.

    >>> layer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    >>> program = export(layer, torch.randn(1, 3, 8, 8))
    >>> program.module()(torch.randn(5, 3, 12, 10)).shape
    torch.Size([5, 4, 10, 8])
    """
    path = None if path is None else Path(path)
    if path is not None and path.suffix not in SUFFIXES:
        raise ConfigError(f"path must end in {' (ONNX) or '.join(SUFFIXES)} (torch.export); got {str(path)!r}")
    if strategy not in get_args(Strategy):
        raise ConfigError(f"strategy must be one of {', '.join(get_args(Strategy))}; got {strategy!r}")
    if path is not None and path.suffix == ".onnx":
        require("convary.export to ONNX", "export", "onnx", "onnxscript")
    _warn_if_hot(model)
    inputs = example if isinstance(example, tuple) else (example,)
    axes = [tuple(a for a in range(x.ndim) if (a != 1 if dynamic is None else a in dynamic)) for x in inputs]
    program = _record(model, inputs, axes, strategy)
    if path is not None:
        names = tuple(_axis_names(x.ndim, free, i) for i, (x, free) in enumerate(zip(inputs, axes, strict=True)))
        _write(program, path, model, names)
    return program


def _record(
    model: nn.Module, inputs: tuple[Tensor, ...], axes: list[tuple[int, ...]], strategy: Strategy
) -> torch.export.ExportedProgram:
    """The program; which layer was running is known when the recording fails."""
    shapes = tuple(dict.fromkeys(free, torch.export.Dim.DYNAMIC) for free in axes)
    inputs = tuple(
        torch.cat([x, x]) if 0 in free and x.shape[0] == 1 else x for x, free in zip(inputs, axes, strict=True)
    )
    forced = None if strategy == "bmm" else strategy  # each op's portable one, which for mixed kernels is bmm
    with _running(model) as layers, evaluating(model), torch.no_grad(), ops.strategy(forced):
        try:
            return torch.export.export(model, inputs, dynamic_shapes=shapes)
        except StrategyError as error:
            raise ExportError(
                f"{_name(model, layers)} has no constant weights to export: {error}; export with strategy='bmm'"
            ) from error
        except RuntimeError as error:  # torch.export raises several kinds, all of them RuntimeErrors
            reason = str(error).strip().partition("\n\n")[0]
            raise ExportError(
                f"torch.export can't record {_name(model, layers)}: {reason}\n"
                "Let sizes that the model fixes stay fixed, as in dynamic=(0,) or dynamic=(), or exchange that layer."
            ) from error


def _axis_names(ndim: int, axes: tuple[int, ...], position: int) -> dict[int, str]:
    """What ONNX calls the free axes of an input."""
    spatial = {3: ("length",), 4: ("height", "width"), 5: ("depth", "height", "width")}.get(ndim, ())
    known = dict(enumerate(("batch", "channels", *spatial)))
    return {axis: known.get(axis, f"size{axis}") + (f"_{position}" if position else "") for axis in axes}


@contextlib.contextmanager
def _running(model: nn.Module) -> Iterator[list[nn.Module]]:
    """The modules that are running, outermost first; one whose forward raised is still in the list afterwards."""
    stack: list[nn.Module] = []
    before = (m.register_forward_pre_hook(lambda module, args: stack.append(module)) for m in model.modules())
    after = (m.register_forward_hook(lambda module, args, out: stack.remove(module)) for m in model.modules())
    with hooked(before), hooked(after):
        yield stack


def _name(model: nn.Module, layers: list[nn.Module]) -> str:
    layer = layers[-1] if layers else model
    name = next((name for name, module in model.named_modules() if module is layer), "")
    return f"layer {name!r} ({type(layer).__name__})" if name else f"the model ({type(layer).__name__})"


def _write(
    program: torch.export.ExportedProgram, path: Path, model: nn.Module, names: tuple[dict[int, str], ...]
) -> None:
    """Large ONNX models are several files."""
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {str(path.parent)!r} to write {path.name!r} to; create it first")
    with staged(path) as target:
        if path.suffix == ".pt2":
            torch.export.save(program, target)
        else:
            _to_onnx(program, model, names).save(str(target))


def _to_onnx(program: torch.export.ExportedProgram, model: nn.Module, names: tuple[dict[int, str], ...]) -> Any:
    try:
        converted = torch.onnx.export(program, dynamo=True, verbose=False, dynamic_shapes=names)
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        op = re.search(r"op='([\w.]+)'", str(cause))
        if op is None:
            raise ExportError(f"ONNX can't hold {type(model).__name__}: {cause}; export to a .pt2 file") from error
        raise ExportError(
            f"ONNX has no operator for {op[1]}, which {_user(program, op[1])} runs; export to a .pt2 file, "
            "or exchange that layer"
        ) from error
    assert converted is not None  # with dynamo=True
    # torch folds small constants only, but a quantiser sees a constant weight only where nothing reshapes it.
    from onnxscript import optimizer

    optimizer.optimize(converted.model, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT)
    return converted


def _user(program: torch.export.ExportedProgram, op: str) -> str:
    """The innermost module that runs an operation, from the stack that the recorder noted."""
    for node in program.graph.nodes:
        if str(node.target).startswith(op) and node.meta.get("nn_module_stack"):
            name, kind = list(node.meta["nn_module_stack"].values())[-1]
            return f"layer {name!r} ({str(kind).rpartition('.')[2]})"
    return "a layer"


def _warn_if_hot(model: nn.Module) -> None:
    hot = [(float(r.temperature), r.final_temperature) for r in tempered_routers(model)]  # type: ignore[arg-type]
    hot = [(now, final) for now, final in hot if now > final]
    if hot:
        now, final = max(hot)
        warnings.warn(
            f"exporting routers at temperature {now:g}, above the final {final:g}, which the graph keeps; "
            f"convary.set_temperature(model, {final}) first",
            TemperatureWarning,
            stacklevel=3,
        )
