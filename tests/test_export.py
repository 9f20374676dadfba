# SPDX-License-Identifier: Apache-2.0
"""Export: one file for every batch and size, read back by torch and by onnxruntime; what can't be held is named."""

import warnings

import onnx
import pytest
import torch
from torch import nn

import convary as cv
from convary import METHODS
from convary._exported import note
from convary._free_sizes import check_sizes
from convary.methods.cgc import GateRouter
from tests.nets import Net, all_but_one_slow, dynamic_net, excite, onnx_session

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SIZE = {1: (9,), 2: (7, 6), 3: (5, 4, 6)}
every_method = pytest.mark.parametrize("config", [c() for c in METHODS], ids=lambda c: c.name)
every_strategy = pytest.mark.parametrize("strategy", ["bmm", "outputs"])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def run_onnx(path, x: torch.Tensor) -> torch.Tensor:
    return onnx_session(path)(x)[0]


def constant_convolutions(path) -> tuple[int, int]:
    """How many convolutions and matrix products of a graph have constant weights, and how many have not."""
    graph = onnx.load(path).graph
    constant = {tensor.name for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    held = sum(not constant.isdisjoint(node.input[:2]) for node in products)
    return held, len(products) - held


@pytest.mark.support("onnxruntime")
@all_but_one_slow()
@pytest.mark.parametrize("strategy", ["bmm", pytest.param("outputs", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rank", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_layers_run_in_onnxruntime_at_another_batch_and_size(config, strategy, rank, tmp_path):
    layer = excite(config.build(CONVS[rank](4, 6, 3, padding=1, stride=2, groups=2)))
    path = tmp_path / "layer.onnx"
    if strategy == "outputs" and not config.constant_weights:  # no kernel of a bank to convolve with
        with pytest.raises(cv.ExportError, match="no constant weights to export"):
            cv.export(layer, torch.randn(1, 4, *SIZE[rank]), path, strategy=strategy)
        return
    cv.export(layer, torch.randn(1, 4, *SIZE[rank]), path, strategy=strategy)
    for batch, grow in ((1, 0), (5, 3)):
        x = torch.randn(batch, 4, *(s + grow for s in SIZE[rank]))
        torch.testing.assert_close(run_onnx(path, x), layer(x).detach(), rtol=1e-4, atol=1e-5)
    assert list(tmp_path.iterdir()) == [path]
    free = [dim.dim_param or dim.dim_value for dim in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]
    assert free == ["batch", 4, *{1: ["length"], 2: ["height", "width"]}[rank]]
    if hasattr(layer, "bands"):  # FDConv's are filtered by products of matrices made for the size
        return
    _, mixed = constant_convolutions(path)
    pooling = rank * isinstance(layer.router, GateRouter)  # CGC pools by a product per axis
    fusing = hasattr(layer, "q")  # DCD's latent channels
    assert mixed - pooling == (0 if strategy == "outputs" and not fusing else 1)


@all_but_one_slow()
@pytest.mark.parametrize("dynamic", [(), (2, 3)], ids=["fixed", "any size"])
def test_a_file_for_one_image_at_a_time_mixes_a_kernel_and_unfolds_nothing(config, dynamic, tmp_path):
    layer = excite(config.build(nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2)))
    path = tmp_path / "layer.onnx"
    program = cv.export(layer, torch.randn(1, 4, 7, 6), path, dynamic=dynamic)
    for size in ((7, 6), (9, 8)) if dynamic else ((7, 6),):
        x = torch.randn(1, 4, *size)
        torch.testing.assert_close(run_onnx(path, x), layer(x).detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(program.module()(x), layer(x).detach(), rtol=1e-4, atol=1e-5)
    assert 2 in groups(path)  # FDConv convolves for its bands, too
    assert not any("im2col" in str(node.target) for node in program.graph.nodes)


@all_but_one_slow()
@pytest.mark.parametrize(
    ("batch", "dtype", "rank", "atol"),
    [
        (0, torch.float32, 2, 0.0),
        (3, torch.float32, 2, 1e-5),
        (1, torch.float64, 2, 1e-12),
        (1, torch.bfloat16, 2, 0.2),
        (1, torch.float32, 1, 1e-5),
        (1, torch.float32, 3, 1e-5),
    ],
)
def test_a_fixed_batch_of_any_size_dtype_and_rank(config, batch, dtype, rank, atol):
    layer = excite(config.build(CONVS[rank](4, 6, 3, padding=1, groups=2))).to(dtype)
    if layer.router.temperature is not None:
        cv.set_temperature(layer, 3 * layer.router.final_temperature)  # a third is no float
    x = torch.randn(batch, 4, *SIZE[rank]).to(dtype)
    got = cv.export(layer, x, dynamic=()).module()(x)
    torch.testing.assert_close(got, layer(x).detach(), rtol=atol, atol=atol)


@pytest.mark.parametrize(
    ("config", "depthwise", "most"),
    [
        pytest.param(cv.CondConv(), 6, 6, id="condconv", marks=pytest.mark.slow),
        pytest.param(cv.DyConv(), 8, 8, id="dyconv", marks=pytest.mark.slow),
        pytest.param(cv.ODConv(), 16, 19, id="odconv"),
    ],
)
def test_a_layer_of_one_image_takes_few_nodes(config, depthwise, most, tmp_path):
    for groups, nodes in ((8, depthwise), (1, most)):
        layer = excite(config.build(nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=False)))
        cv.export(layer, torch.randn(1, 8, 7, 6), tmp_path / "layer.onnx", dynamic=())
        assert len(onnx.load(tmp_path / "layer.onnx").graph.node) <= nodes


def blocked(path) -> int:
    return sum(node.op_type == "Conv" and node.domain != "" for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(cv.CondConv(), id="condconv", marks=pytest.mark.slow),
        pytest.param(cv.ODConv(), id="odconv", marks=pytest.mark.slow),
        pytest.param(cv.KernelWarehouse(), id="kernelwarehouse"),
    ],
)
def test_for_onnxruntime_computed_kernels_are_blocked(config, tmp_path):
    layers = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2, groups=32), nn.ReLU6()]
    pointwise, odd = nn.Conv2d(32, 48, 1), nn.Conv2d(48, 24, 3, padding=1)
    static = nn.Sequential(*layers, pointwise, odd)
    model = excite(cv.convert(static, config, cv.where.all(), noise=1.0))
    x = torch.randn(1, 16, 16, 16)
    cv.export(model, x, tmp_path / "model.onnx", dynamic=(), runtime="onnxruntime")
    torch.testing.assert_close(run_onnx(tmp_path / "model.onnx", x), model(x).detach(), rtol=1e-4, atol=1e-4)
    assert blocked(tmp_path / "model.onnx") == 3  # all but the one with 24 channels, no whole blocks
    cv.export(model, x, tmp_path / "model.onnx", dynamic=())
    assert blocked(tmp_path / "model.onnx") == 0


