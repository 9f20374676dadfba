# SPDX-License-Identifier: Apache-2.0
"""Exporting a model to ONNX or ``torch.export``: one graph for every batch and size."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from convary import ops
from convary._blocked import block
from convary._chained import chain
from convary._custom_ops import narrow_banks
from convary._export_request import Runtime, Strategy, check_axes, check_form, check_free, check_notes
from convary._exported import EACH_IMAGE, FORMS, ExportForm
from convary._free_sizes import check_sizes
from convary._lean import lean
from convary._onnx import spell_out, to_onnx
from convary._per_image import is_separable, per_image
from convary._schedule import tempered_routers
from convary._xnnpack import without_computed_kernels
from convary.batches import input_like, taken
from convary.errors import ConfigError, DtypeError, ExportError, StrategyError, TemperatureWarning
from convary.files import staged
from convary.nn import Router, hooked
from convary.ops import native, tracing
from convary.ops.dispatch import listening


def export(
    model: nn.Module,
    example: Tensor | Sequence[int] | tuple[Tensor, ...],
    path: str | Path | None = None,
    *,
    strategy: Strategy = "auto",
    dynamic: Sequence[int] | None = None,
    runtime: Runtime = "any",
    bank_dtype: torch.dtype = torch.float32,
    notes: Mapping[str, str] | None = None,
) -> torch.export.ExportedProgram:
    """Record a model in eval mode as a graph of plain torch operations, and write it as ONNX or as a torch program.

    By default no size is written into the graph: one file serves every batch and size, and no convolution has the batch
    in its groups. A model that fixes its size, as one that flattens its features does, is refused: it wants
    ``dynamic=(0,)``. A file for one image at a time, ``dynamic=()`` with an example of one, is several times as fast:
    its dynamic layers are ordinary convolutions, whose kernel is mixed before.

    Normalisations, temperatures and scales are folded into the layers before them where that is exact.

    Args:
        model: Any model; its parameters are not changed.
        example: The model's input (B, C, *S), its shape, or a tuple of inputs. A batch of one that is free is repeated:
            a recorder takes a 1 for a constant.
        path: ``"model.onnx"`` for ONNX, ``"model.pt2"`` for ``torch.export.load``; None writes nothing.
        strategy: How dynamic layers are written. ``"auto"``: ``"grouped"`` where the batch is fixed, else ``"bmm"``.
            ``"grouped"``: the kernels are mixed in the graph, and a convolution takes them. ``"bmm"``: a matrix product
            applies them to the unfolded features, for any batch. ``"outputs"``: convolutions with constant weights
            whose outputs are mixed; K times the arithmetic, but what int8 quantisation and compilers for small devices
            need.
        dynamic: Axes of the inputs whose size may change; by default all but the channels: 0, 2, 3, ...
        runtime: ``"onnxruntime"`` writes an ONNX file that only onnxruntime on a CPU reads: depthwise and large dense
            layers with a mixed kernel use its own operators for blocked channels. ``"openvino"`` is an ONNX file for
            images of one size whose kernels are mixed as OpenVINO does it fast; onnxruntime reads it too. Both are
            faster than ``"any"``, which every runtime reads, and many times so where the batch is free: then they hold
            the graph of one image in a loop over the images, if the model makes of several what it makes of each.
            ``"convary"`` keeps convary's native kernels, routers included, as operators, for any batch and size: a
            ``.pt2`` file then runs where convary is imported, an ONNX file in an onnxruntime that is given
            :func:`custom_ops_library`. In float32, in one or two dimensions. ``"executorch"`` is a program for
            ExecuTorch with XNNPACK, for one image of one size: no convolution is left whose kernel is computed, which
            it has slow code for.
        bank_dtype: ``torch.bfloat16`` stores banks in half the bytes, in an ONNX file with ``runtime="convary"``: they
            are rounded once to 8 bits of precision, and mixed and applied in float32.
        notes: More to write into the file's metadata, by name. ``convary.data.DataSet.photo_format.notes()`` are the
            classes and what a photograph must look like, for ``convary predict`` of the file.

    Returns:
        The recorded program. ``program.module()`` is callable. Where a file loops over images it is that of one.

    Raises:
        ConfigError: an unknown strategy or runtime, axes that no input has, a path of another kind, or notes that
            are no text.
        ShapeError, DtypeError: the model can't take the example.
        ExportError: the target can't hold the model; says which operation of which layer, and what to choose instead.
        MissingExtraError: ONNX is asked for but not installed.

    Warns:
        TemperatureWarning: routers are hotter than their final temperature, which the graph then keeps.

    >>> layer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    >>> program = export(layer, torch.randn(1, 3, 8, 8))
    >>> program.module()(torch.randn(5, 3, 12, 10)).shape
    torch.Size([5, 4, 10, 8])
    """
    how = {"strategy": strategy, "dynamic": dynamic, "runtime": runtime, "bank_dtype": bank_dtype, "notes": notes}
    program, write = recorded(model, example, path, **how)
    write()
    return program


def recorded(
    model: nn.Module,
    example: Any,
    path: str | Path | None,
    *,
    strategy: Strategy,
    dynamic: Sequence[int] | None,
    runtime: Runtime,
    bank_dtype: torch.dtype,
    notes: Mapping[str, str] | None,
) -> tuple[torch.export.ExportedProgram, Callable[[], None]]:
    """As :func:`export`, but the file is written when what comes beside the program is called."""
    path = None if path is None else Path(path)
    check_form(path, strategy, runtime, bank_dtype)
    check_notes(notes or {})
    _warn_if_hot(model)
    inputs = _inputs(model, example)
    check_axes(dynamic, max(x.ndim for x in inputs))
    axes = [tuple(a for a in range(x.ndim) if (a != 1 if dynamic is None else a in dynamic)) for x in inputs]
    check_free(runtime, [len(x) for x in inputs], axes)
    with _keeping_operators(runtime == "convary", strategy):
        loop = runtime in ("onnxruntime", "openvino") and strategy == "auto" and all(0 in free for free in axes)
        if runtime == "onnxruntime" and any(x.dtype == torch.float64 for x in inputs):
            loop = False  # it has no convolution for them, but products
        program = _record(model, inputs, axes, strategy, loop=loop)
    held = program.graph_module.meta
    if runtime == "openvino" and loop and held[FORMS] and not held[EACH_IMAGE]:
        raise ExportError(
            f"runtime={runtime!r} takes images one by one, but {type(model).__name__} makes something else of two "
            "together than of each of them; give runtime='any'"
        )
    if runtime == "executorch":
        program = without_computed_kernels(program, inputs)

    def write() -> None:
        if path is None:
            return
        free_axes = [free[1:] for free in axes] if held[EACH_IMAGE] else axes
        names = tuple(_axis_names(x.ndim, free, i) for i, (x, free) in enumerate(zip(inputs, free_axes, strict=True)))
        _write(program, path, model, names, runtime, bank_dtype, notes or {})

    return program, write


@contextlib.contextmanager
def _keeping_operators(kept: bool, strategy: str) -> Iterator[None]:
    """Let the program that is recorded inside hold convary's operators."""
    if kept and strategy != "auto":
        raise ConfigError(f"runtime='convary' keeps the native kernels, so strategy must be 'auto'; got {strategy!r}")
    if kept and (absent := native.available()) is not None:
        raise ConfigError(f"runtime='convary' wants the native kernels, which are absent: {absent}")
    token = tracing.kept.set(kept)
    try:
        yield
    finally:
        tracing.kept.reset(token)


