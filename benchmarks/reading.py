# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D103
"""Images a second that a training with crops reads from JPEG files, against a bare torchvision DataLoader; and memory.

    python benchmarks/reading.py --root DATA --out benchmarks/results/reading.json

CIFAR-10's 50,000 training images are written as JPEG folders, of 32 pixels, and some of 256. Both loaders crop,
mirror and normalise; theirs is ImageFolder with v2's transforms. They take turns, and the ratio is the median of the
rounds'; that of processor time, of all processes together, says more where a machine is shared. Memory is the
proportional set size of all processes, at ten moments of an epoch of all 50,000 files.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision.transforms.functional import resize, to_pil_image

from convary.bench.machine import load as load_of_machine
from convary.bench.machine import machine
from convary.data import DataSet, load
from convary.data.reading import Reading
from convary.files import write_json
from convary.train.config import CompareConfig
from convary.train.images import TrainingImages

BATCH, ROUNDS = 100, 5


def write_folders(dataset: DataSet, root: Path, side: int, count: int) -> Path:
    """The first ``count`` training images as JPEG files, and one test image a class."""
    for part, split, most in (("train", dataset.train, count), ("val", dataset.test, 100)):
        for i, label in enumerate(split.labels[:most].tolist()):
            folder = root / part / dataset.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            resize(to_pil_image(split.images[i]), [side, side]).save(folder / f"{i:05}.jpg", quality=90)
    return root


def ours(root: Path, size: int, workers: int, steps: int) -> Iterator:
    config = CompareConfig(data=f"folder:{root}", image_size=size, crops=True, workers=workers)
    dataset = config.load_images()
    assert dataset.reading == Reading(crops=True, workers=workers)
    images = TrainingImages(config=config, dataset=dataset, batch_size=BATCH, seed=0, device=torch.device("cpu"))
    return images.batches(range(steps), 0, 1)


def bare(root: Path, size: int, workers: int, steps: int) -> Iterator:
    transforms = [
        v2.RandomResizedCrop(size),
        v2.RandomHorizontalFlip(),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
    ]
    transforms.append(v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    dataset = ImageFolder(str(root / "train"), v2.Compose(transforms))
    options = {"prefetch_factor": 4} if workers else {}
    sampler = RandomSampler(dataset, num_samples=steps * BATCH)
    return iter(DataLoader(dataset, BATCH, sampler=sampler, num_workers=workers, **options))


def rates(loader: Callable[..., Iterator], root: Path, size: int, workers: int, steps: int) -> tuple[float, float]:
    """Images a second from the second batch on, and images a second of processor time."""
    used = -_processor_seconds()
    batches = loader(root, size, workers, steps)
    next(batches)
    start = time.perf_counter()
    for _ in batches:
        pass
    seconds = time.perf_counter() - start
    del batches  # its processes end here, and are counted then
    return (steps - 1) * BATCH / seconds, steps * BATCH / (used + _processor_seconds())


def _processor_seconds() -> float:
    """Of this process and of those that it ended."""
    return sum(os.times()[:4])


def compared(root: Path, size: int, workers: int, steps: int) -> dict[str, float]:
    pairs = [tuple(rates(loader, root, size, workers, steps) for loader in (ours, bare)) for _ in range(ROUNDS)]
    found: dict[str, float] = {"size": size, "workers": workers}
    for place, kind in enumerate(("", "processor_")):
        ratios = sorted(own[place] / other[place] for own, other in pairs)
        found |= {
            f"{kind}images_per_second": round(statistics.median(own[place] for own, _ in pairs)),
            f"bare_{kind}images_per_second": round(statistics.median(other[place] for _, other in pairs)),
            f"{kind}ratio": round(statistics.median(ratios), 3),
            f"{kind}lowest": round(ratios[0], 3),
            f"{kind}highest": round(ratios[-1], 3),
        }
    return found


def memory(root: Path, workers: int, steps: int) -> list[float]:
    """Megabytes of this process and its workers, at ten moments of the steps."""
    return [
        round(_megabytes(), 1) for step, _ in enumerate(ours(root, 32, workers, steps), 1) if step % (steps // 10) == 0
    ]


def _megabytes() -> float:
    own = os.getpid()
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    total = 0
    for process in (own, *children):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    busy = load_of_machine()
    cifar = load("cifar10", given.root)
    with tempfile.TemporaryDirectory() as folder:
        small = write_folders(cifar, Path(folder) / "small", 32, 50_000)
        large = write_folders(cifar, Path(folder) / "large", 256, 2_000)
        rows = [compared(small, 32, workers, 40) for workers in (0, 1, 2)]
        rows += [compared(large, 224, workers, 8) for workers in (0, 1, 2)]
        epoch = memory(small, 2, 500)
    write_json(
        given.out, {"machine": machine(), "load": busy, "batch": BATCH, "rates": rows, "megabytes_over_an_epoch": epoch}
    )
    for row in rows:
        print(row)
    print(epoch)


if __name__ == "__main__":
    main()
