# SPDX-License-Identifier: Apache-2.0
"""Dynamic Filter Network on Moving MNIST: see some frames, predict those that follow."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convary.data import derive_seed, generator
from convary.data.digits import Source, load_digits
from convary.data.moving import moving_digits, scaled
from convary.data.video import read_video
from convary.errors import ConfigError, DataError
from convary.methods.dfn_local import filter_flow
from convary.models.dfn import DFN
from convary.report.frames import draw_rows, flow_colors
from convary.train.system import System, SystemConfig

EPSILON = 1e-6  # predictions are clipped to [EPSILON, 1 - EPSILON]; the paper gives no number
_TEST = 7  # sets the test sequences' random numbers apart
PICTURED = 3  # test sequences


@dataclass(frozen=True, kw_only=True)
class DFNMovingMNISTConfig(SystemConfig):
    """The next frames of Moving MNIST, generated on the fly; the defaults take minutes on a CPU.

    The network is the published one, 637,361 parameters. As published it trains with --size 64 --seen 10 --predicted 10
    --batch-size 16 --steps 20000 --halve-every 4000 --digits mnist, which wants a GPU.
    """

    name: ClassVar[str] = "dfn-moving-mnist"
    title: ClassVar[str] = "Dynamic Filter Network, Moving MNIST"
    citation: ClassVar[str] = "De Brabandere et al., Dynamic Filter Networks, NIPS 2016"

    out: Path = Path("runs/dfn-moving-mnist")
    steps: int = 1600
    batch_size: int = 4
    lr: float = 1e-3
    halve_every: int = 400
    """Steps after which the learning rate is halved, again and again."""
    digits: Source = "auto"
    """MNIST's (downloaded where they are missing), scikit-learn's (offline), or whichever can be had."""
    root: Path | None = None
    """Data root of MNIST."""
    size: int = 32
    """Height and width of the frames; digits are 7/16 of it."""
    count: int = 2
    """Digits per sequence."""
    speed: float = 0.1
    """Of a digit, in its room (the canvas less the digit) per frame."""
    seen: int = 3
    """Frames that the network is shown."""
    predicted: int = 2
    """Frames that follow, predicted from one another."""
    sequences: int = 200
    """Test sequences, always the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, least in (("size", 16), ("count", 1), ("seen", 1), ("predicted", 1), ("sequences", PICTURED)):
            if getattr(self, field) < least:
                raise ConfigError(f"{field} must be at least {least}; got {getattr(self, field)}")
        if self.halve_every < 1 or not 0 < self.speed < 1:
            raise ConfigError(
                f"halve_every must be at least 1 and speed between 0 and 1; got {self.halve_every}, {self.speed}"
            )

    def load(self) -> MovingMNIST:
        """The system with its digits."""
        return MovingMNIST(self)