def _inputs(model: nn.Module, example: Any) -> tuple[Tensor, ...]:
    example = input_like(model, example)
    inputs = example if isinstance(example, tuple) else (example,)
    for x in inputs:
        if not isinstance(x, Tensor):
            raise DtypeError(
                f"export wants a tensor, a tuple of tensors or a shape; got a {type(x).__name__}; give "
                "torch.zeros(1, 3, 224, 224), say"
            )
    return inputs


def _record(
    model: nn.Module, inputs: tuple[Tensor, ...], axes: list[tuple[int, ...]], strategy: Strategy, *, loop: bool
) -> torch.export.ExportedProgram:
    """The program; which layer was running is known when the recording fails.

    With ``loop`` it is of one image and run for each, if the model has dynamic layers and tells images apart.
    """
    forced = None if strategy == "auto" else strategy
    given = (model, inputs, axes, strategy)
    with taken(model, inputs[0]):
        model = lean(model, inputs)
    if loop := loop and is_separable(model, inputs):
        inputs, axes = tuple(x[:1] for x in inputs), [free[1:] for free in axes]
    shapes = tuple(dict.fromkeys(free, torch.export.Dim.DYNAMIC) for free in axes)
    inputs = tuple(
        torch.cat([x, x]) if 0 in free and x.shape[0] == 1 else x for x, free in zip(inputs, axes, strict=True)
    )
    check_sizes(model, inputs, axes)
    forms: dict[ExportForm, None] = {}  # a recorder may run a layer twice

    def note(op: str, strategy: str, reason: str) -> None:
        forms[ExportForm(_path(model, layers), op, strategy, reason)] = None

    with _running(model) as layers, torch.no_grad(), ops.strategy(forced), listening(note):
        try:
            program = torch.export.export(model, inputs, dynamic_shapes=shapes)
        except StrategyError as error:
            lacks = "has no constant weights to export" if strategy == "outputs" else f"has no form {strategy!r}"
            reason, _, able = str(error).partition("; use one of ")  # the operator's, of which a file has not all
            others = " or ".join(repr(name) for name in get_args(Strategy) if name in ("auto", *able.split(", ")))
            raise ExportError(f"{_name(model, layers)} {lacks}: {reason}; take strategy={others}") from error
        except RuntimeError as error:  # torch.export raises several kinds, all of them RuntimeErrors
            reason = str(error).strip().partition("\n\n")[0]
            raise ExportError(
                f"torch.export can't record {_name(model, layers)}: {reason}\n"
                "Let sizes that the model fixes stay fixed, as in dynamic=(0,) or dynamic=(), or exchange that layer."
            ) from error
    if loop and not forms:
        return _record(*given, loop=False)
    program.graph_module.meta.update({FORMS: list(forms), EACH_IMAGE: loop})
    return program


