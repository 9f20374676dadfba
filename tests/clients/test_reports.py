# SPDX-License-Identifier: Apache-2.0
"""What users of other dynamic layers, and of programs around them, reported in public, done with convary."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convary as cv
from convary import where

METHODS = [method() for method in cv.METHODS]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def varied(module: nn.Module) -> nn.Module:
    """With other parameters, so that routers look at their input."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))


def test_padding_of_ones_own_is_not_lost():
    """https://github.com/huggingface/diffusers/issues/2633: tiles in one direction, by another ``_conv_forward``.

    The reporter puts it on every nn.Conv2d of a trained network. A conversion would drop it without a word.
    """

    def conv_forward(self, x, weight, bias):
        x = F.pad(F.pad(x, (1, 1, 0, 0), mode="circular"), (0, 0, 1, 1))
        return F.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)

    model, x = net(), torch.randn(2, 3, 6, 9)
    model[2]._conv_forward = conv_forward.__get__(model[2], nn.Conv2d)
    plan = cv.plan(model, cv.DyConv(), where.all())
    assert plan.rows[1].reason.startswith("its _conv_forward was replaced on the instance")
    torch.testing.assert_close(plan.apply()(x), model(x))


@pytest.mark.parametrize("name", ["forward", "__call__"])
def test_other_methods_of_ones_own_are_not_lost(name):
    model = net()
    setattr(model[2], name, lambda x: x)
    assert cv.plan(model, cv.ODConv(), where.all()).converted == ("0",)


def test_padding_mode_set_afterwards_is_kept():
    """https://github.com/huggingface/diffusers/issues/556: tiles, by the attribute ``padding_mode``."""
    model, x = net(), torch.randn(2, 3, 6, 9)
    static = model(x)
    for conv in model[::2]:
        conv.padding_mode = "circular"
    dynamic = cv.convert(model, cv.ODConv(), where.all())
    torch.testing.assert_close(dynamic(x), model(x))
    assert not torch.allclose(model(x), static)
    for layer in dynamic[::2]:  # and on a dynamic layer
        layer.padding_mode = "zeros"
    torch.testing.assert_close(dynamic(x), static)


@pytest.mark.parametrize("config", [cv.DCD(), cv.DyConv(), cv.KernelWarehouse()], ids=lambda config: config.name)
def test_torchs_encoder_keeps_the_layers_whose_weights_it_takes(config):
    """https://github.com/pytorch/pytorch/issues/128413: in inference nn.TransformerEncoderLayer calls no module inside.

    It hands their weights to one fused function. So a converted encoder trained, and failed at its first evaluation.
    """
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)
    model, x = nn.Sequential(nn.Linear(8, 16), encoder).eval(), torch.randn(2, 5, 8)
    plan = cv.plan(model, config, where.linear())
    assert plan.converted == ("0",)
    assert "takes the weights of its linear layers in inference" in plan.rows[2].reason
    with torch.no_grad():
        torch.testing.assert_close(plan.apply()(x), model(x))


def test_a_model_that_is_wrapped_for_several_processes_is_refused(tmp_path):
    """https://github.com/pytorch/pytorch/issues/12603: a parameter that DDP does not know is not synchronised.

    Each process would train kernels and routers of its own.
    """
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(net())
        for model in (wrapped, nn.Sequential(wrapped)):
            with pytest.raises(cv.ConfigError, match="DistributedDataParallel took the model's parameters"):
                cv.convert(model, cv.DyConv(), where.all(), inplace=True)
        sharded = torch.distributed.fsdp.fully_shard(net())
        with pytest.raises(cv.ConfigError, match="FSDPModule took the model's parameters"):
            cv.convert(sharded, cv.DyConv(), where.all())
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow  # MONAI takes 8 s to import
@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.name)
def test_medical_images_keep_what_they_carry(config):
    """https://github.com/cicwi/tomosipo/issues/25: MONAI's MetaTensor through operations of one's own."""
    data = pytest.importorskip("monai.data")
    model = cv.convert(net(), config, where.all())
    images = [data.MetaTensor(torch.randn(3, 6, 6), affine=i * torch.eye(4), meta={"name": f"{i}"}) for i in (1, 2)]
    batch = data.list_data_collate(images)
    with torch.no_grad():
        for _ in range(3):  # a third call of a shape may take another way
            whole = model(batch)
    torch.testing.assert_close(whole.as_tensor(), model(batch.as_tensor()))
    parts = data.decollate_batch(whole)
    assert [part.meta["name"] for part in parts] == ["1", "2"]
    assert [part.affine[0, 0].item() for part in parts] == [1.0, 2.0]
    model.train()(batch).sum().backward()


