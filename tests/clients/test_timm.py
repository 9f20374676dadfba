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
from timm.models import load_checkpoint, model_parameters, resume_checkpoint  # noqa: E402
from timm.optim import create_optimizer_v2, param_groups_layer_decay  # noqa: E402
from timm.scheduler import create_scheduler_v2  # noqa: E402
from timm.utils import (  # noqa: E402
    CheckpointSaver,
    ModelEmaV3,
    NativeScaler,
    accuracy,
    freeze,
    reparameterize_model,
    set_jit_fuser,
    unfreeze,
)

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
    static = timm.create_model("test_resnet", num_classes=7).eval()
    path = tmp_path / "test_resnet.pth"
    torch.save(static.state_dict(), path)
    name = f"test_resnet.r160_in1k.{config.name}"
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
    model = timm.create_model("test_resnet.odconv2x")
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
        return timm.create_model("test_resnet.dyconv2x", num_classes=3, anneal_steps=10).train()

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
    static = timm.create_model("test_resnet.condconv", anneal_steps=10)  # no temperature: nothing to anneal
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


def test_layer_decay_gives_a_router_the_rate_of_its_layer():
    model = timm.create_model("resnet10t.odconv2x", num_classes=3)
    groups = param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.5)
    names = {p: name for name, p in model.named_parameters()}
    found = {names[p]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found.keys() == set(names.values())
    for name, layer in model.named_modules():
        if isinstance(layer, cv.nn.DynamicLayer):
            scale, decay = found[f"{name}.weight"]
            inside = {found[key] for key in found if key.startswith(f"{name}.router.")}
            assert decay == 0.05 and inside == {(scale, 0.0)}
    scales = [found[f"{name}.weight"][0] for name in ("layer1.0.conv1", "layer2.0.conv1", "layer4.0.conv1")]
    assert scales == sorted(scales) and scales[0] < scales[-1]


@pytest.mark.parametrize("config", [cv.ODConv, cv.KernelWarehouse, cv.CGC], ids=lambda c: c.name)
def test_freeze_and_unfreeze(config):
    """Of a converted stage: no gradient, no new statistics, and the same outputs. timm knows no norm of a router."""
    model = timm.create_model(f"test_resnet.{config.name}", num_classes=3)
    want = model.eval()(X)
    freeze(model, ["layer2"])
    cv.freeze_routing(model.layer2)
    torch.testing.assert_close(model(X), want, rtol=1e-4, atol=1e-5)
    before = copy.deepcopy(model.layer2.state_dict())
    model.train()(X).sum().backward()
    assert all(p.grad is None for p in model.layer2.parameters())
    assert any(p.grad is not None for p in model.layer1.parameters())
    torch.testing.assert_close(model.layer2.state_dict(), before, rtol=0, atol=0)
    unfreeze(model, ["layer2"])
    cv.freeze_routing(model.layer2, False)
    model.train()(X).sum().backward()
    assert all(p.grad is not None for p in model.layer2.parameters())


@pytest.mark.parametrize("name", [config.name for config in cv.METHODS])
def test_gradient_checkpointing_is_exact(name):
    torch.manual_seed(0)
    model = timm.create_model(f"test_resnet.{name}", num_classes=3)
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing(True)
    for net in (model, twin):
        net.train()(X).square().sum().backward()
    for (key, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.slow
def test_reparameterised_first_and_converted_then():
    static = timm.create_model("repvgg_a0", num_classes=3).eval()
    with torch.no_grad():
        for module in static.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2)
        want = static(X)
        simple = reparameterize_model(static)
        torch.testing.assert_close(cv.convert(simple, cv.ODConv(experts=2)).eval()(X), want, rtol=1e-3, atol=1e-4)
    for name in ("repvgg_a0.odconv2x", "mobileone_s0.odconv2x", "repvit_m0_9.odconv2x"):
        converted = timm.create_model(name, num_classes=3).eval()
        with pytest.raises(cv.FusionError, match=r"can't be re-parameterised: its \S+ is dynamic.*convert it then"):
            reparameterize_model(converted)
    plain = timm.create_model("resnet10t.odconv2x", num_classes=3).eval()  # nothing in it to re-parameterise
    torch.testing.assert_close(reparameterize_model(plain)(X), plain(X))


def test_torchscript_is_refused_in_words():
    with pytest.raises(cv.ExportError, match=r"torch\.jit\.trace"):
        torch.jit.script(timm.create_model("resnet10t.odconv2x"))


def train(folder, steps, resume=None, amp=None):
    """The calls of timm's train.py, in its order."""
    set_jit_fuser("te")
    model = timm.create_model("resnet10t.odconv2x", num_classes=2, anneal_steps=8)
    model.set_grad_checkpointing(enable=amp is not None)
    model.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.01, weight_decay=1e-4, layer_decay=0.9)
    autocast = torch.autocast("cpu", dtype=amp or torch.bfloat16, enabled=amp is not None)
    scaler = NativeScaler(device="cpu") if amp is torch.float16 else None
    begin = resume_checkpoint(model, resume, optimizer, scaler, log_info=False) if resume else 0
    ema = ModelEmaV3(model, decay=0.9998)
    if resume:
        load_checkpoint(ema.module, resume, use_ema=True)
    scheduler, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=8, warmup_epochs=1)
    saver = CheckpointSaver(
        model, optimizer, model_ema=ema, amp_scaler=scaler, checkpoint_dir=str(folder), recovery_dir=str(folder)
    )
    x = X[:, :, :32, :32].contiguous(memory_format=torch.channels_last)
    for epoch in range(begin, begin + steps):
        scheduler.step(epoch)
        model.train()
        with autocast:
            loss = nn.functional.cross_entropy(model(x), torch.tensor([0, 1]))
        parameters = model_parameters(model, exclude_head=True)
        if scaler is None:
            loss.backward()
            timm.utils.dispatch_clip_grad(parameters, value=0.1, mode="agc")
            optimizer.step()
        else:
            scaler(loss, optimizer, clip_grad=0.1, clip_mode="agc", parameters=parameters)
        optimizer.zero_grad()
        ema.update(model, step=epoch)
        saver.save_checkpoint(epoch, metric=float(epoch))
    return model.eval(), ema.module


