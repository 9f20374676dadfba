# SPDX-License-Identifier: Apache-2.0
"""Annealing under Hugging Face Accelerate, on any number of processes, with checkpoints that hold the annealing too.

python examples/accelerate_train.py --epochs 3
accelerate launch --num_processes 2 examples/accelerate_train.py --epochs 3    # two GPUs; on a CPU it starts one
torchrun --nproc-per-node 2 examples/accelerate_train.py --epochs 3            # a CPU's two processes
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

import convary as cv
from convary.data import load
from convary.models.registry import build


def main() -> None:
    """Train on the embedded images; save and load once on the way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=8000, help="training images")
    parser.add_argument("--out", default="runs/accelerate")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    accelerator = Accelerator()
    data = load("fashion-mnist-mini").limited(arguments.images)
    loader = DataLoader(TensorDataset(data.train.images, data.train.labels), batch_size=64, shuffle=True)
    model = cv.convert(build("mobilenet_v2_tiny", 10, 1), cv.DyConv(), upcycle=False)
    optimizer = torch.optim.AdamW(cv.param_groups(model, weight_decay=0.05, lr=2e-3))
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    # After prepare(): len(loader) is then this process's own number of steps.
    annealing = cv.anneal(model, start=30.0, steps=arguments.epochs * len(loader) // 2)
    accelerator.register_for_checkpointing(annealing)

    for epoch in range(arguments.epochs):
        model.train()
        for images, labels in loader:
            loss = F.cross_entropy(model(data.normalise(images)), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            annealing.step()
        accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.3f}, temperature {annealing.temperature:.3g}")
        accelerator.save_state(arguments.out)
    accelerator.load_state(arguments.out)
    accelerator.print(f"step {annealing.last_step}, temperature {annealing.temperature:.3g}")


if __name__ == "__main__":
    main()
