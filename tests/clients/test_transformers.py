# SPDX-License-Identifier: Apache-2.0
"""Hugging Face's own ``Trainer``, on random images: train, save, resume, load; what is left out of decay; bad input."""

import json

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

import convary as cv

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from transformers import (
    AutoModelForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
)

ours = cv.integrations.transformers
pytestmark = pytest.mark.slow
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
STEPS, SAVED = 8, 4


class Images(Dataset):
    """Sixteen random images of three classes, the same on every call."""

    def __len__(self):
        return 16

    def __getitem__(self, i):
        image = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(i))
        return {"pixel_values": image + i % 3, "labels": torch.tensor(i % 3)}


def static(kind="resnet", seed=0):
    torch.manual_seed(seed)
    if kind == "resnet":
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]}
        return ResNetForImageClassification(ResNetConfig(**sizes, layer_type="basic", num_labels=3))
    return MobileNetV2ForImageClassification(
        MobileNetV2Config(depth_multiplier=0.1, min_depth=8, image_size=32, num_labels=3, tf_padding=False)
    )


def dynamic(config, kind="resnet", seed=0):
    return cv.convert(static(kind, seed), config, cv.where.all() & ~cv.where.first())


def trainer(folder, model, callbacks=(), **options):
    usual = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "save_steps": SAVED,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "seed": 1,
        "use_cpu": True,
        "report_to": [],
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(output_dir=str(folder), **(usual | options))
    return Trainer(model, arguments, train_dataset=Images(), callbacks=list(callbacks))


def converted(model):
    return [m for m in model.modules() if isinstance(m, cv.nn.Placed) and m.converted is not None]


def temperatures(model):
    return [float(m.temperature) for m in model.modules() if isinstance(m, cv.nn.Router) and m.temperature is not None]


METHODS = [cv.ODConv(experts=2), cv.DyConv(experts=2), cv.KernelWarehouse(), cv.DCD(), cv.CondConv(router="block")]


@pytest.mark.filterwarnings("ignore::convary.errors.TemperatureWarning")  # of what was saved half-way
@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.name)
@pytest.mark.parametrize("kind", ["resnet", "mobilenet"])
def test_resumed_is_the_uninterrupted_training(config, kind, tmp_path):
    """Interrupted after four of eight steps, resumed in a model that began elsewhere: the same weights, bit for bit."""
    make = lambda: ours.TemperatureCallback(steps=6)  # noqa: E731
    whole, annealed = dynamic(config, kind), make()
    trainer(tmp_path / "whole", whole, [annealed]).train()
    checkpoint = tmp_path / "whole" / f"checkpoint-{SAVED}"
    again, resumed = dynamic(config, kind, seed=7), make()
    trainer(tmp_path / "again", again, [resumed]).train(resume_from_checkpoint=str(checkpoint))
    torch.testing.assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)
    begun = type(whole).from_pretrained(checkpoint)
    assert not torch.equal(begun(X).logits, whole(X).logits)  # the last four steps did something
    if temperatures(whole):
        assert resumed.annealing.state_dict() == annealed.annealing.state_dict()
        last = whole.get_submodule(name_of_router(whole)).final_temperature
        assert set(temperatures(whole)) == {last} and last not in temperatures(begun)

    whole.save_pretrained(tmp_path / "saved")
    for loader in (type(whole), AutoModelForImageClassification):
        loaded = loader.from_pretrained(tmp_path / "saved")
        assert type(loaded) is type(whole) and len(converted(loaded)) == len(converted(whole)) > 3
        with torch.no_grad():
            torch.testing.assert_close(loaded.eval()(X).logits, whole.eval()(X).logits)


def name_of_router(model):
    return next(n for n, m in model.named_modules() if isinstance(m, cv.nn.Router) and m.temperature is not None)


