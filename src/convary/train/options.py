# SPDX-License-Identifier: Apache-2.0
"""The fields of ``CompareConfig``, in the groups that its help shows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from convary.catalogue import METHOD_NAMES
from convary.errors import ConfigError
from convary.train.run_config import Kind

_RAND_AUGMENT = re.compile(r"rand(-(m|n|p|mstd|mmax|inc)[0-9.]+)+")
Precision = Literal["fp32", "bf16", "fp16"]
Init = Literal["paper", "neutral", "upcycle"]


@dataclass(frozen=True, kw_only=True)
class BasicOptions:
    """What is compared, how long, and where it goes."""

    group: ClassVar[str] = "what to compare"

    data: str = "fashion-mnist-mini"
    """fashion-mnist-mini (embedded), control (a made-up task that needs a dynamic kernel), fashion-mnist, cifar10,
    cifar10-conditions (day, night, negatives, on its side), cifar100, folder:PATH with one sub-folder per class, or
    hf:NAME, which Hugging Face datasets reads (pip install datasets): a folder, or the name of a set, after which may
    stand a colon and its configuration; #label=COLUMN at the end chooses among several columns of classes."""

    model: str = "mobilenet_v2_tiny"
    """mobilenet_v2_tiny, convnet_nano (3,332 parameters for ten classes in grey), resnet20, one_conv,
    torchvision:NAME or timm:NAME; convnet_nano@1.25 is 1.25 times as wide."""

    weights: str = "random"
    """What every network starts from. random: untrained. pretrained: ImageNet's, as torchvision or timm has them. Or a
    FILE: a state dict (.pt, .pth, .safetensors), or the checkpoint of a static network of convary compare. The
    classifier is new where the classes differ; photographs are read as the weights want them."""

    methods: tuple[str, ...] = ("static", *METHOD_NAMES)
    """What to train: static and any of the methods, in the order of the report. odconv:experts=2,sharing=per_kernel is
    a method with options of its own, odconv:init=neutral one with another start than the others. static@1.25 is a
    static network 1.25 times as wide, static@macs:odconv one as expensive as the network of a method, by multiply-adds,
    parameters (params), measured latency of an image (latency) or of 16 (latency16). se, cbam, eca and we (weight
    excitation) are what the papers compare with."""

    where: str = "paper"
    """Which layers become dynamic: paper, or a selector as in 'all & ~first'; see convary plan."""

    epochs: int = 3
    """Passes over the training images, for every method."""

    seeds: int = 1
    """How many times to train each method, with the seeds 0, 1, ...; more than one gives a standard deviation."""

    lr: tuple[float, ...] = ()
    """Highest learning rate, by default 0.01, or 0.001 with --weights: it rises during the warm-up, then falls along a
    cosine. Of several, every network gets the one that is best for it on the held-out part of the training images;
    test images are not looked at for it."""

    out: Path = Path("runs/compare")
    """Folder for the report, results.json and checkpoints. An interrupted run in it is resumed."""

    limit_train: int | None = None
    """Train on this many images only, balanced over the classes."""

    image_size: int | None = None
    """Height and width for photographs (folder:, hf:); by default 64, or with --weights what those were trained at."""

    recipe: str | None = None
    """A published training, as in odconv-resnet: it sets epochs, batch size, optimizer, learning rate, decay, dropout
    and more, each of which its own flag overrides. The results name the recipe and what was changed."""

    cpu: bool = False
    """Stay on the CPU even where there is an accelerator."""


