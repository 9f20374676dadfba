# SPDX-License-Identifier: Apache-2.0
"""Trainings by name, the papers' and our study's best, for ``convary compare --recipe`` and ``convary reproduce``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from convary.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """A published training, or the one that our study recommends.

    Attributes:
        name: What the command line calls it.
        title: For people.
        source: Where its settings were read.
        epochs: Passes over the training images.
        batch_size: Images per step, over all processes.
        optimizer: ``"sgd"`` with momentum 0.9, or ``"adamw"``.
        lr: Highest learning rate; of several every network gets the best for it on held-out training images.
        nesterov: Whether sgd's momentum is Nesterov's.
        milestones: Epochs after which the learning rate falls to a tenth; without any it falls along a cosine.
        warmup_epochs: Epochs over which the learning rate rises.
        clip: Largest norm of a step's gradient; None clips nothing.
        weight_decay: Of what ``decay`` names.
        decay: ``"all"`` parameters; ``"weights"``, which are all but biases and those of one axis; or ``"kernels"``.
        dropout: Probability before the classifier.
        label_smoothing: Of the training loss.
        anneal_epochs: Epochs over which temperatures fall; None where no method of the paper has any.
        init: How the methods start, as for ``--init``.
        methods: What it trains, and in which layers (``where``); None leaves both to the caller.
        where: As for ``--where``.
        augment: Whether images are shifted and mirrored at random, where they are no crops.
        crops: Whether it trains on random parts of the images and tests on the centres of larger ones.
        interpolation: How these are scaled.
        rand_augment: RandAugment as timm writes it.
        erasing: Probability of erasing a rectangle.
        mixup: Alpha of mixup.
        mixup_epochs: Epochs over which it rises.
        cutmix: Alpha of CutMix.
        stochastic_depth: Probability of leaving out the last residual branch; None is the network's own.
        ema: Decay of the average of the weights.
        recalled: Fields that nobody has read again.
    """

    name: str
    title: str
    source: str
    epochs: int
    batch_size: int
    optimizer: Literal["sgd", "adamw"]
    lr: float | tuple[float, ...]
    nesterov: bool = False
    milestones: tuple[int, ...] = ()
    warmup_epochs: float = 0.0
    clip: float | None = None
    weight_decay: float
    decay: Literal["kernels", "weights", "all"] = "all"
    dropout: float = 0.0
    label_smoothing: float = 0.0
    anneal_epochs: float | None = None
    init: Literal["paper", "neutral"] = "paper"
    methods: tuple[str, ...] | None = None
    where: str | None = None
    augment: bool = True
    crops: bool = True
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    rand_augment: str | None = None
    erasing: float = 0.0
    mixup: float = 0.0
    mixup_epochs: float = 0.0
    cutmix: float = 0.0
    stochastic_depth: float | None = None
    ema: float | None = None
    recalled: tuple[str, ...] = ()

    def options(self) -> dict[str, Any]:
        """The fields of ``CompareConfig`` that it sets."""
        shared = ("epochs", "batch_size", "optimizer", "nesterov", "milestones", "weight_decay", "decay", "dropout",
                  "label_smoothing", "anneal_epochs", "crops", "interpolation", "rand_augment", "erasing", "mixup",
                  "mixup_epochs", "cutmix", "stochastic_depth", "ema", "clip", "augment", "init")  # fmt: skip
        own = {name: getattr(self, name) for name in ("methods", "where") if getattr(self, name) is not None}
        return {
            **{name: getattr(self, name) for name in shared},
            **own,
            "lr": self.rates,
            "warmup": self.warmup_epochs / self.epochs,
        }

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates to try."""
        return self.lr if isinstance(self.lr, tuple) else (self.lr,)


_OD = "README and main.py of https://github.com/OSVAI/ODConv"
_KW = "main.py and configs of https://github.com/OSVAI/KernelWarehouse"

