"""The network of Moving MNIST against the released one."""

import pytest
import torch
from torch import nn

from convary.models.dfn import DFN
from tests.test_golden import Case


def load(model, state):
    """Fill the convolutions, in order, with the released network's W0, b0, W1, ..."""
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(state) == 2 * len(convs)
    with torch.no_grad():
        for i, conv in enumerate(convs):
            conv.weight.copy_(state[f"W{i}"])
            conv.bias.copy_(state[f"b{i}"])
    return convs


def gradients(convs):
    return {f"{letter}{i}": p.grad for i, conv in enumerate(convs) for letter, p in (("W", conv.weight), ("b", conv.bias))}


def test_moving_mnist_network_agrees_with_the_released_one():
    case = Case("dfn_moving_mnist_npx16")
    model = DFN().double()
    assert sum(p.numel() for p in model.parameters()) == case.settings["params"] == 637_361
    convs = load(model, case.state)
    frames = case.inputs["input_batch"].requires_grad_()
    predictions = model.predict(frames.unsqueeze(2), steps=case.kwargs["target_seqlen"])
    case.close("filters.first", predictions[0].filters)
    out = torch.cat([prediction.frame for prediction in predictions], 1)
    case.close("out", out)
    case.backward(out)
    case.check_gradients(gradients(convs) | {"input_batch": frames.grad})
