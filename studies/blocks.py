# SPDX-License-Identifier: Apache-2.0
"""What the study trains. Each block is one ``convary compare``; blocks of one question share all settings.

Settings were fixed before anything was trained: the network and the 20 epochs, because earlier experiments (4, 12 and
20 epochs) showed that small and long trainings are where kernels can count; learning rates a factor of 2.2 apart around
what static networks of this size like. Seeds are 0 to 4 everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from convary.train import CompareConfig

SEEDS = 5
RATES = (0.02, 0.045, 0.1)
SHAPE = (3, 32, 32)  # of the images that cost is measured on


@dataclass(frozen=True, kw_only=True)
class Block:
    """One comparison.

    Attributes:
        name: Of its folder and its results file.
        question: What it asks.
        arms: As for ``convary compare --methods``.
        base: The block whose static network its arms are compared with; by default its own.
        flags: Fields of ``CompareConfig`` other than the study's; those of a block with a base are what it asks about.
        title: What ``flags`` make of its networks, where their names do not say it.
    """

    name: str
    question: str
    arms: tuple[str, ...]
    base: str = ""
    flags: tuple[tuple[str, object], ...] = ()
    title: str = ""

    def config(self, out: Path, root: Path | None, jobs: int) -> CompareConfig:
        """The comparison to run.

        Args:
            out: The study's folder; the block has one of its own in it.
            root: Where CIFAR-10 lies.
            jobs: Trainings at a time.
        """
        usual = {
            "data": "cifar10",
            "model": "convnet_nano",
            "where": "all & ~first",
            "epochs": 20,
            "batch_size": 128,
            "lr": RATES,
            "seeds": SEEDS,
            "threads": 1,
            "cpu": True,
            "measure_seconds": 5.0,
        }
        flags = {name: out / str(value) if name == "start" else value for name, value in self.flags}
        given: dict[str, Any] = {**usual, **flags, "methods": self.arms, "out": out / self.name, "root": root}
        recipe = given.pop("recipe", None)
        make = CompareConfig if recipe is None else partial(CompareConfig.from_recipe, recipe)
        return make(**given, jobs=jobs)


# Variants of a method take the rate that was chosen for it in s2-papers and s2-kin.
_ODCONV = (("lr", (0.1,)),)
_CONDCONV = (("lr", (0.02,)),)
_DYCONV = (("lr", (0.045,)),)
_DYNET = (("lr", (0.02,)),)

BLOCKS = (
    Block(
        name="s2-papers",
        question="Do CondConv and ODConv gain on a network that lacks capacity, and beyond equal multiply-adds?",
        arms=("static", "static@macs:odconv", "odconv", "condconv"),
    ),
    Block(
        name="s1-rates",
        question="Which learning rates do static and dynamic networks like?",
        arms=("static", "odconv", "condconv"),
        flags=(("lr", (0.01, 0.02, 0.045, 0.1, 0.2)), ("epochs", 12), ("seeds", 1)),
    ),
    Block(
        name="s6-trained",
        question="Does a trained static network gain by becoming dynamic and training on?",
        arms=("static", "odconv", "condconv"),
        flags=(("init", "upcycle"), ("start", "s2-papers"), ("epochs", 10), ("lr", (0.01,))),
    ),
    Block(
        name="s7-conditions",
        question="Does one network gain more where it must serve several conditions, which it is not told?",
        arms=("static", "static@macs:odconv", "odconv", "condconv"),
        flags=(("data", "cifar10-conditions"),),
    ),
    Block(
        name="s3-widths",
        question="How far does width alone take a static network?",
        arms=("static@1.5", "static@2"),
        base="s2-papers",
    ),
    Block(
        name="s3-more-widths",
        question="And a narrower network, and a wider one?",
        arms=("static@0.7", "static@3"),
        base="s2-papers",
    ),
    Block(
        name="s2-kin",
        question="Do DyConv and DyNet?",
        arms=("dyconv", "dynet"),
        base="s2-papers",
    ),
    Block(
        name="s4-odconv",
        question="Do start and number of kernels matter for ODConv as its paper says?",
        arms=("odconv:init=neutral", "odconv:experts=1", "odconv:experts=8"),
        base="s2-papers",
        flags=_ODCONV,
    ),
    Block(
        name="s4-attentions",
        question="What does each of ODConv's four attentions give alone?",
        arms=tuple(f"odconv:attentions={axis}" for axis in ("kernel", "filter", "channel", "tap")),
        base="s2-papers",
        flags=_ODCONV,
    ),
    Block(
        name="s2-attention",
        question="Does attention on feature maps, or on weights, do the same?",
        arms=("se", "cbam", "eca", "we"),
        base="s2-papers",
    ),
    Block(
        name="s2-assembled",
        question="Do the methods that make their kernels otherwise?",
        arms=("kernelwarehouse", "dcd", "weightnet", "cgc", "fdconv"),
        base="s2-papers",
    ),
    Block(
        name="s4-sharing",
        question="Do ODConv's sharing, its norm, its kernel attention's activation and its hidden units matter?",
        arms=(
            *("odconv:sharing=per_kernel", "odconv:norm=layer", "odconv:kernel_activation=sigmoid"),
            "odconv:min_hidden=4",
        ),
        base="s2-papers",
        flags=_ODCONV,
    ),
    Block(
        name="s4-odconv-cold",
        question="Does ODConv need the falling temperature of its paper?",
        arms=("odconv",),
        base="s2-papers",
        flags=(*_ODCONV, ("anneal_epochs", 0)),
        title="temperature 1 throughout",
    ),
    Block(
        name="s4-condconv",
        question="Do start and number of kernels matter for CondConv?",
        arms=("condconv:init=neutral", "condconv:experts=4"),
        base="s2-papers",
        flags=_CONDCONV,
    ),
    Block(
        name="s4-softmax",
        question="Is softmax worse for CondConv, as its paper says?",
        arms=("condconv:activation=softmax",),
        base="s2-papers",
        flags=_CONDCONV,
    ),
    Block(
        name="s4-placement",
        question="Is it enough to put CondConv where its paper puts it: the second half and the classifier?",
        arms=("condconv",),
        base="s2-papers",
        flags=(*_CONDCONV, ("where", "paper")),
        title="second half and classifier",
    ),
    Block(
        name="s4-dyconv",
        question="Do start, width of the router and number of kernels matter for DyConv?",
        arms=("dyconv:init=neutral", "dyconv:extra_hidden=16", "dyconv:experts=2", "dyconv:experts=8"),
        base="s2-papers",
        flags=_DYCONV,
    ),
    Block(
        name="s4-dyconv-cold",
        question="Does DyConv need the falling temperature of its paper?",
        arms=("dyconv",),
        base="s2-papers",
        flags=(*_DYCONV, ("anneal_epochs", 0)),
        title="temperature 1 throughout",
    ),
    Block(
        name="s4-dynet",
        question="Do more kernels per filter gain more for DyNet, as its paper says?",
        arms=("dynet:experts=1", "dynet:experts=2", "dynet:experts=4"),
        base="s2-papers",
        flags=_DYNET,
    ),
    Block(
        name="s8-confirm",
        question="Does the recipe that came out best hold on images that no choice was made on?",
        arms=("static", "static@macs:condconv", "static@1.25", "condconv"),
        flags=(("data", "fashion-mnist"), ("recipe", "best-small")),
    ),
)
