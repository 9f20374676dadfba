"""DFN's layers: against the released code, against their definition, and what they refuse."""

import pytest
import torch
from torch import nn

from convary import DFNConv2d, DFNLocalFilter2d
from convary.errors import ConfigError, ShapeError
from convary.methods.dfn_local import filter_flow, local_filter
from convary.ops import reference
from tests.golden.case import Case, cases
from tests.nets import check_graphs


@pytest.mark.parametrize("name", cases("dfn_local_*"))
def test_local_filtering_agrees_with_the_released_code(name):
    case = Case(name)
    x, logits = (case.inputs[key].requires_grad_() for key in ("image", "logits"))
    filters = logits.softmax(1) if case.kwargs["filters"].startswith("softmax") else logits
    if "filters" in case.expected:
        case.close("filters", filters)
    *kernel_size, _ = case.kwargs["filter_size"]
    out = local_filter(x, filters, kernel_size=kernel_size, grouping=case.kwargs["grouping"])
    case.close("out", out)
    case.backward(out)
    case.check_gradients({"image": x.grad, "logits": logits.grad})


def test_the_steerable_network_agrees_with_the_released_one():
    case = Case("dfn_steerable_npx12")
    layer = DFNLocalFilter2d(1, 9, softmax=False, condition_channels=1, generator_kernel_size=1).double()
    assert sum(p.numel() for p in layer.parameters()) == case.settings["params"]
    convs = [module for module in layer.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        for i, conv in enumerate(convs):
            conv.weight.copy_(case.state[f"W{i}"])
            conv.bias.copy_(case.state[f"b{i}"])
    both = case.inputs["input_batch"].requires_grad_()
    image, angle = both.split(1, 1)
    case.close("filters.first", layer.filters(angle)[0])
    out = layer(image, angle)
    case.close("out", out)
    case.backward(out)
    grads = {
        f"{letter}{i}": p.grad for i, conv in enumerate(convs) for letter, p in (("W", conv.weight), ("b", conv.bias))
    }
    case.check_gradients(grads | {"input_batch": both.grad})


def test_on_a_constant_condition_both_layers_are_one():
    """What the released code uses for steerable filters: local filtering where the paper has dynamic convolution."""
    per_sample = DFNConv2d(3, 1, 5, padding=2, condition_channels=2)
    local = DFNLocalFilter2d(3, 5, softmax=False, generator=per_sample.generator[1])
    x, angle = torch.randn(2, 3, 8, 9), torch.randn(2, 2, 1, 1)
    torch.testing.assert_close(per_sample(x, angle), local(x, angle.expand(2, 2, 8, 9)), atol=1e-4, rtol=1e-5)


def test_local_filtering_over_several_channels_is_its_definition():
    """Contraction sums over channels and taps; grouping filters each channel alike; the bias comes first."""
    x, bias = torch.randn(2, 3, 6, 7, dtype=torch.double), torch.randn(2, 1, 6, 7, dtype=torch.double)
    filters = torch.randn(2, 3 * 15, 6, 7, dtype=torch.double)
    columns = nn.functional.unfold(x + bias, (3, 5), padding=(1, 2)).unflatten(2, (6, 7))
    options = {"kernel_size": (3, 5), "border": "zeros"}
    torch.testing.assert_close(local_filter(x, filters, bias, **options), (columns * filters).sum(1, keepdim=True))
    shared = filters[:, :15]
    want = torch.stack([(part * shared).sum(1) for part in columns.split(15, 1)], 1)
    torch.testing.assert_close(local_filter(x, shared, bias, grouping=True, **options), want)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("softmax", [False, True])
def test_dynamic_convolution_is_a_convolution_per_sample(groups, softmax):
    layer = DFNConv2d(
        4, 6, 3, stride=2, padding=1, groups=groups, softmax=softmax, dynamic_bias=True, condition_channels=5
    ).double()
    x, condition = torch.randn(3, 4, 9, 8, dtype=torch.double), torch.randn(3, 5, 2, 3, dtype=torch.double)
    kernel, bias = layer.filters(condition)
    assert kernel.shape == (3, 6, 4 // groups, 3, 3) and bias.shape == (3, 6)
    if softmax:
        torch.testing.assert_close(kernel.flatten(2).sum(2), torch.ones(3, 6, dtype=torch.double))
    geometry = {"stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "groups": groups}
    torch.testing.assert_close(layer(x, condition), reference.sample_conv(x, kernel, bias, **geometry))


def test_softmax_filters_average_and_a_bias_is_generated():
    layer = DFNLocalFilter2d(3, 5, grouping=True, dynamic_bias=True, border="replicate")
    filters, bias = layer.filters(torch.randn(2, 3, 8, 8))
    torch.testing.assert_close(filters.sum(1), torch.ones(2, 8, 8))
    assert filters.shape == (2, 25, 8, 8) and bias.shape == (2, 1, 8, 8)
    layer.generator[-1].bias.data[-1] = 5.0
    flat = layer(torch.full((1, 3, 8, 8), 2.0), torch.zeros(1, 3, 8, 8))
    torch.testing.assert_close(flat, torch.full((1, 3, 8, 8), 7.0))


def test_a_generator_of_the_user_and_gradients_to_both_inputs():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2 * 3 * 9))
    layer = DFNConv2d(3, 2, 3, padding=1, generator=net)
    x, condition = torch.randn(5, 3, 6, 6, requires_grad=True), torch.randn(5, 2, 2, requires_grad=True)
    layer(x, condition).square().sum().backward()
    assert x.grad.abs().sum() > 0 and condition.grad.abs().sum() > 0
    local = DFNLocalFilter2d(1, 3, generator=nn.Conv2d(7, 9, 1))
    assert local(torch.randn(2, 1, 5, 6), torch.randn(2, 7, 5, 6)).shape == (2, 1, 5, 6)


@pytest.mark.parametrize("layer", [DFNConv2d(2, 2, 3, padding=1), DFNLocalFilter2d(2, 3, grouping=True)])
@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches_and_the_condition_that_is_x(layer, batch):
    x = torch.randn(batch, 2, 5, 6).to(memory_format=torch.channels_last)
    assert layer(x).shape == (batch, 2, 5, 6)
    torch.testing.assert_close(layer(x), layer(x, x))


@pytest.mark.parametrize(
    "layer",
    [DFNConv2d(2, 2, 3, padding=1), pytest.param(DFNLocalFilter2d(2, 3, grouping=True), marks=pytest.mark.slow)],
)
def test_one_graph_serves_every_batch_and_size(layer, tmp_path):
    example = torch.rand(2, 2, 8, 9), torch.rand(2, 2, 8, 9)
    check_graphs(layer, example, (torch.rand(3, 2, 12, 7), torch.rand(3, 2, 12, 7)), tmp_path)


def test_flow_is_where_the_filter_looks():
    filters = torch.zeros(1, 15, 2, 2)
    filters[:, 4] = 1.0  # row 0 and column 4 of 3x5: one up, two to the right
    torch.testing.assert_close(filter_flow(filters, (3, 5))[0, :, 0, 0], torch.tensor([-1.0, 2.0]))


@pytest.mark.parametrize(
    ("wrong", "error", "match"),
    [
        (lambda: DFNLocalFilter2d(1, 4), ConfigError, "odd sizes; got kernel_size=4"),
        (lambda: DFNLocalFilter2d(0, 3), ConfigError, "in_channels"),
        (lambda: DFNConv2d(3, 4, 3, groups=2), ConfigError, "groups must divide"),
        (lambda: DFNConv2d(1, 1, 3, generator=nn.Identity())(torch.ones(2, 1, 8, 8)), ShapeError, r"give \(B, 9\)"),
        (
            lambda: DFNLocalFilter2d(1, 3, generator=nn.Identity())(torch.ones(2, 1, 8, 8)),
            ShapeError,
            r"\(B, 9, H, W\)",
        ),
        (lambda: DFNLocalFilter2d(1, 3)(torch.ones(2, 1, 8, 8), torch.ones(2, 1, 4, 4)), ShapeError, "every position"),
        (
            lambda: DFNLocalFilter2d(1, 3)(torch.ones(2, 1, 8, 8), torch.ones(3, 1, 8, 8)),
            ShapeError,
            r"\(2, G, 9|\(2, 1, 9",
        ),
        (lambda: DFNConv2d(1, 1, 3)(torch.ones(2, 1, 8, 8), torch.ones(3, 1, 8, 8)), ShapeError, "3"),
        (lambda: DFNConv2d(2, 2, 3)(torch.ones(2, 3, 8, 8)), ShapeError, r"\(B, 2, H, W\); got \(2, 3, 8, 8\)"),
        (lambda: DFNLocalFilter2d(2, 3, grouping=True)(torch.ones(2, 8, 8)), ShapeError, r"got \(2, 8, 8\)"),
    ],
)
def test_what_cannot_work_is_refused(wrong, error, match):
    with pytest.raises(error, match=match):
        wrong()
