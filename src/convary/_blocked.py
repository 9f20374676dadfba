# SPDX-License-Identifier: Apache-2.0
"""Convolutions with computed kernels in the layout that onnxruntime's own optimizer gives to constant ones.

On CPUs onnxruntime convolves in blocks of channels ("NCHWc"), through operators of a domain of its own, but puts only
convolutions with constant kernels there. Computed ones take a path that for depthwise layers is several times slower.
Here they get those operators explicitly. How many channels a block has differs between CPUs, and a file must not know
it: ``ReorderInput``, which blocks the channels of images on the machine that runs, blocks kernels too, where these are
taken for images. A kernel (C, 1, kh, kw) of a depthwise layer is an image of C channels; (O, C, kh, kw) are O images of
C channels, and what comes out is an image of O channels.

onnxruntime on a CPU without blocks refuses such a file when it is loaded, and so does any other runtime.
"""

from __future__ import annotations

from math import prod
from typing import Any

DOMAIN = "com.microsoft.nchwc"
BLOCK = 16  # the largest there is; what it divides is divided by the smaller ones
# A dense kernel is reordered twice for every image, which costs as much as convolving with it at so many positions.
# One thread, AMD EPYC with AVX2, onnxruntime 1.32, 3x3, C = O: 64 at 56x56 gains 1.5 of 9.4 ms and 256 at 14x14 2 of
# 9 ms; 512 at 7x7 gains nothing. A depthwise layer always gains: 960 at 7x7 0.7 of 0.85 ms, 144 at 56x56 2.6 of 3 ms.
LEAST_POSITIONS = 14 * 14


def block(model: Any) -> int:
    """Exchange convolutions that gain by it, in an ``onnx_ir`` model; how many there were."""
    from onnx_ir.passes import common as passes

    graph = model.graph
    convs = [node for node in graph if node.op_type == "Conv" and node.domain == "" and _gains(node)]
    for conv in convs:
        _exchange(graph, conv)
    if convs:
        graph.opset_imports[DOMAIN] = 1
        _stay_in_blocks(graph)
        passes.RemoveUnusedNodesPass()(model)
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        passes.DeduplicateInitializersPass()(model)
    return len(convs)


def _gains(conv: Any) -> bool:
    """Whether a convolution has a computed kernel, fits whole blocks, and is faster in them."""
    kernel, y = conv.inputs[1], conv.outputs[0]
    if kernel.const_value is not None or kernel.producer() is None or kernel.shape is None or len(kernel.shape) != 4:
        return False
    if y.shape is None or not all(isinstance(size, int) for size in (*kernel.shape, *y.shape[2:])):
        return False
    O, C_group, *kernel_size = kernel.shape
    G = conv.attributes.get_int("group", 1)
    if O % BLOCK or (G == 1 and C_group % BLOCK):
        return False
    if G == 1:
        return prod(kernel_size) == 1 or prod(y.shape[2:]) >= LEAST_POSITIONS
    return G == O and C_group == 1


class _Nodes(list):
    """New nodes, in order."""

    def add(self, op: str, *inputs: Any, domain: str = DOMAIN, **attributes: Any) -> Any:
        """One more; its output."""
        import onnx_ir as ir

        self.append(ir.node(op, list(inputs), attributes, domain=domain))
        return self[-1].outputs[0]

    def reshape(self, value: Any, *sizes: int) -> Any:
        """``value``, which a reshape may have made, in another shape."""
        import onnx_ir as ir

        producer = value.producer()
        if producer is not None and producer.op_type == "Reshape":
            value = producer.inputs[0]
        shape = self.add("Constant", domain="", value=ir.tensor(list(sizes), dtype=ir.DataType.INT64))
        return self.add("Reshape", value, shape, domain="")


def _exchange(graph: Any, conv: Any) -> None:
    x, kernel, *bias = conv.inputs
    O, C_group, *kernel_size = kernel.shape
    last, activation = _activation(conv)
    nodes = _Nodes()
    if C_group == 1:
        image = nodes.reshape(kernel, 1, O, *kernel_size)
    elif prod(kernel_size) == 1:  # one position: its channels lie in their order already
        image = nodes.reshape(kernel, 1, O, C_group, 1)
    else:
        image = nodes.reshape(nodes.add("ReorderInput", kernel), 1, O, C_group * prod(kernel_size), 1)
    blocked = nodes.reshape(nodes.add("ReorderInput", image), *kernel.shape)
    attributes = {name: attribute.value for name, attribute in conv.attributes.items()} | activation
    y = nodes.add("Conv", nodes.add("ReorderInput", x), blocked, *bias, **attributes)
    for new in nodes:
        new.metadata_props.update(conv.metadata_props)
    _replace(graph, nodes, last, nodes.add("ReorderOutput", y, channels=O))
    if last is not conv:
        graph.remove(conv, safe=True)