_MOBILE = TrainingRecipe(
    name="odconv-mobilenetv2",
    title="ODConv's MobileNetV2",
    source=_OD,
    epochs=150,
    batch_size=256,
    optimizer="sgd",
    lr=0.05,
    weight_decay=4e-5,
    dropout=0.2,
    anneal_epochs=10,
)
_RESNET = TrainingRecipe(
    name="odconv-resnet",
    title="ODConv's ResNets",
    source=_OD,
    epochs=100,
    batch_size=256,
    optimizer="sgd",
    lr=0.1,
    milestones=(30, 60, 90),
    weight_decay=1e-4,
    dropout=0.2,
    anneal_epochs=10,
)
_DY = "https://arxiv.org/abs/1912.03458, the section on training"
_KW_RESNET = TrainingRecipe(
    name="kernelwarehouse-resnet",
    title="KernelWarehouse's ResNets",
    source=_KW,
    epochs=300,
    batch_size=4096,
    optimizer="adamw",
    lr=4e-3,
    warmup_epochs=20,
    weight_decay=0.05,
    decay="weights",
    label_smoothing=0.1,
    anneal_epochs=20,
    interpolation="bicubic",
    rand_augment="rand-m9-mstd0.5-inc1",
    erasing=0.25,
    mixup=0.8,
    cutmix=1.0,
    stochastic_depth=0.1,
)
_KW_MOBILE = TrainingRecipe(
    name="kernelwarehouse-mobilenetv2",
    title="KernelWarehouse's MobileNetV2",
    source=_KW,
    epochs=150,
    batch_size=256,
    optimizer="sgd",
    lr=0.05,
    nesterov=True,
    weight_decay=4e-5,
    decay="weights",
    label_smoothing=0.1,
    anneal_epochs=15,
)
_DCD = TrainingRecipe(
    name="dcd-mobilenetv2",
    title="DCD's MobileNetV2",
    source="https://arxiv.org/abs/2103.08756 and main.py of https://github.com/liyunsheng13/dcd",
    epochs=300,
    batch_size=512,
    optimizer="sgd",
    lr=0.1,
    weight_decay=2e-5,
    dropout=0.2,
    label_smoothing=0.1,
    mixup=0.2,
    mixup_epochs=100,
    recalled=("epochs", "weight_decay", "dropout", "label_smoothing"),
)
_BEST_SMALL = TrainingRecipe(
    name="best-small",
    title="our study's recipe for small networks: CondConv with routers that start neutral",
    source="docs/evidence.md, which has its gains and what it was confirmed on",
    epochs=20,
    batch_size=128,
    optimizer="adamw",
    lr=(0.02, 0.045, 0.1),
    warmup_epochs=2.0,
    clip=1.0,
    weight_decay=0.05,
    decay="kernels",
    init="neutral",
    methods=("static", "static@macs:condconv", "condconv"),
    where="all & ~first",
    augment=False,
    crops=False,
)


def _variant(recipe: TrainingRecipe, suffix: str, told: str, **changes: Any) -> TrainingRecipe:
    return dataclasses.replace(recipe, name=f"{recipe.name}-{suffix}", title=f"{recipe.title}, {told}", **changes)


def _narrow(recipe: TrainingRecipe) -> Iterable[TrainingRecipe]:
    recalled = tuple(dict.fromkeys((*recipe.recalled, "dropout")))
    for width, dropout in (("0.75", 0.1), ("0.5", 0.0)):
        yield _variant(recipe, width, f"{width} times as wide", dropout=dropout, recalled=recalled)


def _recipes() -> Iterable[TrainingRecipe]:
    ours = {"source": _DY, "recalled": ("batch_size", "dropout")}
    dy_mobile = dataclasses.replace(
        _MOBILE, name="dyconv-mobilenetv2", title="DyConv's MobileNetV2", epochs=300, **ours
    )
    yield from (_MOBILE, *_narrow(_MOBILE), _RESNET, dy_mobile, *_narrow(dy_mobile))
    yield dataclasses.replace(_RESNET, name="dyconv-resnet", title="DyConv's ResNets", dropout=0.1, **ours)
    yield _DCD
    yield _KW_RESNET
    yield _variant(_KW_RESNET, "full-depth", "without stochastic depth", stochastic_depth=None)
    yield _variant(_KW_RESNET, "quarter", "1/4x", stochastic_depth=None, mixup=0.0, cutmix=0.0)
    convnext = {"name": "kernelwarehouse-convnext", "title": "KernelWarehouse's ConvNeXt-Tiny", "ema": 0.9999}
    averaged = dataclasses.replace(_KW_RESNET, **convnext, stochastic_depth=0.3)
    yield averaged
    yield _variant(averaged, "static", "static", stochastic_depth=0.1)
    yield _KW_MOBILE
    yield _variant(_KW_MOBILE, "hard", "without label smoothing", label_smoothing=0.0)
    yield _BEST_SMALL


