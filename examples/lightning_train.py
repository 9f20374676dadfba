# SPDX-License-Identifier: Apache-2.0
"""Training under Lightning, with convary's callback that anneals the routers' temperature and keeps the recipe.

pip install lightning
python examples/lightning_train.py --epochs 3
"""

from __future__ import annotations

import argparse

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import convary as cv
from convary.data import load
from convary.integrations.lightning import TemperatureCallback
from convary.models.registry import build


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
        return torch.optim.AdamW(cv.param_groups(self, weight_decay=0.05, lr=2e-3))


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