def test_only_onnx_files_are_made_for_onnxruntime(tmp_path):
    layer, x = cv.CondConv2d(16, 16, 3), torch.randn(1, 16, 6, 6)
    with pytest.raises(cv.ConfigError, match=r"runtime='onnxruntime' is for .onnx files; got .*model.pt2"):
        cv.export(layer, x, tmp_path / "model.pt2", dynamic=(), runtime="onnxruntime")
    with pytest.raises(cv.ConfigError, match="one of any, onnxruntime, openvino, convary, executorch; got 'tvm'"):
        cv.export(layer, x, tmp_path / "model.onnx", runtime="tvm")


def test_routers_norms_and_scales_are_folded_in_a_copy():
    model = dynamic_net(cv.ODConv())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(3, 3, 16, 16)
    program = cv.export(model, x, dynamic=(0,))
    ran = {str(node.target) for node in program.graph.nodes}
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-4)
    assert not any("div" in name for name in ran)  # no temperature
    dynamic = sum(isinstance(module, cv.nn.DynamicLayer) for module in model.modules())
    norms = sum("batch_norm" in str(node.target) for node in program.graph.nodes)
    assert norms == 1 and dynamic == 6  # that of the static stem
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_modules_share_is_not_folded_twice():
    layer = excite(cv.DyConv2d(4, 4, 3, padding=1, experts=2, temperature=3.0))
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.BatchNorm2d(4)).eval()
    with torch.no_grad():
        model[3].running_var.fill_(4.0)
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(cv.export(model, x).module()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@every_strategy
def test_three_axes_run_in_onnxruntime(strategy, tmp_path):
    layer = excite(cv.ODConv(experts=2).build(nn.Conv3d(2, 3, 2)))
    path = tmp_path / "layer.onnx"
    cv.export(layer, torch.randn(2, 2, *SIZE[3]), path, strategy=strategy)
    x = torch.randn(3, 2, 6, 5, 4)
    torch.testing.assert_close(run_onnx(path, x), layer(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@every_method
@every_strategy
def test_networks_run_in_torch_and_onnxruntime_at_another_batch_and_size(config, strategy, tmp_path):
    model = dynamic_net(config, blocks=1)
    path = tmp_path / "model.onnx"
    if strategy == "outputs" and not config.constant_weights:
        pytest.skip("refused: its layers have no constant weights")
    program = cv.export(model, torch.randn(1, 3, 16, 16), path, strategy=strategy)
    x = torch.randn(3, 3, 19, 24)
    want = model(x).detach()
    torch.testing.assert_close(program.module()(x), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(run_onnx(path, x), want, rtol=1e-4, atol=1e-4)
    assert all(node.target.namespace == "aten" for node in program.graph.nodes if hasattr(node.target, "namespace"))
    fused = any(hasattr(module, "q") for module in model.modules())  # DCD's latent channels
    assert (constant_convolutions(path)[1] == 0) == (strategy == "outputs" and not fused)
    assert all(group == 1 or group == 16 for group in groups(path))  # the depthwise layers' own, never the batch


def groups(path) -> list[int]:
    return [
        a.i
        for node in onnx.load(path).graph.node
        if node.op_type == "Conv"
        for a in node.attribute
        if a.name == "group"
    ]


@pytest.mark.slow
def test_a_program_is_read_from_its_file(tmp_path):
    model, path = dynamic_net(cv.ODConv()), tmp_path / "model.pt2"
    cv.export(model, torch.randn(1, 3, 16, 16), path)
    x = torch.randn(3, 3, 19, 24)
    torch.testing.assert_close(torch.export.load(path).module()(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_router_shared_by_a_block_is_exported(tmp_path):
    model = excite(cv.convert(Net(), cv.CondConv(experts=3, router="block")))
    cv.export(model, torch.randn(2, 3, 16, 16), tmp_path / "model.onnx")
    x = torch.randn(3, 3, 20, 24)
    torch.testing.assert_close(run_onnx(tmp_path / "model.onnx", x), model(x).detach(), rtol=1e-4, atol=1e-4)


def test_the_model_keeps_its_mode_and_hooks():
    model = dynamic_net(cv.DyConv()).train()
    model.features[1].eval()
    modes = [m.training for m in model.modules()]
    cv.export(model, torch.randn(2, 3, 16, 16), dynamic=())
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_sizes_can_stay_fixed():
    program = cv.export(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8), dynamic=())
    with pytest.raises(AssertionError, match=r"size\(\)\[0\] == 1"):
        program.module()(torch.randn(2, 3, 8, 8))


def test_constant_weights_that_do_not_exist_are_named():
    model = cv.convert(Net(), cv.ODConv(experts=2, sharing="per_kernel"))
    told = r"layer 'features.1.conv.0.0' \(ODConv2d\).*channel coefficients.*; take strategy='auto' or 'bmm'$"
    with pytest.raises(cv.ExportError, match=told):
        cv.export(model, torch.randn(2, 3, 16, 16), strategy="outputs")
    layer = model.features[1].conv[0][0]
    assert cv.export(layer, torch.randn(2, 8, 6, 6)).module()(torch.randn(1, 8, 5, 5)).shape == (1, 16, 5, 5)


class Eigenvalues(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x).real


class Reshaped(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_what_a_target_can_not_hold_is_named(tmp_path):
    layer, x = cv.ODConv2d(3, 4, 3, padding=1), torch.randn(2, 3, 6, 6)
    with pytest.raises(cv.ExportError, match=r"no operator for aten.linalg_eig, which layer '1' \(Eigenvalues\) runs"):
        cv.export(nn.Sequential(layer, Eigenvalues()), x, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    with pytest.raises(cv.ExportError, match=r"(?s)can't record layer '1' \(Branching\).*exchange that layer"):
        cv.export(nn.Sequential(layer, Branching()), x)
    with pytest.raises(cv.ExportError, match=r"(?s)dynamic but your code specialized it to be a constant \(2\)"):
        cv.export(nn.Sequential(layer, Reshaped()), x)


def test_bad_arguments(tmp_path):
    layer, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 6, 6)
    with pytest.raises(cv.ConfigError, match=r"end in .onnx \(ONNX\) or .pt2"):
        cv.export(layer, x, tmp_path / "model.pb")
    with pytest.raises(cv.ConfigError, match="one of auto, grouped, outputs, bmm; got 'loop'"):
        cv.export(layer, x, strategy="loop")
    for dynamic in (0, True, (7,), (-1,), ("batch",)):
        with pytest.raises(cv.ConfigError, match=r"dynamic must be None or axes of the inputs, 0 to 3: \(0,\) for"):
            cv.export(layer, x, dynamic=dynamic)
    said = "has no form 'grouped'.*bake the batch size.*; take strategy='auto' or 'outputs' or 'bmm'$"
    with pytest.raises(cv.ExportError, match=said):
        cv.export(cv.CondConv2d(3, 4, 3), x, strategy="grouped")


def test_a_folder_that_is_missing_is_made(tmp_path):
    path = tmp_path / "new" / "folder" / "model.pt2"
    cv.export(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 6, 6), path)
    assert path.is_file()


def test_a_model_that_fixes_its_size_is_not_said_to_take_any(tmp_path):
    """Torch records such a pooled and flattened network without a word, as a file that fails where it runs."""
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), cv.CondConv2d(4, 4, 3, padding=1), nn.MaxPool2d(2))
    model, x = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 2)).eval(), torch.randn(2, 3, 8, 8)
    with pytest.raises(cv.ExportError, match=r"(?s)fails at another, so the axes \[2, 3\] can't.*dynamic=\(0,\)"):
        cv.export(model, x, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())
    batch = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(cv.export(model, x, dynamic=(0,)).module()(batch), model(batch))


class Odd(nn.Module):
    def forward(self, x):
        assert x.shape[-1] % 2
        return 2 * x


def test_sizes_that_only_some_models_take_are_tried():
    check_sizes(Odd(), (torch.zeros(2, 3, 5, 5),), [(0, 2, 3)])


def test_a_hot_router_is_told_of():
    layer = cv.DyConv2d(3, 4, 3, temperature=30.0)
    with pytest.warns(cv.TemperatureWarning, match="temperature 30, above the final 1"):
        cv.export(layer, torch.randn(2, 3, 6, 6))
    cv.set_temperature(layer, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", cv.TemperatureWarning)
        cv.export(layer, torch.randn(2, 3, 6, 6))


def test_a_free_batch_unfolds_no_depthwise_layer_of_few_kernels(tmp_path):
    torch.manual_seed(0)
    x, plain = torch.randn(2, 8, 9, 9), nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3))
    for config, first in (
        (cv.DyConv(experts=3), "outputs"),
        (cv.ODConv(experts=3), "bmm"),
        (cv.DyConv(experts=9), "bmm"),
    ):
        model = cv.convert(plain, config, cv.where.all(), upcycle=False).eval()
        forms = cv.export_forms(cv.export(model, x, tmp_path / "m.onnx"))
        assert [form.strategy for form in forms] == [first, "bmm"]
        assert f"not outputs: it takes {config.experts} times the arithmetic" in forms[1].reason
        session = onnx_session(tmp_path / "m.onnx")
        for batch, size in ((1, 12), (3, 7)):
            other = torch.randn(batch, 8, size, size + 1)
            with torch.no_grad():
                want = model(other)
            torch.testing.assert_close(session(other)[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_program_and_a_file_say_how_each_layer_was_written(tmp_path):
    model = cv.convert(Net(), cv.ODConv(experts=2)).eval()
    x = torch.randn(1, 3, 16, 16)
    for name in ("model.onnx", "model.pt2"):
        program = cv.export(model, x, tmp_path / name, dynamic=())
        forms = cv.export_forms(tmp_path / name)
        assert forms == cv.export_forms(program) and len(forms) == 6
        assert {form.strategy for form in forms} == {"grouped"}
        assert forms[0].layer == "features.1.conv.0.0"
    (form,) = cv.export_forms(cv.export(cv.CondConv2d(3, 4, 3), torch.randn(2, 3, 6, 6)))
    assert (form.strategy, form.op) == ("bmm", "mixed_conv") and "not grouped: it would bake the batch" in form.reason
    (form,) = cv.export_forms(cv.export(cv.CondConv2d(3, 4, 3), torch.randn(2, 3, 6, 6), strategy="outputs"))
    assert "asked for" in form.reason
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "none", [], [])), tmp_path / "other.onnx")
    with pytest.raises(cv.ConfigError, match="says nothing of its dynamic layers"):
        cv.export_forms(tmp_path / "other.onnx")


@pytest.mark.parametrize("name", ["net.onnx", "net.pt2"])
def test_a_file_keeps_notes(tmp_path, name):
    path = tmp_path / name
    cv.export(cv.CondConv2d(3, 4, 3), (1, 3, 6, 6), path, dynamic=(), notes={"author": "José", "classes": '["a"]'})
    assert (note(path, "author"), note(path, "classes"), note(path, "none")) == ("José", '["a"]', "")
    assert len(cv.export_forms(path)) == 1
    for wrong in ({"size": 3}, {3: "size"}, {"convary.forms": "[]"}):
        with pytest.raises(cv.ConfigError, match="notes must be text by name, other than 'convary.forms'; got"):
            cv.export(nn.ReLU(), (1, 3), notes=wrong)
