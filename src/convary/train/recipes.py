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
        optimizer: ``"sgd"`` with momentum 0.9, ``"adamw"``, or ``"rmsprop"`` as TensorFlow has it.
        lr: Highest learning rate; of several every network gets the best for it on held-out training images.
        nesterov: Whether sgd's momentum is Nesterov's.
        milestones: Epochs after which the learning rate falls to a tenth; without any it falls along a cosine.
        exponential: Instead, a factor that the learning rate gets each time after so many epochs.
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
        image_size: Height and width of the images where these are photographs; None is the usual 224.
        recalled: Fields that nobody has read again.
    """

    name: str
    title: str
    source: str
    epochs: int
    batch_size: int
    optimizer: Literal["sgd", "adamw", "rmsprop"]
    lr: float | tuple[float, ...]
    nesterov: bool = False
    milestones: tuple[int, ...] = ()
    exponential: tuple[float, float] | None = None
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
    image_size: int | None = None
    recalled: tuple[str, ...] = ()

    def options(self) -> dict[str, Any]:
        """The fields of ``CompareConfig`` that it sets."""
        shared = ("epochs", "batch_size", "optimizer", "nesterov", "milestones", "exponential", "weight_decay", "decay",
                  "dropout", "label_smoothing", "anneal_epochs", "crops", "interpolation", "rand_augment", "erasing",
                  "mixup", "mixup_epochs", "cutmix", "stochastic_depth", "ema", "clip", "augment", "init")  # fmt: skip
        names = ("methods", "where", "image_size")
        own = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
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
_DCD_RESNET = TrainingRecipe(
    name="dcd-resnet",
    title="DCD's ResNets",
    source="defaults of main.py and the README of https://github.com/liyunsheng13/dcd",
    epochs=120,
    batch_size=256,
    optimizer="sgd",
    lr=0.1,
    milestones=(30, 60, 90),
    weight_decay=1e-4,
    dropout=0.1,
    recalled=("epochs",),
)
_CONDCONV = TrainingRecipe(
    name="condconv-efficientnet",
    title="CondConv's EfficientNets",
    source="flags of main.py, utils.py and condconv/efficientnet_condconv_builder.py in "
    "https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet (that code also decays biases; its "
    "AutoAugment is off unless asked for, and whether the paper's numbers had it is not said there)",
    epochs=350,
    batch_size=2048,
    optimizer="rmsprop",
    lr=0.128,
    exponential=(0.97, 2.4),
    warmup_epochs=5,
    weight_decay=1e-5,
    decay="weights",
    dropout=0.25,
    label_smoothing=0.1,
    interpolation="bicubic",
    stochastic_depth=0.2,
    ema=0.9999,
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
    dyconv = {"source": _DY, "recalled": ("batch_size", "dropout")}
    dy_mobile = dataclasses.replace(
        _MOBILE, name="dyconv-mobilenetv2", title="DyConv's MobileNetV2", epochs=300, **dyconv
    )
    narrow = list(_narrow(dy_mobile))
    yield from (_MOBILE, *_narrow(_MOBILE), _RESNET, dy_mobile, *narrow)
    yield _variant(narrow[-1], "constant", "temperatures constant", anneal_epochs=0)
    ours = {"source": "odconv-resnet, changed by us for the rows of the paper's ablations"}
    yield _variant(_RESNET, "constant", "temperatures constant", anneal_epochs=0, **ours)
    yield _variant(_RESNET, "double", "twice as long", epochs=200, milestones=(60, 120, 180), **ours)
    yield dataclasses.replace(_RESNET, name="dyconv-resnet", title="DyConv's ResNets", dropout=0.1, **dyconv)
    yield from (_DCD, _DCD_RESNET)
    yield _CONDCONV
    yield _variant(_CONDCONV, "static", "static", dropout=0.2)
    yield _variant(_CONDCONV, "b1", "static B1", dropout=0.2, image_size=240)
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
