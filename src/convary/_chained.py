# SPDX-License-Identifier: Apache-2.0
"""Mixed kernels as OpenVINO makes them fast: a chain of products and sums in the place of a matrix product.

OpenVINO reads the bank of ``coefficients (1, K) @ bank (K, N)`` slowly, but K products of a number with a constant row,
their sum and the factors behind it become one loop. Only the last axis of such a loop is vectorised, and that of a
kernel (O, C/G, 3, 3) is of 3. So axes lie together that every factor has, or none: (O, C/G * 9) times (O, 1) times
(1, C/G * 9). One thread, AMD EPYC with AVX-512, OpenVINO 2026.4, ResNet-18 with ODConv: 49 to 26 ms, static's are 16.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple


class _Mixing(NamedTuple):
    """A matrix product with a bank, and what is multiplied to what it makes.

    Attributes:
        product: The node, (1, K) times (K, N).
        factors: In the order in which they are multiplied.
        shape: Of the kernel while it is multiplied.
        conv: The node that takes the kernel.
    """

    product: Any
    factors: list[Any]
    shape: tuple[int, ...]
    conv: Any


def chain(model: Any) -> int:
    """Exchange the mixings of kernels for one image, in an ``onnx_ir`` model of fixed sizes; how many there were."""
    from onnx_ir.passes import common as passes

    graph = model.graph
    found = [mixing for node in graph if node.op_type == "MatMul" and (mixing := _mixing(node)) is not None]
    made: dict[str, list[Any]] = {}
    for mixing in found:
        _exchange(graph, mixing, made)
    passes.RemoveUnusedNodesPass()(model)
    return len(found)


def _mixing(product: Any) -> _Mixing | None:
    """What begins with a matrix product and ends in the kernel of a convolution."""
    coefficients, bank = product.inputs
    sizes = _sizes(coefficients)
    if bank.const_value is None or len(bank.shape) != 2 or sizes is None or len(sizes) != 2 or sizes[0] != 1:
        return None
    value, factors = product.outputs[0], []
    shape = None
    while (node := _reader(value)) is not None and (sizes := _sizes(value)) is not None:
        if node.op_type == "Conv":
            return _Mixing(product, factors, shape or sizes, node) if node.inputs[1] is value else None
        if node.op_type == "Mul":
            factors.append(node.inputs[1 if node.inputs[0] is value else 0])
            shape = shape or sizes
            if not sizes == shape == _sizes(node.outputs[0]) or _sizes(factors[-1]) is None:
                return None
        elif node.op_type != "Reshape":
            return None
        value = node.outputs[0]
    return None


def _reader(value: Any) -> Any:
    """The node that takes a value, where it is the only one."""
    uses = value.uses()
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _sizes(value: Any) -> tuple[int, ...] | None:
    """A shape, where it is known."""
    sizes = value.shape
    return tuple(sizes) if sizes is not None and all(isinstance(size, int) for size in sizes) else None


def _joined(shape: tuple[int, ...], factors: list[tuple[int, ...]]) -> list[list[int]]:
    """The axes of a kernel, those together that every factor has or none; axes of one are left out."""
    groups: list[list[int]] = []
    told: list[bool] = []
    for axis in (axis for axis, size in enumerate(shape) if size > 1):
        has = [factor[axis] > 1 for factor in factors]
        if groups and has == told:
            groups[-1].append(axis)
        else:
            groups.append([axis])
        told = has
    return groups or [[0]]


def _exchange(graph: Any, mixing: _Mixing, made: dict[str, list[Any]]) -> None:
    """Put a chain in the place of a mixing; the rows of a bank are made once, in ``made``."""
    coefficients, bank = mixing.product.inputs
    K, shape, conv = bank.shape[0], mixing.shape, mixing.conv
    factors = [(*[1] * (len(shape) - len(factor.shape)), *factor.shape) for factor in mixing.factors]
    groups = _joined(shape, factors)

    def together(sizes: tuple[int, ...]) -> list[int]:
        return [prod(sizes[axis] for axis in group) for group in groups]

    nodes = _Nodes(graph, conv.inputs[1].name)
    each = nodes.add("Split", coefficients, outputs=K, axis=1, num_outputs=K)
    key = f"{bank.name}.{'x'.join(map(str, together(shape)))}"
    if key not in made:
        rows = bank.const_value.numpy().reshape(K, *together(shape))
        made[key] = [nodes.constant(f"{key}.{k}", row) for k, row in enumerate(rows)]
    terms = [nodes.add("Mul", *pair)[0] for pair in zip(each, made[key], strict=True)]
    kernel = terms[0]
    for term in terms[1:]:
        (kernel,) = nodes.add("Add", kernel, term)
    for factor, sizes in zip(mixing.factors, factors, strict=True):
        (kernel,) = nodes.add("Mul", kernel, nodes.reshape(factor, together(sizes)))
    kernel = nodes.reshape(kernel, list(conv.inputs[1].shape))
    kernel.shape, kernel.dtype = conv.inputs[1].shape, conv.inputs[1].dtype
    for node in nodes:
        node.metadata_props.update(conv.metadata_props)
    graph.insert_before(conv, nodes)
    conv.replace_input_with(1, kernel)


class _Nodes(list):
    """New nodes of a graph, in order, and constants; named after the value in whose place they are."""

    def __init__(self, graph: Any, name: str) -> None:
        super().__init__()
        self.graph, self.name = graph, name

    def add(self, op: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """One more; its outputs."""
        import onnx_ir as ir

        name = f"{self.name}.chain{len(self)}"
        self.append(ir.node(op, list(inputs), attributes, num_outputs=outputs, name=name))
        for i, value in enumerate(self[-1].outputs):
            value.name = f"{name}.{i}"
        return self[-1].outputs

    def constant(self, name: str, array: Any) -> Any:
        """One more constant."""
        import onnx_ir as ir

        tensor = ir.Tensor(array, name=name)
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.initializers.add(value)
        return value

    def reshape(self, value: Any, sizes: list[int]) -> Any:
        """``value`` in another shape."""
        import numpy as np

        shape = self.constant(f"{self.name}.shape{len(self)}", np.array(sizes, dtype=np.int64))
        return self.add("Reshape", value, shape)[0]
