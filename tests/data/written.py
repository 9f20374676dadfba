# SPDX-License-Identifier: Apache-2.0
"""Small data sets in the layouts of the public ones, for tests to write."""

import json

import av
import numpy as np
import torch
from PIL import Image

from convary.data.coco import encode

H, W = 21, 33


def square(x, y, side):
    mask = torch.zeros(H, W, dtype=torch.bool)
    mask[y : y + side, x : x + side] = True
    return mask


def unpacked(mask):
    """COCO's run lengths as a list: column by column, zeros first."""
    flat = mask.T.flatten().int()
    edges = [0, *(flat.diff().nonzero().squeeze(1) + 1).tolist(), flat.numel()]
    runs = np.diff(edges).tolist()
    return {"size": [H, W], "counts": [0, *runs] if flat[0] else runs}


CONTENT = {
    "images": [
        {"id": 7, "file_name": "a.png", "height": H, "width": W},
        {"id": 3, "file_name": "b.png", "height": H, "width": W},
    ],
    "categories": [{"id": 18, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 18, "bbox": [4, 5, 10, 10], "iscrowd": 0, "area": 100,
         "segmentation": [[4, 5, 14, 5, 14, 15, 4, 15]]},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [1, 2, 6, 6], "iscrowd": 0, "area": 36,
         "segmentation": unpacked(square(1, 2, 6))},
        {"id": 3, "image_id": 7, "category_id": 2, "bbox": [20, 3, 8, 8], "iscrowd": 0, "area": 64,
         "segmentation": encode(square(20, 3, 8))},
        {"id": 4, "image_id": 7, "category_id": 2, "bbox": [0, 0, 30, 20], "iscrowd": 1, "area": 600,
         "segmentation": unpacked(square(0, 0, 20))},
    ],
}  # fmt: skip


def pixels(name):
    return torch.zeros(3, H, W, dtype=torch.uint8)


def folder_of(path, content=CONTENT, part="train2017"):
    """A folder in COCO's layout."""
    (path / "annotations").mkdir(exist_ok=True)
    (path / part).mkdir()
    (path / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    for image in content["images"]:
        Image.new("RGB", (image["width"], image["height"]), (9, 90, 200)).save(path / part / image["file_name"])
    return path


def write_rgbd(root, names=("a", "b", "c.d"), folders=("RGB", "depth", "GT"), size=(20, 12), depth_size=None, mask=255):
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for shade, name in enumerate(names):
        Image.new("RGB", size, (40 * shade, 9, 7)).save(root / folders[0] / f"{name}.jpg")
        Image.fromarray(gradient(depth_size or size)).save(root / folders[1] / f"{name}.png")
        picture = Image.new("L", size)
        picture.paste(mask, (5, 2, 15, 8))
        picture.save(root / folders[2] / f"{name}.png")
    return root


def gradient(size, dtype=np.uint8, top=255):
    return np.linspace(0, top, size[0] * size[1]).reshape(size[1], size[0]).astype(dtype)


def write_video(path, frames):
    """Lossless: (N, H, W, 3) uint8."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