def test_accumulated_gradients_are_one_step_of_annealing(tmp_path):
    model, callback = dynamic(cv.DyConv(experts=2)), ours.TemperatureCallback(fraction=0.5)
    options = {"max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer(tmp_path, model, [callback], **options).train()
    assert (callback.annealing.steps, callback.annealing.last_step) == (2, 4) and set(temperatures(model)) == {1.0}


def test_routers_are_out_of_decay(tmp_path):
    model = dynamic(cv.ODConv(experts=2))
    running = trainer(tmp_path, model, max_steps=1)
    running.train()
    names = {p: name for name, p in model.named_parameters()}
    decay = {names[p]: group["weight_decay"] for group in running.optimizer.param_groups for p in group["params"]}
    assert decay.keys() == set(names.values())
    routers = {name for name in decay if ".router." in name}
    assert routers and all(decay[name] == 0 for name in routers)
    kernels = {name for name in decay if name not in routers and model.get_parameter(name).ndim > 1}
    assert kernels and all(decay[name] == 0.1 for name in kernels)


def test_a_checkpoint_without_recipe_says_which_call_is_missing(tmp_path):
    model = dynamic(cv.ODConv(experts=2))
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    recipe = config.pop("convary")
    path.write_text(json.dumps(config))
    with pytest.raises(cv.CheckpointError, match=r"no recipe.*config\.convary = convary\.recipe\(model\)"):
        type(model).from_pretrained(tmp_path)
    path.write_text(json.dumps(config | {"convary": recipe}))
    assert cv.recipe(type(model).from_pretrained(tmp_path)) == recipe


def test_other_misfits_are_those_of_transformers(tmp_path):
    static().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "resnet.embedder.embedder.convolution.weight"
    save_file(tensors | {name: torch.zeros(9, 3, 7, 7)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        ResNetForImageClassification.from_pretrained(tmp_path)


def test_resuming_in_a_static_model_says_which_call_is_missing(tmp_path):
    trainer(tmp_path, dynamic(cv.ODConv(experts=2)), max_steps=1, save_steps=1).train()
    running = trainer(tmp_path, static(), max_steps=2)
    with pytest.raises(cv.CheckpointError, match=r"converted model.*static.*convary\.convert"):
        running.train(resume_from_checkpoint=True)


def test_a_folded_model_is_saved_without_recipe(tmp_path):
    model = dynamic(cv.DyConv(experts=2)).eval()
    model.save_pretrained(tmp_path / "dynamic")
    assert "convary" in json.loads((tmp_path / "dynamic" / "config.json").read_text())
    folded = cv.fold(model, [X]).model
    folded.save_pretrained(tmp_path / "folded")
    assert "convary" not in json.loads((tmp_path / "folded" / "config.json").read_text())
    again = ResNetForImageClassification.from_pretrained(tmp_path / "folded").eval()
    assert not any(isinstance(m, cv.nn.DynamicLayer) for m in again.modules())
    with torch.no_grad():
        torch.testing.assert_close(again(X).logits, folded(X).logits)


BASIC = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}
TWINS = {
    "resnet18": lambda: ResNetForImageClassification(ResNetConfig(**BASIC)),
    "resnet50": lambda: ResNetForImageClassification(ResNetConfig()),
    "convnext_tiny": lambda: ConvNextForImageClassification(ConvNextConfig()),
}


@pytest.mark.parametrize("name", TWINS)
def test_the_papers_take_the_same_layers_as_of_torchvisions_network(name):
    theirs, own = TWINS[name](), getattr(torchvision.models, name)()
    for config in cv.METHODS:
        if name == "convnext_tiny" and config is cv.FDConv:  # it takes no layer there, nor in torchvision's
            continue
        changed = [
            sorted(row.before for row in cv.plan(net, config()).rows if row.after and "Linear" not in row.before)
            for net in (theirs, own)
        ]
        if name == "resnet50" and config is cv.KernelWarehouse:  # its "layer after the stem" is transformers' shortcut
            assert len(changed[0]) == len(changed[1]) + 1
        else:
            assert changed[0] == changed[1], config.title
