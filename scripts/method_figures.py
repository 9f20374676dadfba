# SPDX-License-Identifier: Apache-2.0
"""Draw the figure of each method's page, docs/images/methods/*.svg: what makes the kernel, out of what.

    python -m scripts.method_figures

All have one plan. Above, the input goes through the convolution. In the middle a router looks at the input and gives
coefficients. Below lies what is learned, which the coefficients make a kernel of. Sizes and shares are made up: four
experts, three filters of nine taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts import method_icons as icons
from scripts.diagram import Drawing, color

FOLDER = Path(__file__).parent.parent / "docs" / "images" / "methods"
WIDTH, HEIGHT, LOW = 760, 330, 222  # LOW: of figures that nothing stands below in
ABOVE, MIDDLE, BELOW = 62, 168, 278  # heights of the three lanes
MADE, KERNEL, OUT = 500, 606, 704  # where coefficients and weights meet, where the kernel is, and the output


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a figure shows.

    Attributes:
        title: Of the method.
        says: The figure in a sentence or two.
        look: What the router sees of the input.
        router: What it is.
        factors: The coefficients, by their name in ``convary.routing``: an icon and what they are for.
        material: Icon of what is learned, and its name; None where the coefficients are the kernel.
        operation: How they meet.
        kernel: Icon of what comes out, and its name.
        input: Icon of input and output.
        product: What the kernel does.
        before: What is done to the input on its way.
    """

    title: str
    says: str
    look: Sequence[str] = ("mean over", "all positions")
    router: Sequence[str]
    factors: dict[str, tuple[icons.Icon, str]]
    material: tuple[icons.Icon, Sequence[str]] | None
    operation: str = "Σ"
    kernel: tuple[icons.Icon, Sequence[str]]
    input: icons.Icon = icons.maps
    product: str = "convolution"
    before: Sequence[str] = ()


BANK = (icons.bank, ("a bank of", "K kernels"))
MIXED = (icons.mixed, ("one kernel", "per image"))
METHODS = {
    "condconv": Method(
        title="CondConv",
        says="A linear layer with sigmoids gives each of K kernels a share; their sum is the image's kernel.",
        router=("linear,", "sigmoid"),
        factors={"kernel": (icons.shares, "per kernel")},
        material=BANK,
        kernel=MIXED,
    ),
    "dyconv": Method(
        title="DyConv",
        says="Two layers with a softmax over a temperature give K kernels shares of one; their mean is the image's "
        "kernel.",
        router=("two layers,", "softmax(· / T)"),
        factors={"kernel": (icons.shares, "per kernel")},
        material=BANK,
        kernel=MIXED,
    ),
    "dynet": Method(
        title="DyNet",
        says="Each filter of the kernel has its own shares of the K kernels.",
        router=("linear,", "sigmoid"),
        factors={"filter": (icons.filter_shares, "per kernel and filter")},
        material=BANK,
        kernel=(icons.filters_mixed, ("one kernel", "per image")),
    ),
    "odconv": Method(
        title="ODConv",
        says="Four attentions, along kernels, filters, channels and taps, scale and mix K kernels.",
        router=("a hidden layer,", "four heads, / T"),
        factors={
            "kernel": (icons.shares, "per kernel, softmax"),
            "filter": (icons.bars, "per filter, sigmoid"),
            "channel": (icons.bars, "per channel, sigmoid"),
            "tap": (icons.taps, "per tap, sigmoid"),
        },
        material=BANK,
        operation="×Σ",
        kernel=(icons.scaled, ("one kernel", "per image")),
    ),
    "kernelwarehouse": Method(
        title="KernelWarehouse",
        says="A kernel consists of parts; each part is a mixture of the cells of a warehouse that all layers of a "
        "stage share.",
        router=("a hidden layer,", "contrast, τ"),
        factors={"cells": (icons.cell_shares, "per part and cell")},
        material=(icons.warehouse, ("a warehouse of", "cells, shared by", "a stage's layers")),
        kernel=(icons.assembled, ("one kernel,", "part by part")),
    ),
    "dcd": Method(
        title="DCD",
        says="One static kernel has its filters scaled; a low-rank product with a small dynamic matrix is added.",
        router=("squeeze,", "two heads"),
        factors={"filter": (icons.bars, "L, per filter"), "latent": (icons.latent, "Φ, a small matrix")},
        material=(icons.low_rank, ("a static kernel,", "and P and Q")),
        operation="+",
        kernel=(icons.residual, ("L W + P Φ Q", "per image")),
    ),
    "weightnet": Method(
        title="WeightNet",
        says="M activations for each filter go through a grouped linear layer, which gives all weights of the kernel.",
        router=("reduce, linear,", "sigmoid"),
        factors={"splits": (icons.pairs, "M per filter")},
        material=(icons.pair_bank, ("a grouped", "linear layer")),
        kernel=(icons.pairs_mixed, ("one kernel", "per image")),
    ),
    "cgc": Method(
        title="Context-gated convolution",
        says="The whole map, pooled to the kernel's size, gives a gate for each channel and tap and one for each "
        "filter and tap; the sigmoid of their sum multiplies a static kernel.",
        look=("pooled to the", "kernel's size"),
        router=("encode,", "interact, decode"),
        factors={"channel": (icons.gate_map, "per channel and tap"), "filter": (icons.gate_map, "per filter and tap")},
        material=(icons.static, ("one static", "kernel")),
        operation="×",
        kernel=(icons.gated, ("gated weights,", "per image")),
    ),
    "fdconv": Method(
        title="FDConv",
        says="The spectrum of one kernel is cut into K groups of frequencies, which are weighted, summed and "
        "transformed back; more attentions scale the kernel, and gates weight frequency bands of the input.",
        router=("a hidden layer,", "five heads"),
        factors={
            "frequency": (icons.shares, "per group of freq."),
            "filter": (icons.bars, "per filter"),
            "channel": (icons.bars, "per channel"),
            "tap": (icons.taps, "per tap"),
            "local": (icons.weights, "per weight"),
        },
        material=(icons.spectrum, ("one spectrum,", "K groups of", "frequencies")),
        operation="×Σ",
        kernel=(icons.scaled, ("inverse", "Fourier", "transform")),
        before=("frequency bands,", "gated per position"),
    ),
    "dynamic-perceptron": Method(
        title="Dynamic perceptron",
        says="As DyConv with matrices: two layers with a softmax mix K matrices and biases for each input.",
        look=("x itself, or its", "mean over N"),
        router=("two layers,", "softmax(· / T)"),
        factors={"kernel": (icons.shares, "per matrix")},
        material=(icons.matrices, ("K matrices", "and biases")),
        kernel=(icons.matrix, ("one matrix", "per input")),
        input=icons.vector,
        product="matrix product",
    ),
    "involution": Method(
        title="Involution",
        says="Two 1x1 convolutions make a kernel at every position, which the channels of a group share.",
        look=("each position", "by itself"),
        router=("two 1x1", "convolutions"),
        factors={"": (icons.positions, "k·k per position")},
        material=None,
        kernel=(icons.positions, ("a kernel at", "each position")),
        product="weighted sum",
    ),
    "carafe": Method(
        title="CARAFE",
        says="Two convolutions and a softmax make averaging kernels at every position of a finer grid; the output is "
        "larger than the input.",
        look=("each position", "and around it"),
        router=("1x1 and 3x3,", "softmax of taps"),
        factors={"": (icons.positions, "k·k per fine position")},
        material=None,
        kernel=(icons.positions, ("a kernel at each", "fine position")),
        product="weighted mean",
    ),
}


