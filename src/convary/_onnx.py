# SPDX-License-Identifier: Apache-2.0
"""From a recorded program to an ONNX model with as few nodes as the function needs."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import torch

from convary._custom_ops import bound_outputs, spare_reshapes, translations
from convary.errors import ExportError

_NO_LIMIT = 1 << 40
_SHAPE_ONLY = ("Reshape", "Unsqueeze", "Squeeze", "Flatten")


def to_onnx(program: torch.export.ExportedProgram, kind: str, names: tuple[dict[int, str], ...]) -> Any:
    """The program as a ``torch.onnx.ONNXProgram``.

    Args:
        program: What was recorded.
        kind: The model's class, for errors.
        names: What the free axes of each input are called.

    Raises:
        ExportError: ONNX has no operator for something; names the layer that runs it.
    """
    try:
        converted = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            dynamic_shapes=names,
            optimize=False,
            custom_translation_table=translations(),
        )
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        op = re.search(r"op='([\w.]+)'", str(cause))
        if op is None:
            raise ExportError(f"ONNX can't hold {kind}: {cause}; export to a .pt2 file") from error
        raise ExportError(
            f"ONNX has no operator for {op[1]}, which {_user(program, op[1])} runs; export to a .pt2 file, "
            "or exchange that layer"
        ) from error
    assert converted is not None  # with dynamo=True
    from onnxscript import optimizer

    _join_reshapes(converted.model.graph)
    spare_reshapes(converted.model.graph)
    # Without torch's limits: a quantiser sees a constant weight only where nothing reshapes it.
    optimizer.optimize(converted.model, num_iterations=1, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT)
    bound_outputs(converted.model.graph)
    for node in converted.model.graph:
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # names files of this machine
    return converted


def spell_out(graph: Any) -> None:
    """Say in more nodes what some runtimes misread, in an ``onnx_ir`` graph for any of them.

    OpenCV (seen in 4.14) takes a convolution's constant bias for its kernel where the kernel is computed, and can't
    have one constant on the left of two products.
    """
    times: Counter[str] = Counter()
    for node in list(graph):
        if node.op_type == "Conv" and len(node.inputs) > 2:
            kernel, bias = node.inputs[1:3]
            is_computed = kernel.producer() is not None and kernel.shape is not None
            if is_computed and bias is not None and bias.const_value is not None:
                _add_apart(graph, node, bias)
        elif node.op_type == "MatMul" and (left := node.inputs[0]).const_value is not None:
            times[left.name] += 1
            if (turn := times[left.name]) > 1:
                node.replace_input_with(0, constant(graph, f"{left.name}.{turn}", left.const_value.numpy()))
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]


def _add_apart(graph: Any, conv: Any, bias: Any) -> None:
    """A convolution without its bias, and an ``Add`` behind it."""
    import onnx_ir as ir

    y = conv.outputs[0]
    shifts = bias.const_value.numpy().reshape(-1, *[1] * (len(conv.inputs[1].shape) - 2))
    bare = ir.node("Conv", conv.inputs[:2], dict(conv.attributes), name=conv.name)
    add = ir.node("Add", [bare.outputs[0], constant(graph, f"{y.name}.bias", shifts)], name=f"{conv.name}_bias")
    bare.outputs[0].name, name = f"{y.name}.bare", y.name
    for value in (bare.outputs[0], add.outputs[0]):
        value.shape, value.dtype = y.shape, y.dtype
    for new in (bare, add):
        new.metadata_props.update(conv.metadata_props)
    graph.insert_before(conv, [bare, add])
    ir.convenience.replace_all_uses_with(y, add.outputs[0], replace_graph_outputs=True)
    graph.remove(conv, safe=True)
    add.outputs[0].name = name


def constant(graph: Any, name: str, array: Any) -> Any:
    """A NumPy array as one more initializer of an ``onnx_ir`` graph."""
    import onnx_ir as ir

    tensor = ir.Tensor(array, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.initializers.add(value)
    return value


def _user(program: torch.export.ExportedProgram, op: str) -> str:
    """The innermost module that runs an operation, from the stack that the recorder noted."""
    for node in program.graph.nodes:
        if str(node.target).startswith(op) and node.meta.get("nn_module_stack"):
            name, kind = list(node.meta["nn_module_stack"].values())[-1]
            return f"layer {name!r} ({str(kind).rpartition('.')[2]})"
    return "a layer"


def _join_reshapes(graph: Any) -> None:
    """One ``Reshape``, or none, in place of several nodes in a row that change nothing but the shape."""
    import onnx_ir as ir

    for node in [node for node in graph if node.op_type in _SHAPE_ONLY]:
        source, sizes = _source(node), _sizes(node.outputs[0])
        if sizes is None:
            continue
        if _sizes(source) == sizes and sizes.count(-1) == 0:
            replacement = source
        else:
            shape = ir.node("Constant", [], {"value": ir.tensor(sizes, dtype=ir.DataType.INT64)})
            reshape = ir.node("Reshape", [source, shape.outputs[0]])
            reshape.outputs[0].shape, reshape.outputs[0].dtype = node.outputs[0].shape, node.outputs[0].dtype
            graph.insert_before(node, [shape, reshape])
            replacement = reshape.outputs[0]
        if any(node.outputs[0] is output for output in graph.outputs):
            continue
        ir.convenience.replace_all_uses_with(node.outputs[0], replacement)


def _source(node: Any) -> Any:
    """What goes into the first of the nodes in a row."""
    while (before := node.inputs[0].producer()) is not None and before.op_type in _SHAPE_ONLY:
        node = before
    return node.inputs[0]


def _sizes(value: Any) -> list[int] | None:
    """A shape as ``Reshape`` takes it, where at most one size is free; an empty axis has no -1 beside it."""
    if value.shape is None:
        return None
    sizes = [size if isinstance(size, int) else -1 for size in value.shape]
    return sizes if sizes.count(-1) + sizes.count(0) <= 1 else None
