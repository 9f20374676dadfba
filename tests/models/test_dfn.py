"""The network of next frames: against the released one, at any size, exported."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convary as cv
from convary.errors import ConfigError, ShapeError
from convary.models.dfn import DFN, HighwayDFN, StereoDFN
from tests.golden.case import Case
from tests.nets import onnx_session


def test_moving_mnist_network_agrees_with_the_released_one():
    case = Case("dfn_moving_mnist_npx16")
    model = DFN().double()
    assert sum(p.numel() for p in model.parameters()) == case.settings["params"] == 637_361
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(case.state) == 2 * len(convs)
    with torch.no_grad():
        for i, conv in enumerate(convs):
            conv.weight.copy_(case.state[f"W{i}"])
            conv.bias.copy_(case.state[f"b{i}"])
    frames = case.inputs["input_batch"].requires_grad_()
    predictions = model.predict(frames.unsqueeze(2), steps=case.kwargs["target_seqlen"])
    case.close("filters.first", predictions[0].filters)
    out = torch.cat([prediction.frame for prediction in predictions], 1)
    case.close("out", out)
    case.backward(out)
    grads = {f"W{i}": conv.weight.grad for i, conv in enumerate(convs)}
    grads |= {f"b{i}": conv.bias.grad for i, conv in enumerate(convs)}
    case.check_gradients(grads | {"input_batch": frames.grad})


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (1, 5)])
def test_any_size_and_several_channels(size):
    model = DFN(3, frames=2, hidden=8, kernel_size=3, dynamic_bias=True, border="replicate")
    frames = torch.rand(2, 4, 3, *size)
    out = model(frames, steps=3)
    assert out.shape == (2, 3, 3, *size)
    torch.testing.assert_close(out[:, :1], model(frames))
    assert model(frames[:0]).shape == (0, 1, 3, *size)


def layers(*parts: nn.Module):
    """Weights and biases in the order that the released code runs them in, and a function that runs the next one."""
    convs = iter([m for part in parts for m in part.modules() if isinstance(m, nn.Conv2d)])

    def run(x, stride=1, act=True):
        conv = next(convs)
        bias = conv.untied if conv.bias is None else conv.bias[:, None, None]
        y = F.conv2d(x, conv.weight, stride=stride, padding=conv.kernel_size[0] // 2) + bias
        return F.leaky_relu(y, 0.01) if act else y

    return run


def filtered(x, theta, kernel_size):
    """As written in the paper: softmax of the taps, the last channel added to x, zeros outside."""
    taps = kernel_size[0] * kernel_size[1]
    columns = F.unfold(x + theta[:, taps:], kernel_size, padding=[k // 2 for k in kernel_size])
    return (columns.unflatten(2, x.shape[2:]) * theta[:, :taps].softmax(1)).sum(1, keepdim=True)


@pytest.mark.parametrize("refine", [False, True])
def test_highway_network_layer_by_layer(refine):
    torch.manual_seed(0)
    model = HighwayDFN((8, 6), refine=refine).double()
    model.encoder[0].untied.data.normal_()
    frames = torch.rand(2, 3, 1, 8, 6).double()
    hidden, seen = torch.zeros(2, 64, 4, 3).double(), list(frames.unbind(1))
    out = []
    for step in range(3):  # one frame to remember, two to predict
        window = seen[step : step + 2]
        parts = [model.encoder, model.recurrent, model.decoder, model.filters]
        run = layers(*parts, *([model.refinement] if refine else []))
        z = run(run(run(run(torch.cat(window, 1)), stride=2)))
        hidden = z + run(run(hidden))
        y = F.interpolate(run(hidden), scale_factor=2)
        y = filtered(window[-1], run(run(run(run(y))), act=False), (11, 11))
        if refine:
            y = y + run(run(run(run(torch.cat([y, *window], 1)))))
        if step:
            seen.append(y)
            out.append(y)
    torch.testing.assert_close(model(frames, steps=2), torch.stack(out, 1))


def test_stereo_network_layer_by_layer():
    torch.manual_seed(0)
    model = StereoDFN((6, 8)).double()
    model.encoder[8].untied.data.normal_()
    x = torch.rand(2, 1, 6, 8).double()
    run = layers(model.encoder, model.decoder, model.filters)
    y = run(run(run(run(run(run(run(x), stride=2))))))
    theta = run(run(run(run(F.interpolate(y, scale_factor=2)))), act=False)
    torch.testing.assert_close(model(x), filtered(x, theta, (1, 13)))
    assert model.predict(x).filters.shape == (2, 13, 6, 8)


def test_published_sizes():
    def size(model):
        return sum(p.numel() for p in model.parameters())

    assert size(HighwayDFN()) == 368_122 and size(StereoDFN()) == 464_494
    refinement = 9 * (3 * 32 + 32 * 64 + 64 * 32 + 32) + 32 + 64 + 32 + 1
    assert size(HighwayDFN(refine=True)) == 368_122 + refinement
    assert size(DFN(refine=True)) == 637_361 + refinement - 9 * 32  # sees one frame


@pytest.mark.parametrize("make", [HighwayDFN, StereoDFN])
def test_focused_filters_of_the_others_start_as_a_copy(make):
    model, x = make((7, 9), focus=40.0), torch.rand(1, 2, 1, 7, 9)
    for p in model.filters[-1].parameters():
        p.data[-1] = 0  # the dynamic bias
    got = model(x)[:, 0] if make is HighwayDFN else model(x[:, 1])
    torch.testing.assert_close(got, x[:, 1])


def test_without_a_bias_nothing_leaves_the_range_of_the_last_frame():
    model = DFN(hidden=8, kernel_size=5, border="replicate")
    frames = torch.rand(2, 3, 1, 12, 12)
    out = model(frames, steps=2)
    assert frames[:, -1].min() <= out.min() and out.max() <= frames[:, -1].max()


def test_focused_filters_start_as_a_copy():
    frames = torch.rand(1, 2, 1, 8, 8)
    torch.testing.assert_close(DFN(hidden=8, focus=30.0)(frames)[:, 0], frames[:, 1])


def test_frames_before_the_last_count_through_the_hidden_map():
    torch.manual_seed(0)
    model, frames = DFN(hidden=8, kernel_size=3), torch.rand(1, 3, 1, 8, 8)
    other = frames.clone()
    other[:, 0] = 0
    assert not torch.equal(model(frames), model(other))


@pytest.mark.slow
def test_exports_with_any_batch_and_size(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = DFN(hidden=8, kernel_size=3)

        def forward(self, frames):
            return self.net(frames, steps=2)

    model = Two().eval()
    program = cv.export(model, torch.rand(3, 2, 1, 10, 12), tmp_path / "dfn.onnx", dynamic=(0, 3, 4)).module()
    session = onnx_session(tmp_path / "dfn.onnx")
    for shape in ((1, 2, 1, 8, 14), (4, 2, 1, 9, 11)):
        frames = torch.rand(shape)
        with torch.no_grad():
            want = model(frames)
            torch.testing.assert_close(program(frames), want)
            torch.testing.assert_close(session(frames)[0], want, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_compiles_and_autocasts():
    model, frames = DFN(hidden=8, kernel_size=3).eval(), torch.rand(2, 2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(model, backend="aot_eager", fullgraph=True)(frames), model(frames), atol=1e-5, rtol=1e-5
        )
        with torch.autocast("cpu", torch.bfloat16):
            half = model(frames)
    torch.testing.assert_close(half.float(), model(frames), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("wrong", "error", "match"),
    [
        (lambda: DFN(kernel_size=8), ConfigError, "odd sizes"),
        (lambda: DFN(hidden=0), ConfigError, "at least 1"),
        (lambda: DFN()(torch.rand(1, 3, 3, 8, 8)), ShapeError, r"\(B, N, 1, H, W\).*got \(1, 3, 3, 8, 8\)"),
        (lambda: DFN(frames=2)(torch.rand(1, 1, 1, 8, 8)), ShapeError, "N at least 2"),
        (lambda: DFN()(torch.rand(1, 2, 1, 8, 8), steps=0), ConfigError, "steps"),
        (lambda: HighwayDFN(8)(torch.rand(1, 2, 1, 8, 6)), ShapeError, r"position of \(8, 8\); got a map of \(8, 6\)"),
        (lambda: StereoDFN(8)(torch.rand(1, 3, 8, 8)), ShapeError, r"\(B, 1, H, W\)"),
        (lambda: StereoDFN(8, width=4), ConfigError, "odd sizes"),
    ],
)
def test_what_cannot_work_is_refused(wrong, error, match):
    with pytest.raises(error, match=match):
        wrong()
