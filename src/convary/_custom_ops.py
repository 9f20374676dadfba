# SPDX-License-Identifier: Apache-2.0
"""convary's native kernels as operators of an ONNX file, which csrc/onnxruntime gives to onnxruntime."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from convary.errors import ExportError
from convary.ops.native import library
from convary.ops.native.router import ACTIVATIONS, PIECES
from convary.ops.pixel.window import BORDERS

DOMAIN = "convary"
_GEOMETRY = {"stride": "INTS", "padding": "INTS", "dilation": "INTS", "groups": "INT"}
_WINDOW = {
    **dict.fromkeys(("kernel_size", "stride", "padding", "dilation"), "INTS"),
    **dict.fromkeys(("border", "interleaved", "scale_factor"), "INT"),
}


def custom_ops_library() -> str:
    """The path of convary's native library, which has the operators of files exported with ``runtime="convary"``.

    ``options.register_custom_ops_library(path)`` gives them to an ``onnxruntime.SessionOptions`` of version 1.17 or
    newer, in any of its languages. The library needs neither Python nor torch: ship it beside the file.

    Raises:
        ConvaryError: the library is not available.

    >>> custom_ops_library().rpartition(".")[2] in ("so", "dll")
    True
    """
    return library.loaded().path


def translations() -> dict[Callable, Callable]:
    """What writes each operator of a recorded program, for ``torch.onnx.export``."""
    mixed = _node("MixedConv", ["x", "bank"], ["kernel", "filter", "channel", "tap", "bias"], _GEOMETRY)
    sample = _node("SampleConv", ["x", "weight"], ["index", "bias"], _GEOMETRY)
    pixel = _node("PixelConv", ["x", "weight"], [], _WINDOW)
    norm = ["mean", "variance", "gain", "shift"]
    routed = _node(
        "Route",
        ["x"],
        ["squeeze", "squeeze_bias", *norm, "last", "last_bias", "temperature"],
        {"pieces": "INTS", "gates": "INT", "rest": "INT", "epsilon": "FLOAT"},
        outputs=PIECES,
    )

    def mixed_conv(x, bank, kernel, filter, channel, tap, bias, *settings):
        tensors = (x, bank, kernel, filter, channel, tap, bias)
        return mixed(*tensors, **dict(zip(_GEOMETRY, settings, strict=True)))

    def sample_conv(x, weight, index, bias, *settings):
        return sample(x, weight, index, bias, **dict(zip(_GEOMETRY, settings, strict=True)))

    def pixel_conv(x, weight, kernel_size, stride, padding, dilation, border, group_order, scale_factor):
        kind = (BORDERS.index(border), int(group_order == "interleaved"), scale_factor)
        window = zip(_WINDOW, (kernel_size, stride, padding, dilation, *kind), strict=True)
        return pixel(x, weight, **dict(window))

    def route(x, *layers):
        *tensors, epsilon, pieces, gates, rest = layers
        all_pieces = [*pieces, *[0] * (PIECES - len(pieces))]
        answer = routed(x, *tensors, pieces=all_pieces, gates=gates, rest=ACTIVATIONS[rest], epsilon=epsilon)
        return list(answer[: len(pieces)])

    operators = torch.ops.convary
    return {
        operators.mixed_conv_forward.default: mixed_conv,
        operators.sample_conv_forward.default: sample_conv,
        operators.pixel_conv_forward.default: pixel_conv,
        operators.route.default: route,
    }


def narrow_banks(graph: Any) -> None:
    """Store the banks of mixed convolutions in bfloat16: half the file, and half the memory to read for each image.

    Raises:
        ExportError: there is none.
    """
    import ml_dtypes
    import onnx_ir as ir

    banks = {id(node.inputs[1]): node.inputs[1] for node in graph if _is_mixed(node)}  # layers may share one
    found = [bank for bank in banks.values() if bank.const_value is not None and all(map(_reads_bank, bank.uses()))]
    if not found:
        raise ExportError("no layer mixes a constant bank, so bank_dtype has nothing to narrow; leave it out")
    for bank in found:
        bank.const_value = ir.tensor(bank.const_value.numpy().astype(ml_dtypes.bfloat16), name=bank.name)
        bank.dtype = ir.DataType.BFLOAT16


def _is_mixed(node: Any) -> bool:
    return node.domain == DOMAIN and node.op_type == "MixedConv"


def _reads_bank(use: Any) -> bool:
    return _is_mixed(use.node) and use.idx == 1


def spare_reshapes(graph: Any) -> None:
    """Hand factors (B, n) that all kernels share to the operators as they are, without the axis of one kernel."""
    for node in graph:
        if node.domain != DOMAIN:
            continue
        for i, value in enumerate(node.inputs):
            producer = None if value is None else value.producer()
            if producer is not None and producer.op_type == "Reshape" and _adds_an_axis(producer):
                node.replace_input_with(i, producer.inputs[0])


def _adds_an_axis(reshape: Any) -> bool:
    before, after = reshape.inputs[0].shape, reshape.outputs[0].shape
    return before is not None and after is not None and [*after] == [before[0], 1, *before[1:]] and len(before) == 2


def bound_outputs(graph: Any) -> None:
    """Let our convolutions cut their outputs themselves, in place of a ``Relu`` or ``Clip`` that alone reads them."""
    import onnx_ir as ir

    for node in list(graph):
        if (bounds := _bounds(node)) is None:
            continue
        before, after = node.inputs[0], node.outputs[0]
        conv = before.producer()
        alone = len(before.uses()) == 1 and not before.is_graph_output()
        if conv is None or conv.domain != DOMAIN or conv.op_type not in ("MixedConv", "SampleConv") or not alone:
            continue
        if {"lower", "upper"} & conv.attributes.keys():  # a second cut stays a node
            continue
        conv.attributes.update({name: ir.AttrFloat32(name, bound) for name, bound in bounds.items()})
        before.shape, before.dtype = after.shape, after.dtype
        ir.convenience.replace_all_uses_with(after, before, replace_graph_outputs=True)
        constants = node.inputs[1:]
        graph.remove(node, safe=True)
        for constant in constants:  # onnxruntime warns of what nothing reads
            if constant is not None and not constant.uses():
                graph.initializers.pop(constant.name, None)


def _bounds(node: Any) -> dict[str, float] | None:
    """What a node cuts its input to, where it does no more than that and says so by constants."""
    from onnx_ir.convenience import get_const_tensor

    if node.op_type == "Relu":
        return {"lower": 0.0}
    if node.op_type != "Clip" or node.attributes:
        return None
    given = {name: value for name, value in zip(("lower", "upper"), node.inputs[1:], strict=False) if value is not None}
    constants = {name: get_const_tensor(value) for name, value in given.items()}
    known = {name: float(constant.numpy()) for name, constant in constants.items() if constant is not None}
    is_range = known.get("lower", -math.inf) <= known.get("upper", math.inf)
    return known if len(known) == len(given) and is_range else None


def _node(
    name: str, tensors: list[str], optional: list[str], attributes: Mapping[str, str], outputs: int = 1
) -> Callable[..., Any]:
    """What writes a node: of its tensors, those that may be None, and its attributes with their types."""
    from onnx.defs import OpSchema
    from onnxscript import values

    formal, maybe = OpSchema.FormalParameter, OpSchema.FormalParameterOption.Optional
    types = {"index": "tensor(int64)"}
    given = [formal(t, "tensor(float)") for t in tensors]
    given += [formal(t, types.get(t, "tensor(float)"), param_option=maybe) for t in optional]
    answers = [formal("y" if outputs == 1 else f"y{i}", "tensor(float)") for i in range(outputs)]
    schema = OpSchema(
        name, DOMAIN, 1, inputs=given, outputs=answers,
        attributes=[OpSchema.Attribute(key, getattr(OpSchema.AttrType, kind)) for key, kind in attributes.items()],
    )  # fmt: skip
    return values.Op(values.Opset(DOMAIN, 1), name, schema)
