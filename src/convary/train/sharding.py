# SPDX-License-Identifier: Apache-2.0
"""A process' part in one training where weights lie in shares, one for each process: torch's FSDP2.

Accelerate's plugin shares out on GPUs alone, and swaps an optimizer's parameters by where they lie in memory. So torch
is asked itself, which does the same on a CPU, where it can be tested. What is scored and kept is a whole copy of the
network on each process' CPU: a checkpoint is the file that a training without shares writes.
"""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from convary.errors import ConfigError
from convary.nn.site import is_block
from convary.train.replica import Replica, of_the_first
from convary.weights import load_weights


class Sharded(Replica):
    """Each process has a share of every weight, its gradient, its average and what the optimizer keeps of it.

    Args:
        model: The network, converted; its parameters become DTensors.
        accelerator: Accelerate's device and processes.

    Attributes:
        copy: The network in eval mode with whole weights, on the CPU but while it is looked at.

    Raises:
        ConfigError: a parameter that torch can't share out.
    """

    together: ClassVar[bool] = True

    def __init__(self, model: nn.Module, accelerator: Accelerator) -> None:
        super().__init__(model, accelerator)
        _check(model)
        self.mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        model.to(accelerator.device)
        for tensor in (*model.parameters(), *model.buffers()):  # all start as the first one does, as under DDP
            of_the_first(tensor.detach())
        self.copy = copy.deepcopy(model).cpu().eval().requires_grad_(False)
        for block in blocks(model):
            fully_shard(block, mesh=self.mesh)
        fully_shard(model, mesh=self.mesh)

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """The network is called itself, through torch's hooks."""
        return model, self.accelerator.prepare(optimizer)

    def another(self, model: nn.Module) -> nn.Module:
        """One more network in shares, with the weights of the first one at the start."""
        another = copy.deepcopy(self.copy).to(self.accelerator.device)
        fully_shard(another, mesh=self.mesh)
        return another

    @torch.no_grad()
    def whole(self, model: nn.Module) -> nn.Module:
        """The copy, with the network's weights and the first process' buffers, on the device."""
        return self._gathered(model).to(self.accelerator.device)

    @torch.no_grad()
    def state(self, model: nn.Module) -> dict[str, Any]:
        """Of the whole network, on the CPU; layers that share a weight share it there."""
        return copy.deepcopy(self._gathered(model).state_dict())

    @torch.no_grad()
    def load(self, model: nn.Module, state: dict[str, Any], path: Path) -> None:
        """Take the process' shares of a state dict."""
        load_weights(self.copy.cpu(), state, path)
        for share, own in zip(model.parameters(), self.copy.parameters(), strict=True):
            share.copy_(self._share(own, share))
        for buffer, own in zip(model.buffers(), self.copy.buffers(), strict=True):
            buffer.copy_(own)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """With whole tensors, on the CPU."""
        state = optimizer.state_dict()
        return {**state, "state": _each(state["state"], lambda index, value: _whole(value))}

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Take the process' shares; of what does not fit nothing is shared out."""
        like = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
        shares = _each(state["state"], lambda index, value: self._share(value, like.get(index)))
        optimizer.load_state_dict({**state, "state": shares})

    def _gathered(self, model: nn.Module) -> nn.Module:
        self.copy.cpu()
        for own, share in zip(self.copy.parameters(), model.parameters(), strict=True):
            own.copy_(_whole(share))
        for own, buffer in zip(self.copy.buffers(), model.buffers(), strict=True):
            own.copy_(of_the_first(buffer.clone()))
        return self.copy

    def _share(self, value: Any, like: Any) -> Any:
        """A tensor of a parameter's shape as that is shared out; anything else, as a number of steps, as it is."""
        if not (isinstance(value, Tensor) and isinstance(like, DTensor) and value.shape == like.shape):
            return value
        return distribute_tensor(value.detach().to(self.accelerator.device), self.mesh, like.placements)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks whose weights are gathered while they run; those of the rest are for the whole step.

    torch wants a weight that layers have in common (KernelWarehouse's) in one group: a block that shares one with a
    layer outside it is left to the rest.
    """
    outermost: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if name and is_block(module) and not name.startswith(tuple(f"{other}." for other in outermost)):
            outermost[name] = module
    everywhere = _uses(model)
    return [block for block in outermost.values() if all(everywhere[p] == count for p, count in _uses(block).items())]


def _uses(model: nn.Module) -> Counter[nn.Parameter]:
    """How often each parameter stands in a network."""
    return Counter(p for _, p in model.named_parameters(remove_duplicate=False))


def _check(model: nn.Module) -> None:
    for name, p in model.named_parameters():
        if p.ndim == 0 or not p.is_contiguous():
            found = "is a single number" if p.ndim == 0 else f"lies in memory with strides {p.stride()}"
            raise ConfigError(
                f"FSDP2 shares out contiguous tensors of one axis or more; {name} {found}: leave out --shard"
            )


def _each(states: dict[int, dict[str, Any]], change: Any) -> dict[int, dict[str, Any]]:
    """What an optimizer keeps of each parameter, by its number and name, changed."""
    return {index: {name: change(index, value) for name, value in kept.items()} for index, kept in states.items()}


def _whole(value: Any) -> Any:
    return value.full_tensor().detach().cpu() if isinstance(value, DTensor) else value
