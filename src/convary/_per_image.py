# SPDX-License-Identifier: Apache-2.0
"""A file for any batch that runs the graph of one image for each: a ``Loop`` around it.

No operator of ONNX convolves each sample with a kernel of its own. Unfolded features and a matrix product do, slowly:
with ODConv 19 times the static network's time for MobileNetV2 and 4.5 for ResNet-18 (onnxruntime, four images, one
thread). The fastest graph of one image, run for each, takes 1.75 and 1.78. The loop itself costs nothing to speak of.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convary._onnx import constant

BATCH, LOOP = "batch", "each_image"
LARGE = 3 << 29  # bytes: beyond, torch puts weights beside the file, but looks for them in the outer graph only
TOLERANCE = 1e-3  # of two samples together against each alone: other kernels, other rounding


@torch.no_grad()
def is_separable(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether a model in eval mode makes of two samples what it makes of each: tensors with an axis of samples first.

    Args:
        model: Any model.
        inputs: (B, C, *S) each.
    """
    noise = torch.Generator().manual_seed(0)
    pairs = [torch.cat((x[:1], _other(x[:1], noise))) for x in inputs]
    try:
        together, one, two = (
            _tensors(model(*(x[part] for x in pairs))) for part in (slice(None), slice(1), slice(1, None))
        )
    except Exception:  # whatever a model raises that takes no two
        return False
    if together is None or one is None or two is None or not len(together) == len(one) == len(two):
        return False
    return all(
        y.ndim > 0
        and [len(y), len(a), len(b)] == [2, 1, 1]
        and y.shape[1:] == a.shape[1:] == b.shape[1:]
        and torch.allclose(y, torch.cat((a, b)), TOLERANCE, TOLERANCE * float(y.abs().max()), equal_nan=True)
        for y, a, b in zip(together, one, two, strict=True)
    )


def _other(x: Tensor, noise: torch.Generator) -> Tensor:
    """Another sample of the kind: an example may be all zeros."""
    if not x.is_floating_point():
        return x.flip(-1)
    return x.flip(-1) + torch.randn(x.shape, generator=noise).to(x)


def _tensors(answer: Any) -> list[Tensor] | None:
    answers = list(answer) if isinstance(answer, (tuple, list)) else [answer]
    return answers if answers and all(isinstance(y, Tensor) for y in answers) else None


def per_image(model: Any) -> None:
    """Let an ``onnx_ir`` model of one image take any number of them, and answer for each."""
    import onnx_ir as ir

    body, BOOL, INT64 = model.graph, ir.DataType.BOOL, ir.DataType.INT64
    first = constant(body, f"{LOOP}.axis", np.array([0]))
    turn, goes_on, still = (
        _value(f"{LOOP}.turn", INT64, []),
        _value(f"{LOOP}.goes_on", BOOL, []),
        _value(f"{LOOP}.still", BOOL, []),
    )
    index = _named(ir.node("Unsqueeze", [turn, first]), f"{LOOP}.index")
    images, answers, begins, ends = [], [], [index], []
    for value in body.inputs:
        images.append(_value(value.name, value.dtype, [BATCH, *value.shape[1:]]))
        begins.append(ir.node("Gather", [images[-1], index.outputs[0]], {"axis": 0}))
        value.name = f"{value.name}.image"
        image = begins[-1].outputs[0]
        image.name, image.shape, image.dtype = value.name, value.shape, value.dtype
        ir.convenience.replace_all_uses_with(value, image)
    for value in body.outputs:
        answers.append(_value(value.name, value.dtype, [BATCH, *value.shape[1:]]))
        value.name = f"{value.name}.image"
        ends.append(_named(ir.node("Squeeze", [value, first]), f"{value.name}.alone"))
        ends[-1].outputs[0].shape, ends[-1].outputs[0].dtype = ir.Shape(value.shape[1:]), value.dtype
    ends.append(ir.Node("", "Identity", [goes_on], outputs=[still], name=f"{LOOP}.on"))
    body.insert_before(body[0], begins)
    body.extend(ends)
    body.inputs[:], body.outputs[:] = [turn, goes_on], [still, *(node.outputs[0] for node in ends[:-1])]
    sizes = _named(ir.node("Shape", [images[0]], {"start": 0, "end": 1}), f"{LOOP}.sizes")
    count = _named(ir.node("Squeeze", [sizes.outputs[0]]), f"{LOOP}.count")
    loop = ir.Node("", "Loop", [count.outputs[0], None], [ir.AttrGraph("body", body)], outputs=answers, name=LOOP)
    opsets, name, body.name = dict(body.opset_imports), body.name, "image"
    model.graph = ir.Graph(images, answers, nodes=[sizes, count, loop], opset_imports=opsets, name=name)
    weights = list(body.initializers.values())
    if sum(value.const_value.nbytes for value in weights) > LARGE:  # inside the loop onnxruntime packs them: 8 % faster
        for value in weights:
            del body.initializers[value.name]
            model.graph.initializers.add(value)


def _named(node: Any, name: str) -> Any:
    node.name = node.outputs[0].name = name  # a name that is left to the writer may be in the graph already
    return node


def _value(name: str, dtype: Any, shape: Any) -> Any:
    import onnx_ir as ir

    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
