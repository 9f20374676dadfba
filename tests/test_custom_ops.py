# SPDX-License-Identifier: Apache-2.0
"""Files that keep convary's operators: right in onnxruntime and as torch programs, at any batch and size."""

from concurrent.futures import ThreadPoolExecutor

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import convary as cv
from convary import METHODS, ops
from convary._custom_ops import DOMAIN
from convary.nn import DynamicLayer
from tests.nets import dynamic_net, excite, onnx_session

pytestmark = pytest.mark.skipif(ops.native.available() is not None, reason="the native library is absent")
CONVS, SIZE = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}, {1: (19,), 2: (17, 16), 3: (5, 4, 6)}
FAST = (cv.ODConv, cv.WeightNet)  # a bank, and kernels made per sample
every_method = pytest.mark.parametrize(
    "config", [pytest.param(c(), marks=() if c in FAST else pytest.mark.slow, id=c.name) for c in METHODS]
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def kinds(path) -> list[str]:
    """The operators of ours in a file."""
    return [node.op_type for node in onnx.load(path).graph.node if node.domain == DOMAIN]


def agrees(model: nn.Module, path, *shapes: tuple[int, ...], threads: int = 0) -> None:
    run = onnx_session(path, threads=threads, native=True)
    for shape in shapes:
        x = torch.randn(shape)
        want = model(x).detach()
        largest = float(want.abs().max()) if want.numel() else 0.0
        torch.testing.assert_close(run(x)[0], want, rtol=1e-4, atol=1e-5 * max(1.0, largest))


@every_method
@pytest.mark.parametrize("rank", [1, 2])
def test_layers_at_any_batch_and_size(config, rank, tmp_path):
    layer = excite(config.build(CONVS[rank](16, 32, 3, padding=1, stride=2, groups=2)))
    cv.export(layer, torch.randn(2, 16, *SIZE[rank]), tmp_path / "layer.onnx", runtime="convary")
    forms = cv.export_forms(tmp_path / "layer.onnx")
    assert {form.strategy for form in forms} <= {"native"}  # DCD calls no op: its convolutions are ordinary ones
    assert not forms or not {"MixedConv", "SampleConv"}.isdisjoint(kinds(tmp_path / "layer.onnx"))
    bigger = tuple(size + 5 for size in SIZE[rank])
    agrees(layer, tmp_path / "layer.onnx", (1, 16, *SIZE[rank]), (5, 16, *bigger))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_network_whose_routers_and_convolutions_are_a_node_each(threads, tmp_path):
    net = excite(dynamic_net(cv.ODConv()))
    x = torch.randn(2, 3, 32, 32)
    cv.export(net, x, tmp_path / "net.onnx", runtime="convary")
    layers = sum(isinstance(m, DynamicLayer) for m in net.modules())
    assert sorted(kinds(tmp_path / "net.onnx")) == ["MixedConv"] * layers + ["Route"] * layers
    assert not [n for n in onnx.load(tmp_path / "net.onnx").graph.node if n.op_type == "BatchNormalization"]
    agrees(net, tmp_path / "net.onnx", (1, 3, 32, 32), (3, 3, 40, 24), (0, 3, 40, 24), threads=threads)


def test_kernels_of_each_position(tmp_path):
    layer = cv.Involution2d(16, 3, group_channels=4).eval()
    cv.export(layer, torch.randn(2, 16, 9, 8), tmp_path / "layer.onnx", runtime="convary")
    assert "PixelConv" in kinds(tmp_path / "layer.onnx")
    agrees(layer, tmp_path / "layer.onnx", (1, 16, 9, 8), (3, 16, 12, 10))


class Chosen(nn.Module):
    """Every kernel convolves the image that it is for."""

    def forward(self, x, weight, index):
        return ops.sample_conv(x, weight, index=index, padding=1)


def test_kernels_of_chosen_images(tmp_path):
    index = torch.tensor([1, 0, 1])
    inputs = (torch.randn(2, 4, 9, 9), torch.randn(3, 5, 4, 3, 3), index)
    cv.export(Chosen(), inputs, tmp_path / "chosen.onnx", runtime="convary", dynamic=())
    got = onnx_session(tmp_path / "chosen.onnx", native=True)(*inputs)[0]
    torch.testing.assert_close(got, Chosen()(*inputs), rtol=1e-4, atol=1e-5)


def test_a_torch_program_keeps_the_operators(tmp_path):
    layer = excite(cv.ODConv().build(nn.Conv2d(16, 32, 3)))
    cv.export(layer, torch.randn(2, 16, 9, 9), tmp_path / "layer.pt2", runtime="convary")
    program = torch.export.load(tmp_path / "layer.pt2")
    assert {"convary.mixed_conv_forward.default", "convary.route.default"} <= {
        str(n.target) for n in program.graph.nodes
    }
    x = torch.randn(3, 16, 12, 11)
    torch.testing.assert_close(program.module()(x), layer(x).detach())
    assert {form.strategy for form in cv.export_forms(tmp_path / "layer.pt2")} == {"native"}


@pytest.mark.parametrize(("rank", "dtype"), [(3, torch.float32), (2, torch.float64)])
def test_what_has_no_such_operator_is_written_in_others(rank, dtype, tmp_path):
    layer = excite(cv.CondConv().build(CONVS[rank](4, 6, 3))).to(dtype)
    x = torch.randn(2, 4, *SIZE[rank], dtype=dtype)
    cv.export(layer, x, tmp_path / "layer.onnx", runtime="convary")
    assert "MixedConv" not in kinds(tmp_path / "layer.onnx")  # a router in float32 is still an operator
    assert "native" not in {form.strategy for form in cv.export_forms(tmp_path / "layer.onnx")}
    got = onnx_session(tmp_path / "layer.onnx", native=True)(x)[0]
    torch.testing.assert_close(got, layer(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 16])
def test_banks_in_bfloat16_are_rounded_and_nothing_else(groups, tmp_path):
    layer = excite(cv.ODConv().build(nn.Conv2d(16, 32, 3, padding=1, groups=groups)))
    files = [tmp_path / f"{dtype}.onnx" for dtype in ("float32", "bfloat16")]
    for path, dtype in zip(files, (torch.float32, torch.bfloat16), strict=True):
        cv.export(layer, (2, 16, 9, 9), path, runtime="convary", bank_dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.bfloat16())
    assert files[1].stat().st_size < files[0].stat().st_size - 1.9 * layer.weight.numel()
    agrees(layer, files[1], (1, 16, 9, 9), (3, 16, 12, 11))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bank_dtype": torch.float16}, "must be torch.float32 or torch.bfloat16"),
        ({"runtime": "any"}, "runtime='convary'"),
        ({"path": "layer.pt2"}, "for .onnx files"),
    ],
)
def test_only_onnx_files_of_ours_have_banks_in_bfloat16(changes, words, tmp_path):
    given = {"path": "layer.onnx", "runtime": "convary", "bank_dtype": torch.bfloat16} | changes
    given["path"] = tmp_path / given["path"]
    with pytest.raises(cv.ConfigError, match=words):
        cv.export(cv.CondConv2d(4, 4, 3), (1, 4, 8, 8), **given)