RECIPES: dict[str, TrainingRecipe] = {recipe.name: recipe for recipe in _recipes()}


def training_recipe(name: str) -> TrainingRecipe:
    """A training by its name.

    Raises:
        ConfigError: there is none.
    """
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}{nearest(name, RECIPES)}; known: {', '.join(RECIPES)}")
    return RECIPES[name]


def as_markdown() -> str:
    """All recipes as a section of a page."""
    head = "| recipe | epochs | batch | optimizer | lr | decay | dropout | T falls over | images |"
    lines = [head, "|---|---:|---:|---|---|---|---|---|---|", *map(_line, RECIPES.values())]
    sources: dict[str, list[str]] = {}
    for recipe in RECIPES.values():
        sources.setdefault(recipe.source, []).append(recipe.name)
    below = [f"- {', '.join(names)}: {source}." for source, names in sources.items()]
    unread = [recipe for recipe in RECIPES.values() if recipe.recalled]
    recalled = [f"- {recipe.name}: recalled, not read again: {', '.join(recipe.recalled)}." for recipe in unread]
    return "\n".join(["## Recipes", "", _SAID, *lines, "", *below, *recalled, ""])


_SAID = """\
`convary compare --recipe NAME` trains any network by one of these; each field has a flag that overrides it, and the
results name both. sgd has momentum 0.9. A learning rate falls along a cosine to 0, or to a tenth after the epochs
given; where it rises first, the cosine begins with the first step all the same. "all" decays every parameter,
"weights" all but biases and those of one axis, "kernels" also no router or gate. Of several rates each network gets
the best on held-out training images. `best-small` is no paper's: [our study](evidence.md) came to it, and it trains
CondConv with routers that start neutral beside the static network and a static one of equal multiply-adds. Crops:
training is on random resized crops, mirrored at random, and testing on
the centre of an image whose shorter side is 8/7 of what the network sees; RandAugment is timm's.
"""


def _line(recipe: TrainingRecipe) -> str:
    falls = f", a tenth after {', '.join(map(str, recipe.milestones))}" if recipe.milestones else ", cosine"
    rises = f", rises over {recipe.warmup_epochs:g}" if recipe.warmup_epochs else ""
    smooth = f", label smoothing {recipe.label_smoothing:g}" if recipe.label_smoothing else ""
    anneal = "–" if recipe.anneal_epochs is None else f"{recipe.anneal_epochs:g} epochs"
    images = [
        "" if recipe.crops else "as they are",
        "bicubic" if recipe.interpolation == "bicubic" else "",
        f"RandAugment {recipe.rand_augment}" if recipe.rand_augment else "",
        f"erasing {recipe.erasing:g}" if recipe.erasing else "",
        f"mixup {recipe.mixup:g}" if recipe.mixup else "",
        f"(rises over {recipe.mixup_epochs:g} epochs)" if recipe.mixup_epochs else "",
        f"CutMix {recipe.cutmix:g}" if recipe.cutmix else "",
        f"stochastic depth {recipe.stochastic_depth:g}" if recipe.stochastic_depth is not None else "",
        f"weights averaged at {recipe.ema:g}" if recipe.ema else "",
    ]
    told = ", ".join(part for part in ("crops" if recipe.crops else "", *images) if part).replace(", (", " (")
    optimizer = recipe.optimizer + (", Nesterov" if recipe.nesterov else "")
    rate = f"{' or '.join(f'{lr:g}' for lr in recipe.rates)}{falls}{rises}"
    cells = [recipe.name, str(recipe.epochs), str(recipe.batch_size), optimizer + smooth, rate,
             f"{recipe.weight_decay:g}, {recipe.decay}", f"{recipe.dropout:g}", anneal, told]  # fmt: skip
    return f"| {' | '.join(cells)} |"
