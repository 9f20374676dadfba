# SPDX-License-Identifier: Apache-2.0
"""A plain training loop: convert a network, anneal the routers' temperature, look at what they route.

python examples/train.py --epochs 3
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F

import convary as cv
from convary.data import augment, epoch_order, generator, load
from convary.models.registry import build

BATCH = 64


def main() -> None:
    """Train on the embedded images, print the accuracy on the test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="odconv", choices=[config.name for config in cv.METHODS])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=8000, help="training images")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    data = load("fashion-mnist-mini").limited(arguments.images)
    config = cv.method(arguments.method)
    model = cv.convert(build("mobilenet_v2_tiny", len(data.classes), data.shape[0]), config, upcycle=False)

    steps = arguments.epochs * (arguments.images // BATCH)
    optimizer = torch.optim.AdamW(cv.param_groups(model, weight_decay=0.05))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
    # Methods without a temperature (CondConv, DyNet) have no annealing.
    annealing = cv.anneal(model, start=config.annealing.start, steps=steps // 2) if config.annealing else None

    model.train()
    for epoch in range(arguments.epochs):
        for index in epoch_order(arguments.images, 0, epoch).split(BATCH):
            images = augment(
                data.train.batch(index), generator(epoch, int(index[0])), padding=data.padding, flip=data.flip
            )
            loss = F.cross_entropy(model(data.normalise(images)), data.train.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if annealing is not None:
                annealing.step()  # once per step, like the learning rate
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

    model.eval()
    with torch.inference_mode():
        scores = model(data.normalise(data.test.images))
        right = (scores.argmax(1) == data.test.labels).float().mean()
    print(f"top-1: {100 * right.item():.2f} %")
    name, coeffs = next(iter(cv.routing(model, data.normalise(data.test.images[:4])).items()))
    for axis, factor in coeffs.factors().items():
        print(f"{name} {axis} {tuple(factor.shape)}: {factor.flatten(1)[0, :4].tolist()}")


if __name__ == "__main__":
    main()