def test_two_layers_with_one_bank_in_bfloat16(tmp_path):
    first = excite(cv.CondConv().build(nn.Conv2d(8, 8, 3, padding=1, bias=False)))
    second = excite(cv.CondConv().build(nn.Conv2d(8, 8, 3, padding=1, bias=False)))
    del second.weight
    second.weight = first.weight
    net = nn.Sequential(first, second).eval()
    cv.export(net, (2, 8, 9, 9), tmp_path / "net.onnx", runtime="convary", bank_dtype=torch.bfloat16)
    with torch.no_grad():
        first.weight.copy_(first.weight.bfloat16())
    agrees(net, tmp_path / "net.onnx", (1, 8, 9, 9), (3, 8, 6, 7))


def test_without_a_bank_there_is_nothing_to_narrow(tmp_path):
    layer = excite(cv.WeightNet().build(nn.Conv2d(8, 8, 3)))
    with pytest.raises(cv.ExportError, match="leave it out"):
        cv.export(layer, (2, 8, 9, 9), tmp_path / "layer.onnx", runtime="convary", bank_dtype=torch.bfloat16)
    assert not list(tmp_path.iterdir())


def test_sessions_on_several_threads_while_torch_works(tmp_path):
    net = excite(dynamic_net(cv.CondConv()))
    cv.export(net, (2, 3, 32, 32), tmp_path / "net.onnx", runtime="convary")
    runs = [onnx_session(tmp_path / "net.onnx", threads=2, native=True) for _ in range(2)]
    inputs = [torch.randn(batch, 3, 24, 40) for batch in (1, 2, 5)]
    want = [net(x).detach() for x in inputs]

    def work(run) -> float:
        pairs = [(run(x)[0], net(x).detach(), y) for x, y in zip(inputs * 4, want * 4, strict=True)]
        return max(float((a - y).abs().max() + (b - y).abs().max()) for a, b, y in pairs)

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(work, runs * 2)) < 1e-4


