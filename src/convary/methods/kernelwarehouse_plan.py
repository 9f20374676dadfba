# SPDX-License-Identifier: Apache-2.0
"""Which layers of a network share a warehouse (KernelWarehouse), and which cells each of them starts from.

The authors name the stage, layer and role of every layer by hand; ``stages`` finds the same stages in ResNets,
MobileNetV2 and ConvNeXt from what the layers are. In networks whose stages have channels of a small common divisor
cells would be small, parts many, and attentions, which grow with the square of the parts, larger than the kernels by
far: there the layers of one shape share, or none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from convary.nn import Site

# Layers do not share where their attentions would exceed 2**17 weights and, per kernel weight, 4 where the kernels'
# shapes differ or 32 where they don't. Published networks have at most 3 and 28 (ConvNeXt's depthwise layers).
_SMALL, _MIXED, _ALIKE = 1 << 17, 4, 32


def groups(sites: Sequence[Site], layers: Mapping[str, Any], config: Any) -> Iterator[list[Any]]:
    """The layers of each warehouse, in order; see ``KernelWarehouse.sharing``.

    Args:
        sites: Every convolution and linear layer of the model as it was.
        layers: The layers that share, by name.
        config: The method's options.
    """
    found: dict[tuple[Any, ...], list[Any]] = {}
    stage_of = stages(sites) if config.sharing != "layer" else {}
    opened: set[str | None] = set()
    for site in sites:
        opens = site.is_conv and site.block is not None and site.block not in opened
        opened.add(site.block)
        if site.name in layers:
            layer = layers[site.name]
            key = (stage_of.get(site.name, site.name), _kind(site, config.sharing, opens), *layer.alike)
            found.setdefault(key, []).append(layer)
    for members in found.values():
        yield from _affordable(members, config)


def stages(sites: Sequence[Site]) -> dict[str, str]:
    """The stage of every layer by name, as the authors cut networks; a layer that is in none is alone.

    A block that changes the number of channels or the size belongs to the stage before it, where what it reads was
    made; of one with a projected shortcut only what reads the block's input does. A convolution between blocks ends a
    stage and is alone, as ConvNeXt's downsampling layers are; one behind all blocks belongs to the last stage.
    """
    blocks: dict[str, list[Site]] = {}
    for site in sites:
        if site.block is not None and not site.gate:
            blocks.setdefault(site.block, []).append(site)
    found: dict[str, str] = {}
    stage, ends = 0, False  # ends: the next block that changes nothing opens another stage
    for site in sites:
        members = blocks.pop(site.block or "", [])
        if members:  # at a block's first layer, the whole block
            main = [s for s in members if not s.shortcut] or members
            changes, before = _changes(main), stage
            if changes and len(main) < len(members):  # ResNet: a projected shortcut; the rest is the new stage
                stage, ends = stage + 1, False
            elif not changes and ends:
                before = stage = stage + 1
                ends = False
            else:  # MobileNetV2: a block that changes belongs to the stage that it leaves
                ends = ends or changes
            for member in members:
                reads_input = member is main[0] or member.shortcut
                found[member.name] = f"stage {before if reads_input else stage}"
        elif found and site.is_conv and site.name not in found and not site.gate:
            if blocks:
                ends = True
            else:
                found[site.name] = f"stage {stage}"
    return found


def cell_shape(kernel_shapes: Sequence[tuple[int, ...]], out_ratio: float, in_ratio: float) -> tuple[int, int]:
    """(co, ci) of the cells of kernels (O, C/G, *k)."""
    outs, ins = (math.gcd(*(shape[axis] for shape in kernel_shapes)) for axis in (0, 1))
    # A ratio that does not divide is rounded to one that does: 1/2 of 3 channels is 1.
    return math.gcd(outs, max(int(outs * out_ratio), 1)), math.gcd(ins, max(int(ins * in_ratio), 1))


def starts(m: int, n: int, ratio: float, first_part: int, first_cell: int) -> tuple[list[int], int]:
    """The cell that each of m parts starts as (n: the cell of zeros), and the first cell of the next layer."""
    if ratio >= 1:
        return [int((first_part + j) * ratio) for j in range(m)], min(int((first_part + m) * ratio), n)
    period = int(1 / ratio)  # of every so many parts one has a cell, another one each time
    found, cell = [], first_cell
    for j in range(m):
        owns = j % period == j // period % period and cell < n
        found.append(cell if owns else n)
        cell += owns
    return found, cell


def _changes(main: Sequence[Site]) -> bool:
    """Whether a block's output has other channels, or another size, than its input."""
    first, last = main[0].module, main[-1].module
    strides = [max(s.module.stride) for s in main if s.is_conv]
    return _channels(first, "in") != _channels(last, "out") or max(strides, default=1) > 1


def _channels(module: Any, side: str) -> int:
    return getattr(module, f"{side}_channels", None) or getattr(module, f"{side}_features")


def _kind(site: Site, sharing: str, opens: bool) -> str:
    """Which of a stage's warehouses a layer shares."""
    if site.is_conv and site.module.groups == site.module.in_channels > 1:
        return "depthwise"
    return "opening" if sharing == "role" and opens else "other"


def _affordable(members: Sequence[Any], config: Any) -> Iterator[list[Any]]:
    """All together, or by the shape of their kernels, or one by one."""
    if not _outgrown(members, config, _MIXED):
        yield list(members)
        return
    shapes: dict[tuple[int, ...], list[Any]] = {}
    for layer in members:
        shapes.setdefault(layer.kernel_shape[:2], []).append(layer)
    for alike in shapes.values():
        yield from ([layer] for layer in alike) if _outgrown(alike, config, _ALIKE) else [alike]


def _outgrown(members: Sequence[Any], config: Any, limit: int) -> bool:
    """Whether the attentions of layers that share would be far larger than their kernels."""
    shapes = [layer.kernel_shape for layer in members]
    co, ci = cell_shape(shapes, config.out_ratio, config.in_ratio)
    sizes = [math.prod(shape) for shape in shapes]
    taps = 1 if config.spatial_partition else math.prod(shapes[0][2:])
    parts = [size // (co * ci * taps) for size in sizes]
    hidden = [config.hidden(layer.in_channels) for layer in members]
    attention = config.cell_ratio * sum(parts) * sum(m * h for m, h in zip(parts, hidden, strict=True))
    allowed = max(_SMALL, limit * sum(sizes)) * max(config.cell_ratio, 1)
    return len(members) > 1 and attention > allowed