def _activation(conv: Any) -> tuple[Any, dict[str, Any]]:
    """The node that ends the convolution, and the activation that goes into it."""
    uses = conv.outputs[0].uses()
    if len(uses) != 1 or conv.outputs[0].is_graph_output():
        return conv, {}
    node = uses[0].node
    if node.op_type == "Relu":
        return node, {"activation": "Relu"}
    if node.op_type == "Clip" and len(node.inputs) == 3:
        bounds = [value.const_value for value in node.inputs[1:] if value is not None and value.const_value is not None]
        if len(bounds) == 2:
            return node, {"activation": "Clip", "activation_params": [float(bound.numpy()) for bound in bounds]}
    return conv, {}


def _stay_in_blocks(graph: Any) -> None:
    """Let what needs no order of channels take blocks: pooling, sums, scaling by channel, the next convolution."""
    for node in list(graph):
        given = [_blocked(value) for value in node.inputs]
        nodes = _Nodes()
        if node.op_type == "ReorderInput" and given[0] is not None:
            _replace(graph, nodes, node, given[0])
        elif node.op_type in ("Relu", "Clip") and given[0] is not None:
            _leave(graph, nodes, node, nodes.add(node.op_type, given[0], *node.inputs[1:], domain=""))
        elif node.op_type == "Add" and None not in given and node.inputs[0].shape == node.inputs[1].shape:
            _leave(graph, nodes, node, nodes.add("Add", *given, domain=""))
        elif node.op_type == "Add" and (at := _per_channel(node, given)) is not None and (conv := _bare(given[at])):
            bias = nodes.reshape(node.inputs[1 - at], node.outputs[0].shape[1])
            attributes = {name: attribute.value for name, attribute in conv.attributes.items()}
            y = nodes.add("Conv", *conv.inputs, bias, **attributes)
            y.producer().metadata_props.update(conv.metadata_props)
            _leave(graph, nodes, node, y)
        elif node.op_type == "Mul" and (factor := _per_channel(node, given)) is not None:
            C = node.outputs[0].shape[1]
            kernel = nodes.reshape(node.inputs[1 - factor], C, 1, 1, 1)
            _leave(graph, nodes, node, nodes.add("Conv", given[factor], kernel, group=C, kernel_shape=[1, 1]))
        elif node.op_type == "ReduceMean" and given[0] is not None and _over_positions(node):
            pooled = nodes.add("GlobalAveragePool", given[0])  # of one position, so in the channels' order
            _replace(graph, nodes, node, nodes.reshape(pooled, *node.outputs[0].shape))


def _blocked(value: Any) -> Any:
    """The blocks that a value is made of, or None."""
    producer = None if value is None else value.producer()
    return producer.inputs[0] if producer is not None and producer.op_type == "ReorderOutput" else None


def _per_channel(node: Any, given: list[Any]) -> int | None:
    """Which input of a product or a sum is in blocks while the other is (1, C, 1, 1)."""
    shape = node.outputs[0].shape
    for position, other in ((0, node.inputs[1]), (1, node.inputs[0])):
        if given[position] is not None and other.shape is not None and list(other.shape) == [1, shape[1], 1, 1]:
            return position
    return None


def _bare(blocks: Any) -> Any:
    """The convolution that makes blocks, with neither bias nor activation nor another reader; or None."""
    conv = blocks.producer()
    if conv is None or conv.op_type != "Conv" or len(conv.inputs) != 2 or "activation" in conv.attributes:
        return None
    readers = [use.node for use in blocks.uses()]
    return conv if len(readers) == 1 and len(readers[0].outputs[0].uses()) == 1 else None


def _over_positions(node: Any) -> bool:
    axes = None if len(node.inputs) < 2 else node.inputs[1].const_value
    sizes = node.outputs[0].shape
    return (
        axes is not None and sorted(axes.numpy().tolist()) in ([2, 3], [-2, -1]) and all(type(s) is int for s in sizes)
    )


def _leave(graph: Any, nodes: _Nodes, node: Any, y: Any) -> None:
    """Put y, in blocks, in the place of what a node makes."""
    _replace(graph, nodes, node, nodes.add("ReorderOutput", y, channels=node.outputs[0].shape[1]))


def _replace(graph: Any, nodes: _Nodes, node: Any, y: Any) -> None:
    """Put nodes before one that they replace, and y, which may be an older value, in the place of its output."""
    import onnx_ir as ir

    before = node.outputs[0]
    for new in nodes:  # of the same layer, where nothing else is said
        new.metadata_props.update({**node.metadata_props, **new.metadata_props})
    graph.insert_before(node, nodes)
    if nodes:
        y.shape, y.dtype, name = before.shape, before.dtype, before.name
        before.name, y.name = f"{name}_plain", name
    ir.convenience.replace_all_uses_with(before, y, replace_graph_outputs=True)
    graph.remove(node, safe=True)
