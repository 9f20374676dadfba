# SPDX-License-Identifier: Apache-2.0
"""A small real data set in a folder, and configs that train on it in seconds."""

import pytest
import torch
from PIL import Image

from convary.data import load
from convary.train import CompareConfig, measure


@pytest.fixture(scope="session", autouse=True)
def _few_pairs():
    """Nobody looks at how exact these times are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "PATIENCE", 0.0)
        yield


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder with train/ and test/ of four classes of Fashion-MNIST, 20 + 5 images each."""
    root = tmp_path_factory.mktemp("fashion")
    mini = load("fashion-mnist-mini")
    for part, split, count in (("train", mini.train, 20), ("test", mini.test, 5)):
        for label in (1, 5, 8, 9):
            folder = root / part / mini.classes[label]
            folder.mkdir(parents=True)
            for i, picture in enumerate(split.images[split.labels == label][:count, 0]):
                Image.fromarray(picture.numpy()).save(folder / f"{i:02}.png")
    return root


@pytest.fixture(scope="session")
def make_for(images):
    """Configs for these images: two epochs of ten steps; the folder of the run, and further options by keyword."""

    def config(out, **options) -> CompareConfig:
        usual = {
            "data": f"folder:{images}",
            "image_size": 16,
            "model": "convnet_nano",
            "where": "all & ~first",
            "methods": ("static",),
            "epochs": 2,
            "batch_size": 8,
            "optimizer": "sgd",
            "lr": 0.1,
            "weight_decay": 5e-4,
            "out": out,
            "threads": torch.get_num_threads(),
            "measure_seconds": 0.01,
            "cpu": True,
        }
        return CompareConfig(**usual | options)

    return config


@pytest.fixture
def make(make_for, tmp_path):
    """The same; the folder is a fresh one where none is given."""
    return lambda **options: make_for(options.pop("out", tmp_path / "run"), **options)
