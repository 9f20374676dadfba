# SPDX-License-Identifier: Apache-2.0
"""How a network is laid out for the machines that train it; what it computes stays the same, to rounding."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from convary.errors import ConfigError
from convary.train.replica import Replica


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a system asks for.

    Attributes:
        channels_last: Kernels of convolutions have their channels last.
        sync_norms: Batch norms take their statistics from all processes' items.
        compile: The network is trained through ``torch.compile``.
        shard: Each process has a share of every weight (FSDP2).
    """

    channels_last: bool = False
    sync_norms: bool = False
    compile: bool = False
    shard: bool = False

    def of(self, model: nn.Module, accelerator: Accelerator) -> nn.Module:
        """The network with these kernels and norms.

        Raises:
            ConfigError: norms over several processes on a CPU.
        """
        if self.channels_last:
            channels_last(model)
        return synchronised(model, accelerator) if self.sync_norms else model

    def replica(self, model: nn.Module, accelerator: Accelerator) -> Replica:
        """The process' part in the training; where weights are shared out, the network's become so here.

        Raises:
            ConfigError: a weight that can't be shared out.
        """
        if not self.shard:
            return Replica(model, accelerator)
        from convary.train.sharding import Sharded  # which a torch without processes has not

        return Sharded(model, accelerator)


def channels_last(model: nn.Module) -> None:
    """Keep the kernels of static convolutions with their channels last; banks stay as their layers want them."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.ndim == 4:
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def synchronised(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The network with batch norms, routers' too, whose statistics are of all processes' images; alone, as it is.

    Raises:
        ConfigError: several processes on a CPU.
    """
    if accelerator.num_processes == 1:
        return model
    if accelerator.device.type == "cpu":
        raise ConfigError("torch's norms over several processes want GPUs; leave out --sync-norms, or train on GPUs")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def compiled(model: nn.Module) -> nn.Module:
    """The network through ``torch.compile``, which is then to compile no other of this process.

    It counts graphs by class, and beyond a few runs what comes next uncompiled: so each training begins anew.
    """
    torch.compiler.reset()
    whole: Any = torch.compile(model)
    return whole


def not_compiled(error: RuntimeError) -> ConfigError | None:
    """What to raise instead of what ``torch.compile`` raises where it fails; None for any other error."""
    dynamo = sys.modules.get("torch._dynamo.exc")
    if dynamo is None or not isinstance(error, dynamo.TorchDynamoException):
        return None
    reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
    return ConfigError(f"torch.compile can't compile this network here: {reason}; leave out --compile")
