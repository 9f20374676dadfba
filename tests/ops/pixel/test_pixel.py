# SPDX-License-Identifier: Apache-2.0
"""pixel_conv: every strategy against the reference and the official implementations; memory; what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convary import ops
from convary.errors import ConfigError, DtypeError, ShapeError, StrategyError
from convary.ops import pixel
from convary.ops.dispatch import problem_of
from tests.golden import fill
from tests.ops.pixel.calls import Layer, assert_close, draw_call, results, truth
from tests.processes import python

GOLDEN = Path(__file__).parents[2] / "golden"


def call(*, rank: int = 2, border: str = "zeros", scale_factor: int = 1) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """A call of a given kind, in float64."""
    torch.manual_seed(0)
    x = torch.randn(2, 6, *[5, 6, 4][:rank], dtype=torch.float64)
    weight = torch.randn(2, 3, 3**rank, *(scale_factor * s for s in x.shape[2:]), dtype=torch.float64)
    return x, weight, {"kernel_size": 3, "padding": 1, "border": border, "scale_factor": scale_factor}


KINDS = [
    {"rank": 1}, {"rank": 2}, {"rank": 3}, {"border": "replicate"}, {"border": "reflect"}, {"border": "circular"},
    {"border": "clamp"}, {"scale_factor": 2}, {"rank": 3, "border": "clamp", "scale_factor": 2},
]  # fmt: skip


class TestTaps:
    @settings(deadline=None, max_examples=100)
    @given(data=st.data())
    def test_any_geometry(self, data):
        x, weight, arguments = draw_call(data)
        with ops.strategy("taps"):
            assert_close(results(ops.pixel_conv, x, weight, arguments), x, weight, arguments, torch.float64)

    @pytest.mark.parametrize("kind", KINDS, ids=str)
    def test_recorded_sum(self, kind):
        """What graphs and torch's transforms take."""
        x, weight, arguments = call(**kind)
        with mock.patch("convary.ops.pixel.aten.is_traced", return_value=True):
            got = results(ops.pixel_conv, x, weight, arguments)
        assert_close(got, x, weight, arguments, torch.float64)

    @pytest.mark.parametrize("kind", [{"rank": 1}, {}, {"border": "clamp", "scale_factor": 2}], ids=str)
    def test_gradients_twice(self, kind):
        x, weight, arguments = call(**kind)
        leaves = [x[:1, :, :3].requires_grad_(), weight[:1, ..., : 3 * arguments["scale_factor"], :].requires_grad_()]
        if kind.get("rank") == 1:
            leaves = [x[:1].requires_grad_(), weight[:1].requires_grad_()]
        function = lambda *tensors: ops.pixel_conv(*tensors, **arguments)  # noqa: E731
        assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)

    def test_only_what_is_asked_for(self):
        x, weight, arguments = call()
        for needed in range(2):
            leaves = [x.clone(), weight.clone()]
            leaves[needed].requires_grad_()
            ops.pixel_conv(*leaves, **arguments).sum().backward()
            assert [leaf.grad is not None for leaf in leaves] == [i == needed for i in range(2)]

    def test_float16_and_complex(self):
        x, weight, arguments = call()
        half = ops.pixel_conv(x.to(torch.bfloat16), weight.to(torch.bfloat16), **arguments)
        assert half.dtype is torch.bfloat16
        torch.testing.assert_close(half.double(), truth(x, weight, arguments)[0], rtol=0.1, atol=0.3)
        turned = ops.pixel_conv(x * 1j, weight.to(torch.complex128), **arguments)
        torch.testing.assert_close(turned, truth(x, weight, arguments)[0] * 1j)

    def test_autocast(self):
        x, weight, arguments = call()
        want = truth(x, weight, arguments)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = ops.pixel_conv(x.float(), weight.to(torch.bfloat16), **arguments)
        assert y.dtype is torch.float32
        torch.testing.assert_close(y.double(), want, rtol=0.1, atol=0.3)

    def test_transforms_of_torch(self):
        x, weight, arguments = call()
        function = lambda x, weight: ops.pixel_conv(x, weight, **arguments)  # noqa: E731
        want = truth(x, weight, arguments, torch.ones(x.shape, dtype=torch.float64))
        y = torch.vmap(lambda x, weight: function(x[None], weight[None])[0])(x, weight)
        torch.testing.assert_close(y, want[0])
        gradients = torch.func.grad(lambda *t: function(*t).sum(), argnums=(0, 1))(x, weight)
        torch.testing.assert_close(list(gradients), want[1:])
        _, tangent = torch.func.jvp(function, (x, weight), (x, weight))
        torch.testing.assert_close(tangent, 2 * want[0])

    def test_memory_formats_and_strides(self):
        x, weight, arguments = call()
        want = ops.pixel_conv(x, weight, **arguments)
        y = ops.pixel_conv(x.to(memory_format=torch.channels_last), weight.mT.contiguous().mT, **arguments)
        assert torch.equal(y, want) and y.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(ops.pixel_conv(x[:1].expand(2, -1, -1, -1), weight, **arguments)[:1], want[:1])