class MovingMNIST(System):
    """Sequences out of single digits; the loss is binary cross-entropy, for a pixel is nearly black or white."""

    config: DFNMovingMNISTConfig
    measures = {  # noqa: RUF012  (as the base class declares it)
        "bce": "binary cross-entropy per image; lower is better",
        "bce_copy": "the same of repeating the last frame, to compare with",
        "mse": "squared error per pixel; lower is better",
        "mse_copy": "the same of repeating the last frame, to compare with",
    }

    def __init__(self, config: DFNMovingMNISTConfig) -> None:
        source, *parts = load_digits(config.digits, config.root)
        self.config = dataclasses.replace(config, digits=source)
        self.train, self.test = (scaled(digits, 28 * config.size // 64) for digits in parts)

    @property
    def scored_on(self) -> str:
        """Nothing that was trained on."""
        return "Scored on sequences of digits that were never trained on."

    @property
    def size(self) -> int:
        """Sequences are new every time; this is the published epoch."""
        return 3200

    def item(self, index: int, rng: torch.Generator) -> Tensor:
        """A sequence (seen + predicted, 1, size, size)."""
        return self._sequence(self.train, rng)

    def _sequence(self, digits: Tensor, rng: torch.Generator) -> Tensor:
        c = self.config
        return moving_digits(digits, rng, size=c.size, frames=c.seen + c.predicted, count=c.count, speed=c.speed)

    def _tests(self) -> Tensor:
        """The test sequences (sequences, seen + predicted, 1, size, size), of digits never trained on."""
        seed = derive_seed(0, _TEST)
        return torch.stack([self._sequence(self.test, generator(seed, i)) for i in range(self.config.sequences)])

    def model(self) -> nn.Module:
        """The published network."""
        return DFN()

    def rate(self, step: int) -> float:
        """Halved every ``halve_every`` steps."""
        return 0.5 ** (step // self.config.halve_every)

    def losses(self, model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        """Binary cross-entropy, mean over pixels and frames."""
        seen, future = batch.split([self.config.seen, self.config.predicted], 1)
        return {"bce": cross_entropy(model(seen, self.config.predicted), future).mean()}

    def scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Binary cross-entropy per image (the published score) and squared error per pixel, beside copying."""
        sums = torch.zeros(4, dtype=torch.double)
        tests = self._tests()
        for batch in tests.split(self.config.batch_size):
            seen, future = batch.to(device).split([self.config.seen, self.config.predicted], 1)
            guesses = (model(seen, self.config.predicted), seen[:, -1:].expand_as(future))
            parts = [measure(guess, future) for measure in (cross_entropy, squared_error) for guess in guesses]
            sums += torch.stack([part.double().mean((1, 2, 3, 4)).sum() for part in parts]).cpu()
        bce, bce_copy, mse, mse_copy = (sums / len(tests)).tolist()
        pixels = self.config.size**2
        return {"bce": bce * pixels, "bce_copy": bce_copy * pixels, "mse": mse, "mse_copy": mse_copy}

    def draw(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        """Test sequences: what was seen, what followed, what was predicted, and where its pixels come from."""
        seen, future = self._tests()[:PICTURED].to(device).split([self.config.seen, self.config.predicted], 1)
        assert isinstance(model, DFN)
        predictions = model.predict(seen, self.config.predicted)
        reach = model.kernel_size // 2
        rows = []
        for i in range(PICTURED):
            blank = [None] * len(seen[i])
            flows = [filter_flow(step.filters[i : i + 1], model.kernel_size)[0] for step in predictions]
            colors = [flow_colors(-flow, reach) for flow in flows]
            lit = [(step.frame[i] / step.frame[i].max()).cpu() for step in predictions]  # black may come from anywhere
            rows += [
                ("true", [*seen[i], *future[i]]),
                ("predicted", [*blank, *(step.frame[i] for step in predictions)]),
                ("filter flow", [*blank, *(1 - light * (1 - color) for light, color in zip(lit, colors, strict=True))]),
            ]
        names = [f"seen {n + 1}" for n in range(len(seen[0]))] + [f"next {n + 1}" for n in range(len(predictions))]
        return [draw_rows(rows, folder / "next-frames.png", columns=names)]

    def predict(self, model: nn.Module, device: torch.device, source: Path, target: Path) -> None:
        """The last frames of a video in grey, and those that the network expects after them."""
        c = self.config
        frames = read_video(source, gray=True, height=c.size)[-c.seen :]
        if len(frames) < c.seen:
            raise DataError(f"{source} has {len(frames)} frames; at least {c.seen} are needed")
        seen = F.interpolate(frames.float() / 255, (c.size, c.size), mode="area").to(device)
        row = [*seen, *model(seen[None], c.predicted)[0]]
        names = [f"seen {n + 1}" for n in range(c.seen)] + [f"next {n + 1}" for n in range(c.predicted)]
        draw_rows([("", row)], target, columns=names)


def cross_entropy(guess: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy of every pixel, the guess clipped to [EPSILON, 1 - EPSILON]."""
    guess = guess.float().clamp(EPSILON, 1 - EPSILON)
    return -(truth * guess.log() + (1 - truth) * (1 - guess).log())


def squared_error(guess: Tensor, truth: Tensor) -> Tensor:
    """Of every pixel."""
    return (guess.float() - truth).square()
