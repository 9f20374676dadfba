# SPDX-License-Identifier: Apache-2.0
"""timm: names, weights, decay, annealing, and a run by the functions that timm's train.py and validate.py call."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

import convary as cv
from tests.nets import excite

timm = pytest.importorskip("timm")
from timm.models import load_checkpoint, resume_checkpoint  # noqa: E402
from timm.optim import create_optimizer_v2  # noqa: E402
from timm.utils import CheckpointSaver, ModelEmaV3  # noqa: E402

ours = cv.integrations.timm
every_method = pytest.mark.parametrize("config", [method() for method in cv.METHODS], ids=lambda config: config.name)
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def dynamic(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, cv.nn.DynamicLayer)]


@pytest.mark.parametrize(
    ("name", "layer", "kernels"),
    [
        ("resnet10t.odconv", cv.ODConv2d, 4),
        ("resnet10t_odconv2x", cv.ODConv2d, 2),
        ("resnet10t.c3_in1k.dyconv2x", cv.DyConv2d, 2),
        ("resnet10t.condconv8x", cv.CondConv2d, 8),
        ("resnet10t.dcd", cv.DCDConv2d, None),
        ("resnet10t.kernelwarehouse2x", cv.KernelWarehouse2d, None),
    ],
)
def test_names(name, layer, kernels):
    model = timm.create_model(name, num_classes=5)
    found = [m for m in dynamic(model) if not isinstance(m, cv.MixedLinear | cv.DCDLinear)]
    assert found and all(type(m) is layer and kernels in (None, m.num_experts) for m in found)
    assert model.num_classes == 5 and model.pretrained_cfg["architecture"].startswith("resnet10t_")
    assert timm.data.resolve_data_config({}, model=model)["input_size"] == (3, 176, 176)  # resnet10t's own


def test_static_names_stay_what_they_were():
    assert not dynamic(timm.create_model("resnet10t")) and timm.is_model("resnet10t")
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model("no_such_net.odconv")
    with pytest.raises(cv.ConfigError, match="DCD has no number of kernels"):
        timm.create_model("resnet10t.dcd4x")


def test_a_name_of_ones_own():
    ours.register("resnet10t_mine", "resnet10t", cv.ODConv(experts=2, reduction=4), cv.where.kernel_size(1))
    assert {m.kernel_size for m in dynamic(timm.create_model("resnet10t_mine"))} == {(1, 1)}
    with pytest.raises(cv.ConfigError, match="no architecture 'resnet10'"):
        ours.register("mine", "resnet10", cv.ODConv())
    with pytest.raises(cv.ConfigError, match="letters, digits and underscores"):
        ours.register("resnet10t.mine", "resnet10t", cv.ODConv())


@pytest.mark.parametrize("config", cv.METHODS, ids=lambda c: c.name)
def test_the_weights_of_the_base_convert_exactly(config, tmp_path):
    static = timm.create_model("resnet10t", num_classes=7).eval()
    path = tmp_path / "resnet10t.pth"
    torch.save(static.state_dict(), path)
    name = f"resnet10t.c3_in1k.{config.name}"
    weights = {"file": str(path), "num_classes": 7}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=weights, num_classes=7)
    assert dynamic(model)
    torch.testing.assert_close(model.eval()(X), static(X), rtol=1e-4, atol=1e-5)


def test_a_saved_network_comes_back_from_its_folder(tmp_path):
    model = timm.create_model("resnet10t.odconv2x", num_classes=4).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    timm.models.save_for_hf(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(again(X), model(X))


@pytest.mark.parametrize("options", [{}, {"layer_decay": 0.75}])
def test_routers_are_out_of_decay(options):
    model = timm.create_model("resnet10t.odconv2x")
    for net in (model, copy.deepcopy(model)):
        names = {p: name for name, p in net.named_parameters()}
        optimizer = create_optimizer_v2(net, opt="adamw", lr=1e-3, weight_decay=0.05, **options)
        decay = {names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert decay.keys() == set(names.values())
        assert all((decay[name] == 0) == (".router." in name or decay_free(net, name)) for name in decay)


def decay_free(net: nn.Module, name: str) -> bool:
    return net.get_parameter(name).ndim < 2 or name.endswith(".bias")


def test_annealing_by_forwards_and_resuming():
    def make():
        return timm.create_model("resnet10t.dyconv2x", num_classes=3, anneal_steps=10).train()

    def temperature(model):
        return float(cv.integrations.timm.tempered_routers(model)[0].temperature)

    model, seen = make(), []
    for _ in range(5):
        model(X)
        seen.append(temperature(model))
    assert seen == pytest.approx([30.0, 27.1, 24.2, 21.3, 18.4])
    model.eval()(X)
    assert temperature(model) == seen[-1]
    other = make()
    other.load_state_dict(model.state_dict())
    twin = copy.deepcopy(other)
    for net in (model, other, twin):
        net.train()
        for _ in range(2):
            net(X)
        assert temperature(net) == pytest.approx(12.6)
        for _ in range(8):
            net(X)
        assert temperature(net) == 1.0
    static = timm.create_model("resnet10t.condconv", anneal_steps=10)  # no temperature: nothing to anneal
    assert not static._forward_pre_hooks


@pytest.mark.slow
def test_annealing_in_a_compiled_model_is_one_graph():
    torch._dynamo.reset()
    model = timm.create_model("resnet10t.dyconv2x", num_classes=3, anneal_steps=6)
    compiled = torch.compile(model, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(8):
            compiled(X).sum().backward()
    assert float(ours.tempered_routers(model)[0].temperature) == 1.0


def train(folder, steps, resume=None):
    """The calls of timm's train.py, in its order."""
    model = timm.create_model("resnet10t.odconv2x", num_classes=2, anneal_steps=8)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.01, weight_decay=1e-4)
    begin = resume_checkpoint(model, resume, optimizer=optimizer, log_info=False) if resume else 0
    ema = ModelEmaV3(model, decay=0.9998)
    if resume:
        load_checkpoint(ema.module, resume, use_ema=True)
    saver = CheckpointSaver(model, optimizer, model_ema=ema, checkpoint_dir=str(folder), recovery_dir=str(folder))
    torch.manual_seed(1)
    for epoch in range(begin, begin + steps):
        model.train()
        nn.functional.cross_entropy(model(X), torch.tensor([0, 1])).backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model, step=epoch)
        saver.save_checkpoint(epoch, metric=float(epoch))
    return model.eval(), ema.module