def test_a_strategy_besides_is_an_error():
    with pytest.raises(cv.ConfigError, match="must be 'auto'; got 'bmm'"):
        cv.export(cv.CondConv2d(4, 4, 3), (1, 4, 8, 8), runtime="convary", strategy="bmm")


def test_without_the_library_nothing_is_exported(monkeypatch):
    monkeypatch.setattr(ops.native, "available", lambda: "they were not built")
    with pytest.raises(cv.ConfigError, match="they were not built"):
        cv.export(cv.CondConv2d(4, 4, 3), (1, 4, 8, 8), runtime="convary")


def test_a_session_without_the_operators_says_which_it_lacks(tmp_path):
    cv.export(excite(cv.CondConv2d(4, 4, 3)), (1, 4, 8, 8), tmp_path / "layer.onnx", runtime="convary")
    with pytest.raises(Exception, match="convary"):
        onnx_session(tmp_path / "layer.onnx")


GEOMETRY = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
ROUTE = {"pieces": [2, 0, 0, 0], "gates": 0, "rest": 2, "epsilon": 0.0}
WINDOW = GEOMETRY | {"kernel_size": [3, 3], "border": 0, "interleaved": 0, "scale_factor": 1}
del WINDOW["groups"]
X, BANK = (2, 4, 5, 5), (2, 6, 4, 3, 3)