@pytest.mark.slow
@pytest.mark.parametrize("amp", [None, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"])
def test_train_resume_and_validate(amp, tmp_path):
    """Three epochs and then three more of a training that was saved: what six in one go come to."""
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    torch.manual_seed(0)
    whole, _ = train(folders[0], 6, amp=amp)
    torch.manual_seed(0)
    train(folders[1], 3, amp=amp)
    torch.manual_seed(7)
    model, ema = train(folders[2], 3, str(folders[1] / "last.pth.tar"), amp)
    torch.testing.assert_close(model.state_dict(), whole.state_dict(), rtol=1e-4, atol=1e-5)
    temperatures = [[float(r.temperature) for r in ours.tempered_routers(net)] for net in (model, ema)]
    assert len(set(temperatures[0])) == 1 and temperatures[1] == pytest.approx(temperatures[0])
    for use_ema, want in ((False, model), (True, ema)):
        again = timm.create_model("resnet10t.odconv2x", num_classes=2)  # as validate.py does
        load_checkpoint(again, str(folders[2] / "last.pth.tar"), use_ema=use_ema)
        again = reparameterize_model(again).to(memory_format=torch.channels_last).eval()
        with torch.no_grad(), torch.autocast("cpu", dtype=amp or torch.bfloat16, enabled=amp is not None):
            torch.testing.assert_close(again(X), want.eval()(X))
            assert 0 <= float(accuracy(again(X), torch.tensor([0, 1]))[0]) <= 100


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
    static = timm.create_model("test_resnet", num_classes=3)
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
    model = cv.convert(timm.create_model("test_resnet", num_classes=3), config, cv.where.name("layer1.*"))
    model = timm.layers.convert_splitbn_model(excite(model), 2).train()
    x = torch.randn(4, 3, 32, 32)
    model(x).sum().backward()
    assert torch.equal(model.eval()(x)[:2], model(torch.cat([x[:2], 5 * x[2:]]))[:2])
