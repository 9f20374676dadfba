# SPDX-License-Identifier: Apache-2.0
"""A Lightning callback that anneals the routers' temperature, and a training that uses it.

pip install lightning
python examples/lightning_train.py --epochs 3
"""

from __future__ import annotations

import argparse
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import convary as cv
from convary.data import load
from convary.models.registry import build


class TemperatureCallback(lightning.Callback):
    """Steps ``convary.anneal`` after every optimizer step; its state is part of Lightning's checkpoints.

    Args:
        start: First temperature.
        stop: Last temperature.
        fraction: Of the training's steps that the way from start to stop takes.
    """

    def __init__(self, start: float = 30.0, stop: float = 1.0, fraction: float = 0.5) -> None:
        self.start, self.stop, self.fraction = start, stop, fraction
        self.annealing: cv.TemperatureAnnealing | None = None
        self.restored: dict[str, Any] | None = None
        self.seen = 0

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin, or go on where a checkpoint was."""
        steps = int(trainer.estimated_stepping_batches * self.fraction)
        self.annealing = cv.anneal(pl_module, start=self.start, stop=self.stop, steps=steps)
        if self.restored is not None:
            self.annealing.load_state_dict(self.restored)
        self.seen = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """One step per optimizer step: a batch whose gradient is only accumulated is none."""
        assert self.annealing is not None
        if trainer.global_step > self.seen:
            self.seen = trainer.global_step
            self.annealing.step()

    def state_dict(self) -> dict[str, Any]:
        """The annealing's."""
        return {} if self.annealing is None else self.annealing.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the model is there."""
        self.restored = state_dict or None


class Classifier(lightning.LightningModule):
    """A dynamic network and its loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss of a batch."""
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.05)


def main() -> None:
    """Train on the embedded images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=8000, help="training images")
    parser.add_argument("--out", default="runs/lightning")
    arguments = parser.parse_args()

    lightning.seed_everything(0, verbose=False)
    data = load("fashion-mnist-mini").limited(arguments.images)
    images = data.normalise(data.train.images)
    loader = DataLoader(TensorDataset(images, data.train.labels), batch_size=64, shuffle=True)
    model = cv.convert(build("mobilenet_v2_tiny", 10, 1), cv.ODConv(), upcycle=False)
    callback = TemperatureCallback()
    trainer = lightning.Trainer(
        max_epochs=arguments.epochs, accelerator="cpu", callbacks=[callback], logger=False,
        default_root_dir=arguments.out, enable_model_summary=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(Classifier(model), loader)
    print(f"step {callback.annealing.last_step}, temperature {callback.annealing.temperature:.3g}")


if __name__ == "__main__":
    main()
