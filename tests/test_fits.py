# SPDX-License-Identifier: Apache-2.0
"""What people train and ship with works on dynamic networks of every method."""

import copy
import io
import pickle
import warnings
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import convary as cv
from convary import METHODS
from convary.nn import Router
from tests.nets import Net, dynamic_net, excite

CONFIGS = [*(c() for c in METHODS), cv.CondConv(experts=3, router="block")]
IDS = [*(c.name for c in METHODS), "condconv-block"]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=IDS)
every_method = pytest.mark.parametrize("config", CONFIGS[: len(METHODS)], ids=IDS[: len(METHODS)])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cv.TemperatureWarning)
        yield


def images(batch: int = 3, size: int = 16, **kw) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, **kw)


def train_step(model: nn.Module, x: torch.Tensor) -> float:
    """One step of SGD; the loss."""
    loss = F.cross_entropy(model.train()(x).float(), torch.arange(len(x)) % 5)
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    model.zero_grad()
    return float(loss.detach())


@pytest.mark.slow
@pytest.mark.support("compile")
@every_config
def test_compiled_network_neither_breaks_nor_recompiles_while_annealing(config):
    model = dynamic_net(config, blocks=1).train()
    tempered = any(r.temperature is not None for r in model.modules() if isinstance(r, Router))
    annealing = cv.anneal(model, steps=3) if tempered else None
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (4, 7, 3):
            x = images(batch)
            torch.testing.assert_close(compiled(x), copy.deepcopy(model)(x), rtol=1e-3, atol=1e-3)
            if annealing is not None:
                annealing.step()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def calm_net(config):
    """A network whose rounding shows as rounding: FDConv squares hidden units, and heads at random blow that up."""
    model = dynamic_net(config)
    if isinstance(config, cv.FDConv):
        for router in (m for m in model.modules() if isinstance(m, Router)):
            router.heads.weight.data.mul_(0.02)
    return model


@pytest.mark.support("autocast")
@every_config
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains_with_routers_in_float32(config, dtype):
    model = calm_net(config)
    coefficients = []
    for router in model.modules():
        if isinstance(router, Router):
            router.register_forward_hook(lambda m, args, out: coefficients.extend(out.factors().values()))
    x = images()
    with torch.autocast("cpu", dtype=dtype):
        assert torch.isfinite(torch.tensor(train_step(model, x)))
    assert coefficients and all(value.dtype == torch.float32 for value in coefficients)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
    want = model.eval()(x)
    with torch.autocast("cpu", dtype=dtype):
        got = model(x)
    assert got.dtype == dtype
    assert (got.float() - want).abs().max() < 0.1 * want.abs().max()


@every_config
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_model(config, dtype):
    model = calm_net(config)
    tempered = [r for r in model.modules() if isinstance(r, Router) and r.temperature is not None]
    hot = 0.999 * tempered[0].first_temperature if tempered else 0.0
    if tempered:
        cv.set_temperature(model, hot)
    x = images()
    want = model(x)
    half = copy.deepcopy(model).to(dtype)
    got = half(x.to(dtype))
    assert got.dtype == dtype
    assert (got.float() - want).abs().max() < 0.1 * want.abs().max()
    assert all(float(r.temperature) == pytest.approx(hot) for r in half.modules() if r.__class__ in map(type, tempered))


@every_config
def test_channels_last(config):
    model = dynamic_net(config)
    x = images()
    want = model(x)
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(twin(x.to(memory_format=torch.channels_last)), want, rtol=1e-3, atol=1e-4)
    train_step(twin, x.to(memory_format=torch.channels_last))


@every_config
def test_moving_averages_of_torch_and_timm(config):
    timm_utils = pytest.importorskip("timm.utils")
    model = dynamic_net(config)
    torch_ema = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5), use_buffers=True
    )
    torch_ema.update_parameters(model)
    timm_ema = timm_utils.ModelEmaV3(model, decay=0.5)
    tempered = [r for r in model.modules() if isinstance(r, Router) and r.temperature is not None]
    if tempered:
        cv.set_temperature(model, 0.1 * tempered[0].first_temperature)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_step(model, images())
    torch_ema.update_parameters(model)
    timm_ema.update(model)
    holders = Counter(p for _, p in model.named_parameters(remove_duplicate=False))
    for name, p in model.named_parameters():
        want = (before[name] + p) / 2
        torch.testing.assert_close(torch_ema.module.get_parameter(name), want)
        if holders[p] == 1:  # timm averages a shared weight once for every name that it has
            torch.testing.assert_close(timm_ema.module.get_parameter(name), want)
    for average in (torch_ema, timm_ema):
        assert average.eval()(images()).isfinite().all()


@every_config
def test_deepcopy_pickle_and_state_dict_of_a_network(config):
    model = dynamic_net(config)
    x = images()
    want = model(x)
    other = cv.convert(Net(), config, cv.where.all() & ~cv.where.first()).eval()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), other):
        assert torch.equal(twin(x), want)


@every_config
def test_safetensors(config, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model = dynamic_net(config)
    safetensors.save_model(model, tmp_path / "model.safetensors")
    other = cv.convert(Net(), config, cv.where.all() & ~cv.where.first()).eval()
    safetensors.load_model(other, tmp_path / "model.safetensors")
    x = images()
    assert torch.equal(other(x), model(x))


@every_method
def test_parametrized_banks(config):
    layer = excite(config.build(nn.Conv2d(3, 4, 3, padding=1)))
    x = images()
    want = layer(x)
    nn.utils.parametrizations.weight_norm(layer, "weight", dim=0)
    torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-5)
    layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parametrizations.weight.parameters())
    parametrize.remove_parametrizations(layer, "weight")
    torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-5)


@every_config
def test_gradient_checkpointing_of_whole_blocks(config):
    model = dynamic_net(config).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # the second forward would count a batch twice, in any network
    x = images()
    gradients = []
    for save in (False, True):
        model.zero_grad()
        y = x
        for block in model.features:
            y = checkpoint(block, y, use_reentrant=False) if save else block(y)
        model.classifier(y.mean((2, 3))).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad, rtol=1e-4, atol=1e-5)


def test_a_shared_router_can_not_be_checkpointed_inside_its_block():
    """The recomputation runs outside the block: coefficients are gone, and the error says what to do."""
    block = cv.convert(Net(), cv.CondConv(experts=2, router="block"), cv.where.all()).features[1]
    inner, x = block.conv, images().new_ones(2, 8, 8, 8).requires_grad_()
    block.conv = Checkpointed(inner)
    with pytest.raises(cv.ConfigError, match="checkpoint the block as a whole"):
        block(x).sum().backward()


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


@pytest.mark.support("trace")
@every_config
def test_traced_network_holds_at_another_batch_and_size(config):
    model = dynamic_net(config, blocks=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, images(2), check_trace=False)
    x = images(5, 22)
    torch.testing.assert_close(traced(x), model(x), rtol=1e-3, atol=1e-4)


@every_config
def test_flop_counter_agrees_with_the_summary(config):
    """Torch counts what plain operations execute: the network's arithmetic, and products that mix kernels."""
    model = dynamic_net(config)
    x = images(2)
    told = cv.summary(model, x)
    with cv.ops.strategy("grouped"), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    counted = counter.get_total_flops() / 2 / len(x)
    assert told.convolution <= counted <= told.macs  # torch does not count products that are no matrix products
    assert counted >= told.convolution + told.routing
