# SPDX-License-Identifier: Apache-2.0
"""Builds the embedded set ``fashion-mnist-mini`` from the four IDX files of the full Fashion-MNIST.

The set is the first 800 training and the first 200 test images of each class, in file order, on one PNG sheet of
100 x 100 images: ten rows a class, the first eight of them for training. A JSON file beside it records the sources.

    python scripts/build_fashion_mnist_mini.py /usr/share/datasets/fashion-mnist src/convary/data/embedded

Debian's ``dataset-fashion-mnist`` brings the IDX files. The same files always give the same pixels; the bytes of the
PNG also depend on the version of zlib, so the JSON file has the checksum of the pixels.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
from pathlib import Path

import torch
from PIL import Image

from convary.data.cards import FASHION_LICENSE, find_idx
from convary.data.dataset import balanced
from convary.data.idx import FASHION_CLASSES, FASHION_SOURCE, read_idx

TRAIN_ROWS, TEST_ROWS, PER_ROW = 8, 2, 100


def main() -> None:
    """Reads the full set, writes the sheet and its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with the IDX files, plain or gzipped")
    parser.add_argument("target", type=Path, help="folder to write to")
    arguments = parser.parse_args()

    K = len(FASHION_CLASSES)
    checksums, rows = {}, []
    for part, count in (("train", TRAIN_ROWS), ("t10k", TEST_ROWS)):
        images = _read(arguments.source, f"{part}-images-idx3", checksums)
        labels = _read(arguments.source, f"{part}-labels-idx1", checksums)
        chosen = balanced(labels.long(), K * count * PER_ROW)
        chosen = chosen[labels[chosen].argsort(stable=True)]
        rows.append(images[chosen].reshape(K, count, PER_ROW, 28, 28))
    grid = torch.cat(rows, dim=1)  # (class, row, column, 28, 28)
    sheet = grid.permute(0, 1, 3, 2, 4).reshape(K * (TRAIN_ROWS + TEST_ROWS) * 28, PER_ROW * 28)

    arguments.target.mkdir(parents=True, exist_ok=True)
    path = arguments.target / "fashion_mnist_mini.png"
    Image.fromarray(sheet.numpy()).save(path, optimize=True)
    record = {
        "title": "Fashion-MNIST mini (8,000 + 2,000 images)",
        "classes": FASHION_CLASSES,
        "train_rows": TRAIN_ROWS,
        "test_rows": TEST_ROWS,
        "images_per_row": PER_ROW,
        "license": FASHION_LICENSE,
        "source": FASHION_SOURCE,
        "source_sha256": checksums,
        "pixels_sha256": hashlib.sha256(sheet.numpy().tobytes()).hexdigest(),
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"{path}: {path.stat().st_size:,} bytes")


def _read(folder: Path, kind: str, checksums: dict[str, str]) -> torch.Tensor:
    path = find_idx(folder, f"{kind}-ubyte")
    if path is None:
        raise SystemExit(f"no {kind}-ubyte[.gz] in {folder}; apt-get install dataset-fashion-mnist brings it")
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    checksums[f"{kind}-ubyte"] = hashlib.sha256(content).hexdigest()
    return read_idx(path)


if __name__ == "__main__":
    main()