@dataclass(frozen=True, kw_only=True)
class LearningOptions:
    """How networks start and learn."""

    group: ClassVar[str] = "training"

    batch_size: int = 32
    """Images per training step, over all processes."""

    optimizer: Literal["adamw", "sgd", "rmsprop"] = "adamw"
    """adamw; or sgd with Nesterov momentum 0.9, which wants lr=0.1 and weight_decay=0.0005; or rmsprop as TensorFlow
    has it. In a short training adamw lets routers learn before their temperature falls."""

    milestones: tuple[int, ...] = ()
    """Epochs after which the learning rate falls to a tenth; without any it falls along a cosine."""

    exponential: tuple[float, float] | None = None
    """Instead of milestones or a cosine: what the learning rate is multiplied by, and after how many epochs each time,
    as in 0.97 2.4; over the warm-up it only rises."""

    nesterov: bool = True
    """Whether the momentum of sgd is Nesterov's."""

    weight_decay: float = 0.05
    """Weight decay of kernels and linear layers; routers, gates, norms and biases have none, see cv.param_groups."""

    decay: Literal["kernels", "weights", "all"] = "kernels"
    """What weight_decay shrinks: kernels and linear layers; weights, which are all but biases and those of one axis; or
    all parameters, routers among them, as most papers did."""

    warmup: float = 0.1
    """Part of all steps over which the learning rate rises to its highest value."""

    clip: float | None = 1.0
    """Largest norm of a step's gradient; longer ones are scaled down. Routers that sharpen give such steps."""

    label_smoothing: float = 0.0
    """Label smoothing of the training loss."""

    dropout: float | None = None
    """Probability of dropping a feature before the classifier; by default the network's own."""

    classifier_bias: bool = True
    """Whether the classifier has a bias; in some papers' networks it has none."""

    augment: bool = False
    """Shift and mirror the training images at random. Helps long trainings, costs short ones."""

    init: Init | None = None
    """paper: every expert is initialised on its own, as published. neutral: experts likewise, but routers begin with
    the same coefficients for every image, at their final temperature. upcycle: from the seed's static weights, or the
    trained ones of --weights. By default paper, with --weights upcycle."""

    anneal_epochs: float | None = None
    """Epochs over which temperatures fall to their last value; by default as published, but at most a third of all."""

    start: Path | None = None
    """Folder of a finished comparison: every network starts as what its trained static network of the same seed
    computes, and trains on; add --init upcycle. What static gains by training on is then no gain of a method. It has
    seen the images that several lr are judged on; a single lr needs no judge."""

    held_out: float = 0.1
    """Part of the training images that the choice of a learning rate is judged on; the final trainings have it too."""

    lr_seeds: int = 1
    """Seeds with which each of several learning rates is tried."""


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """What large trainings have beyond small ones."""

    group: ClassVar[str] = "large and published trainings"

    workers: int = 0
    """Processes that read and augment images; 0: the training process itself. Another number gives the same results."""

    skip_broken: bool = False
    """Leave out photographs (folder:, hf:) that can't be read, list them in OUT/skipped.txt and count them in the
    results; without it the first one ends the training. All test images are read once at the start."""

    crops: bool = False
    """Train on random parts of the images, scaled to --image-size and mirrored at random, instead of --augment, and
    test on the centres of larger ones: the usual way on ImageNet. The images then stay in their files."""

    test_size: int | None = None
    """Height and width for testing with --crops; by default those for training."""

    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How --crops scales images."""

    rand_augment: str | None = None
    """With --crops: RandAugment as timm writes it, as in rand-m9-mstd0.5-inc1."""

    erasing: float = 0.0
    """With --crops: probability of filling a rectangle of an image with noise."""

    mixup: float = 0.0
    """Blend images in pairs, by shares from a beta distribution with this alpha."""

    mixup_epochs: float = 0.0
    """Epochs over which that alpha rises from 0."""

    cutmix: float = 0.0
    """Likewise, but paste a rectangle of the other image; with --mixup each batch gets one of both."""

    stochastic_depth: float | None = None
    """Probability of leaving out the last residual branch for an image, falling to 0 at the first; by default the
    network's own."""

    ema: float | None = None
    """Average the weights over the steps with this decay, as in 0.9999; the average is tested and kept."""

    accumulate: int = 1
    """Parts that a step's images are trained in, one after the other, to need less memory; norms see one at a time."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16, or on GPUs fp16: automatic mixed precision."""

    channels_last: bool = False
    """Keep images and kernels with their channels last, which GPUs convolve faster."""

    sync_norms: bool = False
    """On several GPUs: batch norms see the images of all processes, as on one; by default each sees its own."""

    shard: bool = False
    """Of several processes, each keeps a share of every weight, its gradient, its average and the optimizer's state
    (FSDP2), for networks that don't fit on a GPU otherwise; by default each has all. Results agree to rounding, and
    either resumes what the other began."""

    compile: bool = False
    """Train through torch.compile, which takes a minute for each network before its first step and wants a C++ compiler
    on a CPU. Results agree with those without it to rounding. Tests are not compiled."""

    def check_scale(self) -> None:
        """Raise ConfigError for a value that cannot work."""
        for name, least in (("workers", 0), ("accumulate", 1), ("mixup", 0), ("cutmix", 0), ("mixup_epochs", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if self.test_size is not None and self.test_size < 1:
            raise ConfigError(f"test_size must be at least 1; got {self.test_size}")
        if not 0 <= self.erasing <= 1:
            raise ConfigError(f"erasing must be a probability; got {self.erasing}")
        for name in ("stochastic_depth", "ema"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"{name} must be at least 0 and below 1; got {value}")
        usual = ScaleOptions()
        for name in ("test_size", "interpolation", "rand_augment", "erasing"):
            if not self.crops and getattr(self, name) != getattr(usual, name):
                raise ConfigError(f"{name} is a part of --crops; give both, or neither")
        if self.rand_augment is not None and not _RAND_AUGMENT.fullmatch(self.rand_augment):
            raise ConfigError(f"rand_augment is written as in rand-m9-mstd0.5-inc1; got {self.rand_augment!r}")
        if self.mixup_epochs and not self.mixup:
            raise ConfigError("mixup_epochs is a part of --mixup; give both, or neither")
        for name, clashes in (("compile", self.compile), ("channels_last", self.channels_last)):
            if self.shard and clashes:
                raise ConfigError(f"shard trains without {name}; got both: leave one out")
        if self.shard and self.precision == "fp16":
            raise ConfigError("shard trains in fp32 or bf16; got precision=fp16: give --precision bf16")
        if self.precision not in get_args(Precision):
            raise ConfigError(f"precision must be one of {', '.join(get_args(Precision))}; got {self.precision!r}")


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Where it runs and what it writes meanwhile."""

    group: ClassVar[str] = "machine, files and watching"

    root: Path | None = None
    """Where data sets lie; by default $CONVARY_DATA, or a folder in your cache."""

    threads: int | None = None
    """CPU threads; by default torch's own choice. Another number may give other roundings: a run that is resumed with
    it is no longer the same bit for bit."""

    jobs: int = 1
    """Trainings at a time, each in a process of its own with one thread (or --threads); for CPUs. With --threads 1
    another number of jobs gives the same results to the last digit."""

    save_every: float = 20.0
    """Seconds between checkpoints inside an epoch."""

    watch: bool = False
    """Write report.html while it trains too, after each epoch; an open page reloads itself."""

    log: tuple[Kind, ...] = ()
    """Give losses and scores, which OUT/log.csv always has, to tensorboard (OUT/tensorboard) or wandb too."""

    measure_seconds: float = 1.0
    """Seconds for each timing of a dynamic network against the static one; 0 measures no times and no memory. Slow
    networks take longer: three pairs of calls at least. Results and report are written before, and again with them."""