@pytest.mark.slow  # transformers takes 4 s to import
@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.name)
def test_layers_that_a_checkpoint_lacks_are_initialised(config, tmp_path):
    """https://github.com/huggingface/transformers/issues/42418: parameters of one's own are NaN after from_pretrained.

    It builds on the meta device, and initialises what the checkpoint lacks by the classes that it knows. So banks were
    whatever was in memory, and temperatures and KernelWarehouse's cell numbers too.
    """
    transformers = pytest.importorskip("transformers")

    class Static(transformers.PreTrainedModel):
        config_class = transformers.PreTrainedConfig

        def __init__(self, settings):
            super().__init__(settings)
            self.stem = nn.Conv2d(3, 16, 3)
            self.more()
            self.post_init()

        def more(self):
            pass

        def forward(self, x):
            return self.extra(self.stem(x))

    class Dynamic(Static):
        def more(self):
            self.extra = config.build(nn.Conv2d(16, 16, 3))

    static = Static(transformers.PreTrainedConfig())
    static.save_pretrained(tmp_path / "static")
    fresh = config.build(nn.Conv2d(16, 16, 3))
    loaded = Dynamic.from_pretrained(tmp_path / "static")
    assert torch.equal(loaded.stem.weight, static.stem.weight)
    assert all(map(torch.equal, loaded.extra.buffers(), fresh.buffers()))
    for got, want in zip(loaded.extra.parameters(), fresh.parameters(), strict=True):
        bound = 1e-6 if want.std(correction=0) == 0 else 3 * want.abs().max()
        assert (got - want).abs().max() <= bound
    assert loaded(torch.randn(2, 3, 9, 9)).isfinite().all()

    varied(loaded).save_pretrained(tmp_path / "partly", state_dict=dict(list(loaded.state_dict().items())[:4]))
    again = Dynamic.from_pretrained(tmp_path / "partly")
    wanted, found = loaded.state_dict(), again.state_dict()
    for name in list(wanted)[:4]:  # what is there stays
        assert torch.equal(found[name], wanted[name]), name
    assert again(torch.randn(2, 3, 9, 9)).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.name)
def test_mixed_precision_trains(config):
    """https://github.com/coqui-ai/TTS/issues/417: dynamic convolutions end in NaN with ``mixed_precision=True``.

    Here in float16 with loss scaling and clipped gradients, on features that are neither centred nor scaled.
    """
    parts = [config.build(nn.Conv2d(C, 16, 3, padding=1, bias=False)) for C in (3, 16)]
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)
    model = nn.Sequential(parts[0], nn.BatchNorm2d(16), nn.ReLU(), parts[1], nn.BatchNorm2d(16), nn.ReLU(), *ends)
    optimizer, scaler, losses = torch.optim.AdamW(model.parameters(), 3e-3), torch.amp.GradScaler("cpu"), []
    for _ in range(40):
        x = torch.randn(16, 3, 8, 8) * 30 + 20
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(model(x), (x[:, 0].mean((1, 2)) > 20).long())
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert scaler.get_scale() >= 2**12
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.name)
def test_a_causal_network_routes_on_the_past(config):
    """https://github.com/exercise-book-yq/Supercodec/issues/4: global average pooling over time is not causal.

    So is every kernel that looks at x; coefficients from the past alone make the layer causal again.
    """
    layer = varied(config.build(nn.Conv1d(8, 8, 3))).double().eval()
    if type(layer).features is not cv.nn.DynamicConv.features:
        pytest.skip("it changes x first: its bands are of the spectrum of all of x")
    if layer.router.temperature is not None:
        cv.set_temperature(layer, layer.router.final_temperature)
    first, second = torch.randn(2, 1, 8, 40, dtype=torch.double)
    second[..., :20] = first[..., :20]
    causal = [layer(F.pad(x, (2, 0)), layer.coefficients(x[..., :20])) for x in (first, second)]
    assert torch.equal(causal[0][..., :20], causal[1][..., :20])
    looking = [layer(F.pad(x, (2, 0))) for x in (first, second)]
    assert not torch.allclose(looking[0][..., :20], looking[1][..., :20])


class Adapted(nn.Module):
    """A linear layer with a low-rank change, whose ``weight`` is that of the layer without it, as in peft."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)
    in_features = property(lambda self: self.base_layer.in_features)
    out_features = property(lambda self: self.base_layer.out_features)

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.name)
def test_adapters_in_routers(config):
    """https://github.com/huggingface/peft/issues/2655: low-rank adapters of networks with layers of one's own.

    peft refuses dynamic layers in words; in the linear layers of routers its adapters count, natively routed or not.
    """
    layer = varied(config.build(nn.Conv2d(32, 8, 3))).eval()
    if layer.router.temperature is not None:
        cv.set_temperature(layer, 0.5)
    x = torch.rand(2, 32, 7, 7)
    with torch.no_grad():
        before = [layer(x) for _ in range(3)][-1]
    linear = [(p, n, m) for p in layer.modules() for n, m in p.named_children() if isinstance(m, nn.Linear)]
    for parent, name, module in linear:
        setattr(parent, name, Adapted(module))
    with torch.no_grad():
        adapted = [layer(x) for _ in range(3)]
    for parent, name, module in linear:
        change = getattr(parent, name)
        module.weight.data.add_(change.up.weight.data @ change.down.weight.data)
        setattr(parent, name, module)
    for y in adapted:
        torch.testing.assert_close(y, layer(x), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(layer(x), before, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("config", [cv.ODConv(), cv.DCD(), cv.KernelWarehouse()], ids=lambda config: config.name)
def test_onnx_in_half_precision(config, tmp_path):
    """https://github.com/microsoft/onnxruntime/issues/25522: a file converted to float16 does not load."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    float16 = pytest.importorskip("onnxruntime.transformers.float16")
    model = varied(cv.convert(net()[:1], config, where.all())).eval()
    cv.export(model, torch.randn(2, 3, 16, 16), tmp_path / "model.onnx")
    half = float16.convert_float_to_float16(onnx.load(tmp_path / "model.onnx"), keep_io_types=True)
    session = runtime.InferenceSession(half.SerializeToString(), providers=["CPUExecutionProvider"])
    for x in (torch.randn(2, 3, 16, 16), torch.randn(1, 3, 20, 24)):
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        want = model(x)
        assert (torch.from_numpy(got) - want).abs().max() <= 5e-3 * want.abs().max()