class TestOfficial:
    """The numbers of the released implementations (tests/golden)."""

    def load(self, name: str):
        meta, expected, inputs, _ = fill.load(GOLDEN / f"{name}.npz")
        expected = {key: torch.from_numpy(value).double() for key, value in expected.items()}
        return meta["kwargs"], expected, {key: torch.from_numpy(value) for key, value in inputs.items()}

    def close(self, got: torch.Tensor, want: torch.Tensor) -> None:
        assert (got.reshape(want.shape) - want).abs().max() <= 1e-6 * want.abs().max() + 1e-9

    def check(self, expected: dict, y: torch.Tensor, leaves: dict) -> None:
        """The output and, of sum(out * probe), every gradient."""
        self.close(y, expected["out"])
        probe = torch.from_numpy(fill.fill("probe", tuple(y.shape), waveform="sin"))
        for (name, _), grad in zip(
            leaves.items(), torch.autograd.grad((y * probe).sum(), list(leaves.values())), strict=True
        ):
            self.close(grad, expected[f"grad.{name}"])

    @pytest.mark.parametrize("name", ["1x13_softmax", "9x9_softmax", "5x5_raw_rgb_grouping"])
    def test_dynamic_filter_networks(self, name):
        kwargs, expected, inputs = self.load(f"dfn_local_{name}")
        leaves = {key: value.requires_grad_() for key, value in inputs.items()}
        filters = leaves["logits"].softmax(1) if "softmax" in name else leaves["logits"]
        kernel_size = kwargs["filter_size"][:2]
        padding = [k // 2 for k in kernel_size]
        self.check(
            expected,
            ops.pixel_conv(leaves["image"], filters[:, None], kernel_size=kernel_size, padding=padding),
            leaves,
        )

    @pytest.mark.parametrize("name", ["k3_g2_x2", "k5_g1_x2"])
    def test_carafe(self, name):
        kwargs, expected, inputs = self.load(f"carafe_op_{name}")
        leaves = {key: value.requires_grad_() for key, value in inputs.items()}
        k, weight = kwargs["kernel_size"], leaves["masks"].unflatten(1, (kwargs["group_size"], -1))
        y = ops.pixel_conv(
            leaves["features"], weight, kernel_size=k, padding=k // 2, scale_factor=kwargs["scale_factor"]
        )
        self.check(expected, y, leaves)

    def test_lsnet(self):
        _, expected, inputs = self.load("lsnet_ska_k3")
        leaves = {key: value.requires_grad_() for key, value in inputs.items()}
        y = ops.pixel_conv(leaves["x"], leaves["w"], kernel_size=3, padding=1, group_order="interleaved")
        self.check(expected, y, leaves)

    @pytest.mark.parametrize("k", [3, 7])
    def test_involution(self, k):
        _, expected, inputs = self.load(f"involution_k{k}_c32_eval")
        weight = expected["kernel.generated"].unflatten(1, (2, -1))
        self.close(ops.pixel_conv(inputs["x"], weight, kernel_size=k, padding=k // 2), expected["out"])

    @pytest.mark.parametrize("dilation", [1, 3, 5])
    def test_hdfnet(self, dilation):
        _, expected, inputs = self.load(f"hdfnet_depthdc3x3_{dilation}_eval")
        _, _, _, state = fill.load(GOLDEN / f"hdfnet_depthdc3x3_{dilation}_eval.npz")
        weight = expected["kernel.generated"].unflatten(1, (4, 9))
        y = ops.pixel_conv(inputs["x"], weight, kernel_size=3, padding=dilation, dilation=dilation)
        fuse = [torch.from_numpy(state[f"fuse.{key}"]) for key in ("weight", "bias")]
        self.close(torch.nn.functional.conv2d(y, *fuse, padding=1), expected["out"])


MEMORY = """
import json, sys, torch
from convary import ops
from convary.bench.memory import forget_peak, resident

def peak(strategy, training):
    x = torch.randn(1, 64, 96, 96).requires_grad_(training)
    weight = torch.randn(1, 4, 49, 96, 96).requires_grad_(training)
    def run(x, weight):
        y = ops.pixel_conv(x, weight, kernel_size=7, padding=3)
        if training: y.backward(torch.ones(()).expand_as(y))
    with ops.strategy(strategy):
        run(x[:, :, :8, :8], weight[..., :8, :8])
        x.grad = weight.grad = None
        idle = resident("VmRSS")
        forget_peak()
        run(x, weight)
    return resident("VmHWM") - idle

torch.set_num_threads(2)
print(json.dumps({f"{s} {t}": peak(s, t) for s in sys.argv[1:] for t in (False, True)}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts resident memory as Linux does")
def test_extra_memory_is_proportional_to_the_output():
    """No window is copied: unfolding, with 49 taps, would take 49 times the output, and as much again for products."""
    names = [name for name, entry in pixel.STRATEGIES.items() if entry.why_not(native_problem()) is None]
    code = f"import sys\nsys.argv[1:] = {names!r}\n{MEMORY}"
    peaks = json.loads(python(code, MALLOC_MMAP_THRESHOLD_="65536"))  # what is freed is given back at once
    y, grad_weight = 4 * 64 * 96 * 96, 4 * 4 * 49 * 96 * 96
    slack = 2 << 20
    for name in names:
        assert peaks[f"{name} False"] <= 2.5 * y + slack, peaks
        assert peaks[f"{name} True"] <= grad_weight + 7 * y + slack, peaks


def native_problem():
    x, weight, arguments = call()
    return problem_of(pixel.OP, x.float(), weight.float(), **arguments)


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"x": torch.randn(2, 6)}, ShapeError, "x wants one to three spatial axes"),
            ({"weight": torch.randn(2, 3, 9, 5)}, ShapeError, "x wants one to three spatial axes"),
            ({"weight": torch.randn(2, 4, 9, 5, 6)}, ShapeError, r"\(2, G, 9, 5, 6\) with G dividing 6 channels"),
            ({"weight": torch.randn(2, 3, 8, 5, 6)}, ShapeError, r"got \(2, 3, 8, 5, 6\)"),
            ({"weight": torch.randn(2, 3, 9, 6, 6)}, ShapeError, r"got \(2, 3, 9, 6, 6\)"),
            ({"weight": torch.randn(1, 3, 9, 5, 6)}, ShapeError, r"got \(1, 3, 9, 5, 6\)"),
            ({"weight": torch.randn(2, 3, 9, 5, 6).double()}, DtypeError, "x is torch.float32 but weight is"),
            ({"x": torch.ones(2, 6, 5, 6).int(), "weight": torch.ones(2, 3, 9, 5, 6).int()}, DtypeError, "cast it to"),
            ({"border": "mirror"}, ConfigError, "border must be one of zeros, replicate"),
            ({"group_order": "mixed"}, ConfigError, "group_order must be one of contiguous"),
            ({"scale_factor": 0}, ConfigError, "scale_factor must be"),
            ({"scale_factor": (2, 2)}, ConfigError, "scale_factor must be"),
            ({"kernel_size": (3, 3, 3)}, ConfigError, "kernel_size must be"),
            ({"padding": "same", "stride": 2}, ConfigError, "padding='same' wants stride 1"),
            ({"kernel_size": 9}, ShapeError, "the kernels reach over"),
            ({"padding": 5, "border": "reflect"}, ShapeError, "border='reflect' with padding 5 wants at least 6"),
            ({"padding": 6, "border": "circular"}, ShapeError, "border='circular' with padding 6 wants at least 6"),
            ({"kernel_size": 7, "padding": 3, "border": "clamp"}, ShapeError, "border='clamp' wants a window inside x"),
            ({"x": torch.randn(2, 6, 0, 6), "padding": 2, "border": "replicate"}, ShapeError, "at least 1 pos"),
        ],
    )  # fmt: skip
    def test_arguments(self, changes, error, message):
        usual = {"x": torch.randn(2, 6, 5, 6), "weight": torch.randn(2, 3, 9, 5, 6), "kernel_size": 3, "padding": 1}
        with pytest.raises(error, match=message):
            ops.pixel_conv(**usual | changes)

    def test_strategies_of_other_ops(self):
        x, weight, arguments = call()
        with ops.strategy("grouped"), pytest.raises(StrategyError, match="no such strategy; use one of taps"):
            ops.pixel_conv(x, weight, **arguments)
        with ops.strategy("taps"), pytest.raises(StrategyError, match="no such strategy"):
            ops.sample_conv(torch.randn(1, 1, 4), torch.randn(1, 1, 1, 3))


class TestEdges:
    @pytest.mark.parametrize("sizes", [((0, 6, 5, 5), (0, 3, 9, 5, 5)), ((2, 0, 5, 5), (2, 3, 9, 5, 5))])
    def test_nothing_in_nothing_out(self, sizes):
        leaves = [torch.randn(size, requires_grad=True) for size in sizes]
        y = ops.pixel_conv(*leaves, kernel_size=3, padding=1)
        assert y.shape == sizes[0]
        y.sum().backward()
        assert all((leaf.grad == 0).all() for leaf in leaves)

    def test_padding_alone(self):
        """A map without positions, seen through zeros."""
        leaves = [torch.randn(2, 6, 0, 5, requires_grad=True), torch.randn(2, 3, 9, 2, 5, requires_grad=True)]
        y = ops.pixel_conv(*leaves, kernel_size=3, padding=(2, 1))
        assert y.shape == (2, 6, 2, 5) and (y == 0).all()
        y.sum().backward()
        assert all((leaf.grad == 0).all() for leaf in leaves)

    def test_same_padding(self):
        x, weight, _ = call()
        want = ops.pixel_conv(x, weight, kernel_size=3, padding=1)
        assert torch.equal(ops.pixel_conv(x, weight, kernel_size=(3, 3), padding="same"), want)

    def test_a_kernel_of_one_position_is_a_product(self):
        x, weight = torch.randn(2, 6, 5, 5), torch.randn(2, 3, 1, 5, 5)
        got = ops.pixel_conv(x, weight, kernel_size=1, group_order="interleaved")
        torch.testing.assert_close(got, x * weight[:, :, 0].repeat(1, 2, 1, 1))


class TestExplain:
    def test_says_what_runs(self):
        x, weight, arguments = call()
        told = ops.explain(ops.pixel_conv, x, weight, **arguments)
        assert [row.strategy for row in told.rows] == list(pixel.STRATEGIES)
        assert told.chosen == "taps" and told.exported == "taps"
        assert all(row.macs == x.numel() * 9 for row in told.rows)
        assert "pixel_conv: B=2 C=6 O=6 G=3" in str(told)
        with pytest.raises(ShapeError, match=r"\(2, G, 9, 5, 6\)"):
            ops.explain("pixel_conv", x, weight[:, :, :4], **arguments)


EXPORTED = [{"rank": 1}, {}, {"border": "reflect"}, {"border": "clamp", "scale_factor": 2}]


@pytest.mark.parametrize("kind", EXPORTED, ids=str)
def test_export_with_any_batch_and_size(kind):
    x, weight, arguments = call(**kind)
    if kind.get("border", "zeros") != "zeros" or kind.get("scale_factor", 1) > 1:
        dynamic = {name: {0: torch.export.Dim.DYNAMIC} for name in ("x", "weight")}
    else:
        free = {axis: torch.export.Dim.DYNAMIC for axis in range(2, x.ndim)}
        dynamic = {"x": {0: torch.export.Dim.DYNAMIC, **free},
                   "weight": {0: torch.export.Dim.DYNAMIC, **{axis + 1: d for axis, d in free.items()}}}  # fmt: skip
    program = torch.export.export(Layer(arguments), (x, weight), dynamic_shapes=dynamic)
    assert "convary" not in str(program.graph)
    bigger = [torch.cat([t, t[:1]]) for t in (x, weight)]
    torch.testing.assert_close(program.module()(*bigger), Layer(arguments)(*bigger))


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXPORTED[1:], ids=str)
def test_onnx_with_any_batch(kind, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    x, weight, arguments = call(**kind)
    given = [x.float(), weight.float()]
    dynamic = {name: {0: torch.export.Dim.DYNAMIC} for name in ("x", "weight")}
    program = torch.onnx.export(Layer(arguments), tuple(given), dynamo=True, dynamic_shapes=dynamic, verbose=False)
    program.save(tmp_path / "pixel.onnx")
    session = ort.InferenceSession(tmp_path / "pixel.onnx")
    bigger = [torch.cat([t, t[:1]]) for t in given]
    names = [value.name for value in session.get_inputs()]
    (got,) = session.run(None, {name: t.numpy() for name, t in zip(names, bigger, strict=True)})
    torch.testing.assert_close(torch.from_numpy(got), Layer(arguments)(*bigger), rtol=1e-4, atol=1e-4)
