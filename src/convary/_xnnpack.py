# SPDX-License-Identifier: Apache-2.0
"""Convolutions with computed kernels as products and sums, for XNNPACK, which has them for constant kernels only.

XNNPACK is what ExecuTorch runs on CPUs. What it can't take goes to plain loops, which for a pointwise
convolution are 50 to 80 times as slow. It does multiply two computed matrices, so a convolution becomes a product for
each tap of its kernel, of features that are shifted; constant convolutions pick what a stride leaves. A depthwise one
becomes products by element, or, where few kernels are mixed, the weighted sum of a constant convolution with each.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from convary._exported import FORMS
from convary.ops.geometry import CONV

aten = torch.ops.aten
_CONVS = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}
_SHAPES = {
    aten.reshape.default, aten.view.default, aten.flatten.using_ints, aten.unflatten.int, aten.unsqueeze.default,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, torch.reshape,
}  # fmt: skip
TAPS = ("taps", "mixed kernels, a product for each tap")
OUTPUTS = ("outputs", "a convolution per kernel, mixed outputs")


class Sizes(NamedTuple):
    """Of a convolution: per axis, and the number of groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def without_computed_kernels(
    program: torch.export.ExportedProgram, inputs: tuple[Tensor, ...]
) -> torch.export.ExportedProgram:
    """The same function in operations that XNNPACK takes.

    Args:
        program: Recorded by ``export`` with every size fixed.
        inputs: Of those sizes.
    """
    module: Any = program.module(check_guards=False)
    _fold_constants(module)
    written = {}
    for node in list(module.graph.nodes):
        if node.target in _CONVS and node.args[1].op != "get_attr" and node.args[0].meta["val"].shape[0] == 1:
            written[_layer(node)] = _exchange(module, node)
        else:
            _spell(node)
    module.graph.eliminate_dead_code()
    _drop_unused(module)
    module.recompile()
    with torch.no_grad():
        again = torch.export.export(module, inputs)
    forms = program.graph_module.meta[FORMS]
    again.graph_module.meta[FORMS] = [
        form._replace(strategy=written[form.layer][0], reason=written[form.layer][1]) if form.layer in written else form
        for form in forms
    ]
    return again


def _layer(node: fx.Node) -> str:
    """The module that a node was recorded in."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0] if stack else ""


def _fold_constants(module: Any) -> None:
    """Compute what depends on parameters alone, such as a bank in the shape of a matrix."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not node.all_input_nodes or not isinstance(node.meta.get("val"), Tensor):
            continue
        if all(source.op == "get_attr" for source in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: _tensor(module, source))
            with torch.no_grad(), module.graph.inserting_before(node):
                node.replace_all_uses_with(_constant(module, node.target(*args, **kwargs)))
            module.graph.erase_node(node)


def _spell(node: fx.Node) -> None:
    """Say it so that XNNPACK takes it: it has no split, a mean that keeps its axes, and one way to change a shape."""
    source: Any = node.args[0] if node.args else None
    if node.target is aten.mean.dim and len(node.args) == 2 and not node.kwargs:
        node.target = _mean
    elif node.target is aten.adaptive_avg_pool2d.default and list(node.args[1]) == [1, 1]:  # type: ignore[arg-type]
        node.target, node.args = torch.mean, (source, (2, 3), True)
    elif node.target in _SHAPES:
        node.target, node.args, node.kwargs = torch.reshape, (source, tuple(node.meta["val"].shape)), {}
    elif node.target is operator.getitem and source.target is aten.split_with_sizes.default:
        whole, sizes, *axis = source.args
        at: Any = node.args[1]
        node.target, node.args = torch.narrow, (whole, *(axis or (0,)), sum(sizes[:at]), sizes[at])


def _mean(x: Tensor, axes: list[int]) -> Tensor:
    left = {axis % x.ndim for axis in axes}
    return x.mean(axes, keepdim=True).reshape([n for axis, n in enumerate(x.shape) if axis not in left])