def _axis_names(ndim: int, axes: tuple[int, ...], position: int) -> dict[int, str]:
    """What ONNX calls the free axes of an input."""
    spatial = {3: ("length",), 4: ("height", "width"), 5: ("depth", "height", "width")}.get(ndim, ())
    known = dict(enumerate(("batch", "channels", *spatial)))
    return {axis: known.get(axis, f"size{axis}") + (f"_{position}" if position else "") for axis in axes}


@contextlib.contextmanager
def _running(model: nn.Module) -> Iterator[list[nn.Module]]:
    """The modules that are running, outermost first; one whose forward raised is still in the list afterwards."""
    stack: list[nn.Module] = []
    inner = {m for router in model.modules() if isinstance(router, Router) for m in router.modules() if m is not router}
    seen = [m for m in model.modules() if m not in inner]  # a router whose layers are watched is no single operator
    before = (m.register_forward_pre_hook(lambda module, args: stack.append(module)) for m in seen)
    after = (m.register_forward_hook(lambda module, args, out: stack.remove(module)) for m in seen)
    with hooked(before), hooked(after):
        yield stack


def _path(model: nn.Module, layers: list[nn.Module]) -> str:
    layer = layers[-1] if layers else model
    return next((name for name, module in model.named_modules() if module is layer), "")


def _name(model: nn.Module, layers: list[nn.Module]) -> str:
    layer, name = layers[-1] if layers else model, _path(model, layers)
    return f"layer {name!r} ({type(layer).__name__})" if name else f"the model ({type(layer).__name__})"


def _write(
    program: torch.export.ExportedProgram,
    path: Path,
    model: nn.Module,
    names: tuple[dict[int, str], ...],
    runtime: Runtime,
    bank_dtype: torch.dtype,
    notes: Mapping[str, str],
) -> None:
    """Large ONNX models are several files."""
    held = {**notes, FORMS: json.dumps(program.graph_module.meta[FORMS])}
    with staged(path) as target:
        if path.suffix == ".pt2":
            torch.export.save(program, target, extra_files=held)
        else:
            converted = to_onnx(program, type(model).__name__, names)
            if runtime == "any":
                spell_out(converted.model.graph)
            if runtime == "onnxruntime":
                block(converted.model)
            if runtime == "openvino":
                chain(converted.model)
            if program.graph_module.meta[EACH_IMAGE]:
                per_image(converted.model)
            if bank_dtype is torch.bfloat16:
                narrow_banks(converted.model.graph)
            converted.model.metadata_props.update(held)
            converted.save(str(target))


def _warn_if_hot(model: nn.Module) -> None:
    hot = [(float(r.temperature), r.final_temperature) for r in tempered_routers(model)]  # type: ignore[arg-type]
    hot = [(now, final) for now, final in hot if now > final]
    if hot:
        now, final = max(hot)
        warnings.warn(
            f"exporting routers at temperature {now:g}, above the final {final:g}, which the graph keeps; "
            f"convary.set_temperature(model, {final}) first",
            TemperatureWarning,
            stacklevel=4,
        )