@pytest.mark.parametrize(
    ("kind", "shapes", "settings"),
    [
        ("MixedConv", [X, (2, 6, 3, 3, 3)], GEOMETRY),  # channels
        ("MixedConv", [X, BANK, (2, 3)], GEOMETRY),  # kernels
        ("MixedConv", [X, BANK, (2, 2), (2, 1, 5)], GEOMETRY),  # filters
        ("MixedConv", [X, BANK, (2, 2), None, (1, 1, 4)], GEOMETRY),  # samples
        ("MixedConv", [X, BANK, (2, 2), None, None, (2, 1, 8)], GEOMETRY),  # taps
        ("MixedConv", [X, BANK, (2, 2), None, None, None, (5,)], GEOMETRY),  # bias
        ("MixedConv", [X, BANK], GEOMETRY | {"stride": [0, 1]}),
        ("MixedConv", [X, BANK], GEOMETRY | {"padding": [1]}),
        ("MixedConv", [X, BANK], GEOMETRY | {"dilation": [9, 9]}),
        ("MixedConv", [X, BANK], GEOMETRY | {"groups": 3}),
        ("SampleConv", [X, (3, 6, 4, 3, 3)], GEOMETRY),
        ("PixelConv", [X, (2, 1, 8, 5, 5)], WINDOW),
        ("PixelConv", [X, (2, 1, 9, 4, 5)], WINDOW),
        ("PixelConv", [X, (2, 3, 9, 5, 5)], WINDOW),
        ("Route", [X, None, None, None, None, None, None, (2, 5)], ROUTE),
        ("Route", [X, (3, 4), None, (2,), (3,), (3,), (3,), (2, 3)], ROUTE),
    ],
)
def test_a_file_whose_tensors_do_not_fit_is_refused(kind, shapes, settings, tmp_path):
    """By an error of the runtime; the kernels would read what is not there."""
    names = [f"t{i}" if shape else "" for i, shape in enumerate(shapes)]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(names, shapes, strict=True) if s]
    node = helper.make_node(kind, names, ["y"], domain=DOMAIN, **settings)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    onnx.save(helper.make_model(helper.make_graph([node], "g", values, [y]), opset_imports=opsets), tmp_path / "x.onnx")
    with pytest.raises(Exception, match="convary|fit|weight|padding|convolution"):
        onnx_session(tmp_path / "x.onnx", native=True)(*[torch.zeros(shape) for shape in shapes if shape])


class Activated(nn.Module):
    """A layer, an activation, and a second reader of the layer's output if asked for."""

    def __init__(self, config, activation: nn.Module, *, read_twice: bool):
        super().__init__()
        self.layer = excite(config.build(nn.Conv2d(8, 16, 3, padding=1)))
        self.activation, self.read_twice = activation, read_twice

    def forward(self, x):
        y = self.layer(x)
        return self.activation(y) + y if self.read_twice else self.activation(y)


@pytest.mark.parametrize("config", FAST)
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.5, 0.25)], ids=str)
@pytest.mark.parametrize("read_twice", [False, True])
def test_an_activation_that_cuts_is_the_convolutions_own(config, activation, read_twice, tmp_path):
    net = Activated(config(), activation, read_twice=read_twice).eval()
    path = tmp_path / "net.onnx"
    cv.export(net, torch.randn(2, 8, 9, 9), path, runtime="convary")
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    assert sum(name in ("Relu", "Clip") for name in nodes) == read_twice
    agrees(net, path, (1, 8, 9, 9), (3, 8, 12, 11))
    cv.export(net.layer, torch.randn(2, 8, 9, 9), tmp_path / "layer.onnx", runtime="convary")
    x = 3 * torch.randn(2, 8, 10, 7)
    y = onnx_session(tmp_path / "layer.onnx", native=True)(x)[0]
    (got,) = onnx_session(path, native=True)(x)
    assert torch.equal(got, activation(y) + y if read_twice else activation(y))  # bit for bit


@pytest.mark.parametrize(
    "activations",
    [
        [nn.ReLU(), nn.Hardtanh(-1.0, 0.5)],
        [nn.Hardtanh(-1.0, 0.5), nn.ReLU6()],
        [nn.Hardtanh(0.25, 0.5), nn.ReLU()],
    ],
    ids=str,
)
def test_activations_behind_each_other_all_count(activations, tmp_path):
    net = Activated(cv.ODConv(), nn.Sequential(*activations), read_twice=False).eval()
    cv.export(net, torch.randn(2, 8, 9, 9), tmp_path / "net.onnx", runtime="convary")
    x = 3 * torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(onnx_session(tmp_path / "net.onnx", native=True)(x)[0], net(x), rtol=1e-4, atol=1e-5)


def test_files_say_nothing_of_the_machine_that_wrote_them(tmp_path):
    cv.export(cv.CondConv2d(4, 4, 3), (1, 4, 8, 8), tmp_path / "layer.onnx")
    assert b"stack_trace" not in (tmp_path / "layer.onnx").read_bytes()