@pytest.mark.slow
def test_train_resume_and_validate(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    torch.manual_seed(0)
    train(tmp_path / "a", 4)
    model, ema = train(tmp_path / "b", 6, resume=str(tmp_path / "a" / "last.pth.tar"))
    temperatures = [[float(r.temperature) for r in ours.tempered_routers(net)] for net in (model, ema)]
    assert set(temperatures[0]) == {1.0} and temperatures[1] == pytest.approx(temperatures[0])
    for use_ema, want in ((False, model), (True, ema)):
        again = timm.create_model("resnet10t.odconv2x", num_classes=2)  # as validate.py does
        load_checkpoint(again, str(tmp_path / "b" / "last.pth.tar"), use_ema=use_ema)
        torch.testing.assert_close(again.eval()(X), want.eval()(X))


@pytest.mark.slow
def test_a_script_runs_where_the_names_are_known(tmp_path):
    script = tmp_path / "validate.py"
    script.write_text(
        "import sys, timm\nprint(type(timm.create_model(sys.argv[1]).layer4[0].conv1).__name__, sys.argv)\n"
    )
    call = [sys.executable, "-m", "convary.integrations.timm", str(script), "resnet10t.odconv"]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "ODConv2d" and "resnet10t.odconv" in done.stdout
    refused = subprocess.run(call[:3], capture_output=True, text=True)
    assert refused.returncode == 1 and "usage" in refused.stderr


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if "running" in name}


@every_method
def test_timm_freezes_the_norms_of_routers_too(config):
    """https://github.com/huggingface/pytorch-image-models/pull/876: ``timm.utils.freeze`` keeps running statistics.

    The norms of routers were of another class than it looks for, so a frozen stage went on changing.
    """
    static = timm.create_model("resnet10t", num_classes=3)
    model = excite(cv.convert(static, config, cv.where.name("layer1.*", "layer2.*"))).eval()
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        want = model(x)
        timm.utils.freeze(model, ["layer1"])
        torch.testing.assert_close(model(x), want, rtol=1e-3, atol=1e-3 * want.abs().max().item())
        before = statistics(model)
        model.train()(x)
    after = model.state_dict()
    changed = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert "layer1" not in changed
    assert {"layer2", "layer3"} <= changed
    timm.utils.unfreeze(model, ["layer1"])
    model(x).sum().backward()
    assert any(not torch.equal(before[name], value) for name, value in statistics(model).items() if "layer1" in name)


@every_method
def test_norms_that_timm_splits(config):
    """As ``timm``'s train.py does with ``--split-bn``: one norm for each part of the batch."""
    model = cv.convert(timm.create_model("resnet10t", num_classes=3), config, cv.where.name("layer1.*"))
    model = timm.layers.convert_splitbn_model(excite(model), 2).train()
    x = torch.randn(4, 3, 32, 32)
    model(x).sum().backward()
    assert torch.equal(model.eval()(x)[:2], model(torch.cat([x[:2], 5 * x[2:]]))[:2])