def _exchange(module: Any, node: fx.Node) -> tuple[str, str]:
    """Put :func:`convolve` in the place of a convolution, or :func:`convolve_with_each`; which, and what it does."""
    x, kernel, *_ = node.args
    bias, sizes = _arguments(node)
    O, C_group, *kernel_size = kernel.meta["val"].shape  # type: ignore[union-attr]
    factors, bank = _mixture(module, kernel)
    with module.graph.inserting_before(node):
        if bank is not None and C_group == 1 and sizes.groups > 1 and 2 * len(bank) <= prod(kernel_size):
            kernels = [_constant(module, one.clone()) for one in bank.unflatten(1, (O, 1, *kernel_size))]
            node.target, node.args = convolve_with_each, (x, kernels, factors, bias, *sizes)
            return OUTPUTS
        picks = [
            _constant(module, _pick(sizes.groups * C_group, phase, kernel.meta["val"].dtype))  # type: ignore[union-attr]
            for phase in _phases(kernel_size, sizes)
        ]
    node.target, node.args = convolve, (x, kernel, bias, picks, *sizes)
    return TAPS


def _arguments(node: Any) -> tuple[Any, Sizes]:
    """The bias of a convolution and its sizes."""
    more: Any = (None, 1, 0, 1, 1)  # what a graph leaves out
    bias, *axes, groups = (*node.args[2:], *more[len(node.args) - 2 :])
    rank, given = _CONVS[node.target], [(s,) if isinstance(s, int) else tuple(s) for s in axes]
    stride, padding, dilation = (s * (rank // len(s)) for s in given)
    return bias, Sizes(stride, padding, dilation, groups)


def _mixture(module: Any, kernel: Any) -> tuple[Any, Tensor | None]:
    """The factors (1, K) and the constant bank (K, O * C/G * T) whose product a kernel is, or None."""
    while kernel.target in _SHAPES:
        kernel = kernel.args[0]
    if kernel.target not in (aten.matmul.default, aten.mm.default):
        return None, None
    factors, bank = kernel.args
    constant = bank.op == "get_attr" and factors.meta["val"].shape[0] == 1
    return factors, _tensor(module, bank) if constant else None


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None, picks: Sequence[Tensor], *given: Any) -> Tensor:
    """A convolution of one sample as a product for each tap.

    Args:
        x: (1, C, *S).
        kernel: (O, C/G, *k).
        bias: (O,) or None.
        picks: As :func:`_pick` makes them for :func:`_phases`.
        given: Its ``Sizes``.
    """
    sizes, (O, C_group, *kernel_size) = Sizes(*given), kernel.shape
    axes = zip(x.shape[2:], sizes.padding, sizes.dilation, kernel_size, sizes.stride, strict=True)
    out_size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in axes]
    G, alone = sizes.groups, C_group == 1 and sizes.groups > 1
    matrices = kernel.reshape(G, O // G, C_group, -1).permute(3, 0, 2, 1)  # at once: by tap each would read all
    matrices = matrices.reshape(-1, O) if alone else matrices.reshape(-1, C_group, O // G)
    rows = 1 if alone else G
    y = None
    for t, seen in enumerate(_looks(x, kernel_size, sizes, out_size, picks)):
        matrix = matrices.narrow(0, t * rows, rows) if rows < len(matrices) else matrices
        term = _product(seen, matrix, G)
        y = term if y is None else y + term
    assert y is not None  # a kernel has taps
    if not alone:
        y = y.reshape(1, *out_size, O).movedim(-1, 1)
    return y if bias is None else y + bias.reshape(1, O, *[1] * len(out_size))


def _looks(
    x: Tensor, kernel_size: Sequence[int], sizes: Sizes, out_size: Sequence[int], picks: Sequence[Tensor]
) -> Iterator[Tensor]:
    """What each tap sees of x: (1, C, *S_out)."""
    if any(sizes.padding):
        x = F.pad(x, [p for p in reversed(sizes.padding) for _ in range(2)])
    conv = CONV[len(kernel_size)]
    phases = _phases(kernel_size, sizes)
    seen = {at: conv(x, pick, None, sizes.stride, groups=x.shape[1]) for at, pick in zip(phases, picks, strict=True)}
    for tap in itertools.product(*(range(k) for k in kernel_size)):
        first = [i * d for i, d in zip(tap, sizes.dilation, strict=True)]
        look = seen[tuple(a % s for a, s in zip(first, sizes.stride, strict=True))] if seen else x
        for axis, (a, s, n) in enumerate(zip(first, sizes.stride, out_size, strict=True), 2):
            look = look.narrow(axis, a // s, n) if n < look.shape[axis] else look
        yield look


def _product(x: Tensor, matrix: Tensor, groups: int) -> Tensor:
    """Multiply x (1, C, *S) by (G, C/G, O/G) to (1, P, O), or by (1, O), for a channel each, to (1, O, *S)."""
    if matrix.ndim == 2:
        O = matrix.shape[1]
        if groups < O:
            x = x.repeat_interleave(O // groups, 1)
        return x * matrix.reshape(1, O, *[1] * (x.ndim - 2))
    rows = x.movedim(1, -1)
    if groups == 1:
        return torch.bmm(rows.reshape(1, -1, x.shape[1]), matrix)
    rows = rows.reshape(-1, groups, matrix.shape[1]).transpose(0, 1)  # (G, P, C/G)
    return torch.bmm(rows, matrix).transpose(0, 1).reshape(1, -1, groups * matrix.shape[2])


def convolve_with_each(
    x: Tensor, kernels: Sequence[Tensor], factors: Tensor, bias: Tensor | None, *given: Any
) -> Tensor:
    """The weighted sum of a convolution with each of K constant kernels.

    Args:
        x: (1, C, *S).
        kernels: K of (O, C/G, *k).
        factors: (1, K).
        bias: (O,) or None.
        given: The ``Sizes``.
    """
    rank, y = x.ndim - 2, None
    for k, kernel in enumerate(kernels):
        term = CONV[rank](x, kernel, None, *given) * factors[:, k : k + 1].reshape(1, 1, *[1] * rank)
        y = term if y is None else y + term
    assert y is not None  # a bank has kernels
    return y if bias is None else y + bias.reshape(1, -1, *[1] * rank)


def _phases(kernel_size: Sequence[int], sizes: Sizes) -> list[tuple[int, ...]]:
    """Where in a window of one stride the taps look; none where no stride leaves anything out."""
    if all(s == 1 for s in sizes.stride):
        return []
    axes = zip(kernel_size, sizes.stride, sizes.dilation, strict=True)
    return list(itertools.product(*(sorted({i * d % s for i in range(k)}) for k, s, d in axes)))


def _pick(C: int, phase: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A kernel (C, 1, *) whose last tap is 1, the others 0: with a stride it picks one phase of each channel."""
    kernel = torch.zeros(C, 1, *(at + 1 for at in phase), dtype=dtype)
    kernel[(..., *(-1 for _ in phase))] = 1
    return kernel


def _tensor(module: nn.Module, node: fx.Node) -> Tensor:
    """The parameter or buffer that a node reads."""
    found: Any = module
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return found


def _constant(module: Any, value: Tensor) -> fx.Node:
    """A node for a tensor, at the graph's insertion point."""
    name = f"_constant_{sum(1 for _ in module.buffers())}"
    module.register_buffer(name, value.detach().contiguous())
    node = module.graph.get_attr(name)
    node.meta["val"] = value
    return node


def _drop_unused(module: Any) -> None:
    """Take out what no node reads, as banks that were reshaped."""
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for path, part in list(module.named_modules()):
        for name in [*part._parameters, *part._buffers]:
            if f"{path}.{name}".lstrip(".") not in used:
                delattr(part, name)