def figure(method: Method) -> str:
    """The SVG."""
    reach = 34 if method.kernel[0] in icons.WIDE else 15
    height = LOW if method.material is None else HEIGHT
    drawn = Drawing(WIDTH, height, f"How {method.title} makes a kernel", method.says)
    _above(drawn, method)
    drawn.arrow((58, ABOVE + 24), (58, MIDDLE - 24))
    for x, words in ((8, method.look), (142, method.router)):
        _named(drawn, x, MIDDLE, words)
    drawn.arrow((108, MIDDLE), (142, MIDDLE))
    drawn.arrow((242, MIDDLE), (276, MIDDLE))
    _coefficients(drawn, method)
    if method.material is None:
        drawn.arrow((448, MIDDLE), (KERNEL - reach, MIDDLE))
    else:
        drawn.arrow((448, MIDDLE), (MADE - 18, MIDDLE))
        drawn.circle(MADE, MIDDLE, 17, edge=color("muted"))
        drawn.text(MADE, MIDDLE + 5, method.operation, size=14)
        drawn.arrow((MADE + 18, MIDDLE), (KERNEL - reach, MIDDLE))
        icon, words = method.material
        icon(drawn, MADE, BELOW)
        drawn.arrow((MADE, BELOW - 38), (MADE, MIDDLE + 18))
        drawn.lines(MADE - 70, BELOW, words, anchor="end", bold=True)
    icon, words = method.kernel
    icon(drawn, KERNEL, MIDDLE)
    drawn.lines(KERNEL + 40, MIDDLE, words, anchor="start", bold=True)
    return drawn.svg()


def _above(drawn: Drawing, method: Method) -> None:
    """The way of the input through the convolution."""
    method.input(drawn, 58, ABOVE)
    method.input(drawn, OUT, ABOVE)
    drawn.text(58, 24, "x", size=13, bold=True)
    drawn.text(OUT, 24, "y", size=13, bold=True)
    drawn.text(KERNEL, 24, method.product, role="muted")
    drawn.circle(KERNEL, ABOVE, 15, edge=color("muted"))
    drawn.text(KERNEL, ABOVE + 5, "∗", size=15)
    start = 88.0
    if method.before:
        drawn.arrow((start, ABOVE), (290, ABOVE))
        drawn.box(290, ABOVE - 22, 140, 44, edge=color("muted"), radius=6)
        drawn.lines(360, ABOVE, method.before)
        start = 430
    drawn.arrow((start, ABOVE), (KERNEL - 16, ABOVE))
    drawn.arrow((KERNEL + 16, ABOVE), (OUT - 30, ABOVE))
    drawn.arrow((KERNEL, MIDDLE - 38), (KERNEL, ABOVE + 16))


def _named(drawn: Drawing, x: float, y: float, words: Sequence[str]) -> None:
    drawn.box(x, y - 24, 100, 48, edge=color("muted"), radius=6)
    drawn.lines(x + 50, y, words)


def _coefficients(drawn: Drawing, method: Method) -> None:
    """A row for each factor: its icon, and what it is for."""
    rows = list(method.factors.values())
    tall = 28 if len(rows) > 3 else 36 if len(rows) > 1 else 72
    top = MIDDLE - len(rows) * tall / 2
    drawn.box(276, top - 4, 172, len(rows) * tall + 8, fill=color("grid"), opacity=0.5, radius=6)
    for i, (icon, words) in enumerate(rows):
        y = top + (i + 0.5) * tall
        if len(rows) == 1:
            icon(drawn, 362, y - 10)
            drawn.text(362, y + 32, words)
        else:
            icon(drawn, 302, y)
            drawn.text(328, y + 4, words, anchor="start", size=10.5)


def write(folder: Path = FOLDER) -> None:
    """All figures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, method in METHODS.items():
        (folder / f"{name}.svg").write_text(figure(method), encoding="utf-8")


if __name__ == "__main__":
    write()
