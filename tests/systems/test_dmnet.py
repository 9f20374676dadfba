"""DMNet trained: losses, scores, folders in the public layout, the picture; the sample's score where there is time."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from convary.data.segmentation import IGNORE
from convary.errors import ConfigError, DataError
from convary.systems import config_of
from convary.systems.dmnet import AUXILIARY, DMNetConfig, DMNetPublishedConfig, cross_entropy
from convary.systems.segments import colors, over
from convary.train.fit import fit, restore

SMALL = {"channels": 4, "crop": 32, "batch_size": 2, "steps": 2, "cpu": True, "threads": 1}


@pytest.fixture
def voc(tmp_path):
    """Pascal VOC's layout: photographs of a square on a background, with the square's mask."""
    rng = np.random.default_rng(0)
    lists = tmp_path / "VOC2012" / "ImageSets" / "Segmentation"
    for folder in (lists, lists.parents[1] / "JPEGImages", lists.parents[1] / "SegmentationClass"):
        folder.mkdir(parents=True)
    for part, count in (("train", 3), ("val", 2)):
        names = [f"{part}_{n}" for n in range(count)]
        for name in names:
            ids = np.zeros((45, 61), np.uint8)
            y, x = rng.integers(0, 25, 2)
            ids[y : y + 20, x : x + 20] = 12
            ids[y, x : x + 20] = IGNORE
            photo = np.where((ids > 0)[..., None], 200, 60) + rng.integers(0, 40, (45, 61, 3))
            Image.fromarray(photo.astype(np.uint8)).save(lists.parents[1] / "JPEGImages" / f"{name}.jpg")
            Image.fromarray(ids).save(lists.parents[1] / "SegmentationClass" / f"{name}.png")
        (lists / f"{part}.txt").write_text("\n".join(names))
    return tmp_path / "VOC2012"


def test_trains_on_vocs_layout(voc, tmp_path):
    config = DMNetConfig(out=tmp_path / "run", data=voc, **SMALL)
    results = fit(config)
    assert list(results["scores"]) == ["mean IoU", "pixel accuracy"]
    assert all(0 <= score <= 1 for score in results["scores"].values())
    assert set(results["curve"][0]["losses"]) == {"cross entropy", "auxiliary"}
    with Image.open(config.out / "dmnet.png") as picture:
        assert picture.width > 800 and picture.height > 400  # two rows
    system, net = config.load(), restore(config)
    with torch.no_grad():
        assert system.scores(net, torch.device("cpu")) == results["scores"]
    assert json.loads((config.out / "results.json").read_text())["run"]["data"] == str(voc)


def test_a_broken_file_ends_the_training_by_name(voc, tmp_path):
    for path in (voc / "SegmentationClass").glob("train_*.png"):
        Image.new("L", (61, 44)).save(path)
    with pytest.raises(DataError, match=r"train_\d\.png is 44x61 but its image .*45x61"):
        fit(DMNetConfig(out=tmp_path / "run", data=voc, **SMALL))
    with pytest.raises(DataError, match="no folder"):
        DMNetConfig(data=tmp_path / "nowhere").load()


class Knows(nn.Module):
    """Says class 5 in the left half and class 3 in the right one."""

    def forward(self, x):
        logits = torch.zeros(x.shape[0], 21, *x.shape[2:])
        logits[:, 5, :, : x.shape[3] // 2] = 1
        logits[:, 3, :, x.shape[3] // 2 :] = 1
        return logits


def test_scores_are_over_the_whole_set(tmp_path):
    system = DMNetConfig(out=tmp_path).load()
    photo = torch.zeros(3, 10, 20, dtype=torch.uint8)
    left, most = torch.full((10, 20), 5), torch.full((10, 20), 5)
    left[:, 10:] = 3
    most[:, 15:] = IGNORE
    system.data = dataclasses.replace(system.data, val=[(photo, left), (photo, most)])
    scores = system.scores(Knows(), torch.device("cpu"))
    # class 5: 200 right, 50 missed; class 3: 100 right, 50 too many; the other 19 classes do not occur
    assert scores["mean IoU"] == pytest.approx((200 / 250 + 100 / 150) / 2)
    assert scores["pixel accuracy"] == pytest.approx(300 / 350)


def test_losses(tmp_path):
    system = DMNetConfig(out=tmp_path).load()
    main, second = torch.randn(2, 21, 6, 5), torch.randn(2, 21, 6, 5)
    mask = torch.randint(0, 21, (2, 6, 5))
    mask[:, 2] = IGNORE
    parts = system.losses(lambda image: (main, second), {"image": main, "mask": mask})
    torch.testing.assert_close(parts["cross entropy"], F.cross_entropy(main, mask, ignore_index=IGNORE))
    torch.testing.assert_close(parts["auxiliary"], 0.4 * F.cross_entropy(second, mask, ignore_index=IGNORE))
    assert AUXILIARY == 0.4
    assert cross_entropy(main, torch.full_like(mask, IGNORE)) == 0


def test_schedule_and_optimizer(tmp_path):
    system = DMNetConfig(out=tmp_path, steps=100, lr=0.02, weight_decay=1e-4).load()
    assert [system.rate(step) for step in (0, 50)] == [1.0, pytest.approx(0.5**0.9)]
    assert 0 < system.rate(99) < 0.02
    (group,) = system.optimizer(nn.Linear(2, 2)).param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.02, 0.9, 1e-4)


def test_items_are_views_of_the_photograph(tmp_path):
    system = DMNetConfig(out=tmp_path, crop=48).load()
    item = system.item(0, torch.Generator().manual_seed(0))
    assert item["image"].shape == (3, 48, 48) and item["mask"].shape == (48, 48)
    assert system.size == 1 and config_of("dmnet") is DMNetConfig


@pytest.mark.parametrize(
    "options",
    [{"crop": 0}, {"channels": 0}, {"kernel_sizes": ()}, {"kernel_sizes": (0,)}, {"scales": (2.0, 1.0)},
     {"dropout": 1.0}, {"weight_decay": -1.0}],
)  # fmt: skip
def test_impossible_values_are_refused(tmp_path, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        DMNetConfig(out=tmp_path, **options)


def test_the_published_setting_wants_data(voc):
    with pytest.raises(ConfigError, match="wants --data"):
        DMNetPublishedConfig()
    with torch.device("meta"):
        system = DMNetPublishedConfig(data=voc, pretrained=False).load()
        net = system.model()
    assert net.decode_head.bottleneck.conv.weight.shape == (512, 2048 + 4 * 512, 3, 3)
    assert system.rate(20_000) == 0.5**0.9


def test_colours_are_pascal_vocs():
    assert colors(9).tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128], [128] * 3,
        [64, 0, 0],
    ]  # fmt: skip
    photo = torch.full((1, 2, 3), 90, dtype=torch.uint8)
    grey, red = over(photo, torch.tensor([[IGNORE, 1]]), colors(2))[0].tolist()
    assert grey == [90, 90, 90] and red[0] > 90 > red[1]


@pytest.mark.slow
@pytest.mark.sweep
def test_learns_its_photograph(tmp_path):
    """What ``make dmnet`` does."""
    assert fit(DMNetConfig(out=tmp_path, cpu=True))["scores"]["mean IoU"] > 0.9


@pytest.mark.slow
@pytest.mark.long
def test_begins_to_learn_its_photograph(tmp_path):
    """A quarter of the steps, a quarter of the area; one class everywhere has a mean IoU of 0.08 at most."""
    assert fit(DMNetConfig(out=tmp_path, cpu=True, steps=80, crop=128))["scores"]["mean IoU"] > 0.3
