# SPDX-License-Identifier: Apache-2.0
"""A comparison from trained weights: what is taken, what every network then computes, and what is refused."""

import dataclasses
import json

import pytest
import torch
import torchvision
from accelerate import Accelerator

from convary.errors import CheckpointError, ConfigError
from convary.models import build, create
from convary.models.pretrained import read, seen_by
from convary.train import CompareConfig, compare, evaluate, load_model, read_checkpoint
from convary.train.arms import checkpoint_path
from convary.train.classification import Classification, Run
from convary.train.classifier import Classifier
from convary.train.networks import told

MOBILE = "torchvision:mobilenet_v2"
EXACT = ("static", "condconv", "odconv:experts=2", "dcd", "se", "cbam", "eca")


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory):
    """A state dict of torchvision's MobileNetV2 for 1000 classes, whose norms are not the identity."""
    torch.manual_seed(0)
    model = create(MOBILE)
    with torch.no_grad():
        model(torch.randn(8, 3, 64, 64))  # running statistics
        model.classifier[1].weight.mul_(30)
    path = tmp_path_factory.mktemp("weights") / "mobilenet.pt"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def tuned(make, imagenet):
    """A config that starts from them, at an image size that tests have time for."""
    usual = {
        "model": MOBILE,
        "where": "paper",
        "weights": str(imagenet),
        "image_size": 32,
        "lr": (),
        "optimizer": "adamw",
    }
    return lambda **options: make(**usual | options)


def started(config, name, seed=0):
    """The network of an arm as its training begins."""
    run, data = Run(config.arms()[name], seed, config.lr[0]), config.load_images()
    system = Classification(config, run, data, Accelerator(cpu=True))
    model = system.model()
    system.begin(model)
    return model.eval(), data


def test_every_network_starts_as_what_static_computes(tuned, imagenet):
    config = tuned(methods=EXACT)
    static, data = started(config, "static")
    x = data.normalise(data.test.batch(torch.arange(6)))
    given = torch.load(imagenet)
    reference = build(MOBILE, 4)
    reference.load_state_dict(
        {name: tensor for name, tensor in given.items() if "classifier" not in name}, strict=False
    )
    reference.classifier = static.classifier
    with torch.no_grad():
        want = static(x)
        assert torch.equal(reference.eval()(x), want) and want.std() > 1e-3
        for name in EXACT[1:]:
            got = started(config, name)[0](x)
            assert torch.allclose(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max())), name


def test_the_classifier_is_the_seeds_and_the_rest_is_taken(tuned, imagenet):
    config, given = tuned(), torch.load(imagenet)
    one, other = (started(config, "static", seed)[0].state_dict() for seed in (0, 1))
    differ = {name for name in one if not torch.equal(one[name], other[name])}
    assert differ == {"classifier.1.weight"}  # its bias starts as zeros
    assert all(torch.equal(one[name], given[name]) for name in one if not name.startswith("classifier"))
    said = told(config, config.load_images())
    assert "312 of 314 tensors" in said and "new for these 4 classes: classifier.1.weight, classifier.1.bias" in said


def test_a_new_classifier_says_nearly_nothing(tmp_path):
    """Those of timm start at a deviation of 0.41 for two classes."""
    name = "timm:tf_efficientnet_lite0"
    torch.save(create(name).state_dict(), tmp_path / "lite.pt")
    fresh, rows = build(name, 2), frozenset({"classifier.weight", "classifier.bias"})
    found = read(name, str(tmp_path / "lite.pt")).fit(fresh, ("a", "b"), rows)
    assert fresh.classifier.weight.std() > 0.3 and found.new == ("classifier.weight", "classifier.bias")
    assert float(found.state["classifier.weight"].std()) == pytest.approx(0.01, rel=1e-4)
    assert not found.state["classifier.bias"].any()


def test_images_are_read_as_the_weights_want_them(tuned):
    usual = tuned(image_size=None).load_images()
    assert usual.shape == (3, 224, 224) and usual.mean == (0.485, 0.456, 0.406)
    lite = seen_by("timm:tf_efficientnet_lite0")
    assert (lite.size, lite.mean, lite.std) == (224, (0.5,) * 3, (0.5,) * 3)
    assert seen_by("torchvision:inception_v3").mean == (0.5,) * 3  # its transform_input says the same
    assert CompareConfig(data="folder:x", weights="pretrained", model=MOBILE).image_size is None


def test_inception_sees_what_torchvisions_sees():
    """Torchvision's network with weights changes its input; ours has no such step, and other numbers instead."""
    x, seen = torch.rand(1, 3, 4, 4), seen_by("torchvision:inception_v3")
    theirs = torchvision.models.inception_v3(weights=None, init_weights=False, transform_input=True)
    imagenet = torchvision.models.get_model_weights("inception_v3").DEFAULT.transforms()
    mean, std = (torch.tensor(values)[:, None, None] for values in (imagenet.mean, imagenet.std))
    ours = (x - seen.mean[0]) / seen.std[0]
    assert torch.allclose(theirs._transform_input((x - mean) / std), ours, atol=1e-6)


def test_defaults_with_weights():
    scratch, tuned = CompareConfig(), CompareConfig(model=MOBILE, weights="pretrained")
    assert (scratch.init, scratch.lr) == ("paper", (0.01,)) and (tuned.init, tuned.lr) == ("upcycle", (0.001,))
    assert "--init" not in tuned.command() and "--lr" not in tuned.command()
    assert "--weights pretrained" in tuned.command() and "--weights" not in scratch.command()
    assert "weights" not in scratch.identity() and CompareConfig.from_dict(tuned.to_dict()) == tuned
    assert CompareConfig(weights="pretrained", lr=0.01).lr == (0.01,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "paper"}, "weights=x.pt wants init=upcycle: add --init upcycle; odconv has init=paper"),
        ({"init": "neutral"}, "odconv has init=neutral"),
        ({"methods": ("odconv:init=paper",)}, "wants init=upcycle.*odconv:init=paper has init=paper"),
        ({"methods": ("static@1.25",)}, "static@1.25 cannot start from .*another width; leave it out"),
        ({"methods": ("odconv", "static@macs:odconv")}, "static@macs:odconv cannot start from"),
        ({"methods": ("we",)}, "we cannot start as what the static network computes; leave it out"),
        ({"start": "runs/a"}, "start=runs/a and weights=x.pt both say"),
        ({"decay": "all"}, "decay=all is for networks that start anew"),
    ],
)
def test_what_cannot_take_the_weights(options, message):
    with pytest.raises(ConfigError, match=message):
        CompareConfig(**{"weights": "x.pt", "methods": ("odconv",)} | options)


def test_weights_that_do_not_fit_are_named_before_training(tuned, imagenet, tmp_path):
    other = torch.load(imagenet)
    other["features.0.0.wieght"] = other.pop("features.0.0.weight")
    torch.save(other, tmp_path / "renamed.pt")
    cases = {
        "renamed.pt": (CheckpointError, "features.0.0.weight is missing; did you mean 'features.0.0.wieght'"),
        "gone.pt": (CheckpointError, "there is no file .*gone.pt; give weights"),
        "cut.pt": (CheckpointError, "cut.pt is truncated"),
    }
    (tmp_path / "cut.pt").write_bytes(imagenet.read_bytes()[:1000])
    for name, (error, message) in cases.items():
        with pytest.raises(error, match=message):
            compare(tuned(weights=str(tmp_path / name)))
    with pytest.raises(ConfigError, match="timm has no weights 'resnet18.mine'"):
        compare(tuned(model="timm:resnet18.mine"))
    with pytest.raises(CheckpointError, match="no file pretraind; did you mean 'pretrained'"):
        compare(tuned(weights="pretraind"))
    with pytest.raises(CheckpointError, match="does not fit ResNet: "):
        compare(tuned(model="torchvision:resnet18"))
    with pytest.raises(ConfigError, match="nobody trained convnet_nano; give a file that you trained yourself"):
        compare(tuned(model="convnet_nano", weights="pretrained"))
    with pytest.raises(ConfigError, match="want images with 3 channels, but those of fashion-mnist-mini have 1"):
        compare(tuned(data="fashion-mnist-mini", image_size=None))
    assert not (tmp_path / "run").exists()


def test_files_without_counted_batches_fit(tuned, imagenet, tmp_path):
    """Files of torch before 0.4.1, such as torchvision's ResNets, have none; others come from several GPUs."""
    old = {f"module.{k}": v for k, v in torch.load(imagenet).items() if not k.endswith("num_batches_tracked")}
    torch.save({"state_dict": old}, tmp_path / "old.pt")
    one, other = (started(tuned(weights=str(path)), "static")[0] for path in (imagenet, tmp_path / "old.pt"))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(one(x), other(x))


def test_pretrained_is_what_lies_in_torch_hubs_cache(tuned, imagenet, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", _no_network)
    with pytest.raises(
        CheckpointError, match="can't be downloaded: no network; get http.*mobilenet_v2-.*.pth elsewhere"
    ):
        compare(tuned(weights="pretrained"))
    name = torchvision.models.get_model_weights("mobilenet_v2").DEFAULT.url.rpartition("/")[2]
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    (tmp_path / "checkpoints" / name).write_bytes(imagenet.read_bytes())
    assert read(MOBILE, "pretrained").digest() == read(MOBILE, str(imagenet)).digest()


def _no_network(*args, **options):
    raise OSError("no network")


@pytest.fixture(scope="module")
def finished(make_for, imagenet, tmp_path_factory):
    """A short comparison from weights."""
    flags = {"model": MOBILE, "where": "paper", "weights": str(imagenet), "lr": (), "optimizer": "adamw", "epochs": 1}
    flags |= {"methods": ("static", "dcd"), "image_size": 32, "limit_train": 8}
    config = make_for(tmp_path_factory.mktemp("tuned") / "run", **flags)
    return config, compare(config)


def test_results_checkpoints_and_other_commands_know_the_weights(finished, imagenet):
    config, results = finished
    assert results["run"]["weights"] == str(imagenet) and results["run"]["init"] == "upcycle"
    assert "312 of 314 tensors from" in results["run"]["start_from"]
    path = checkpoint_path(config.out, "dcd", 0)
    held = read_checkpoint(path)
    assert held["run"]["weights"] == str(imagenet) and tuple(held["mean"]) == (0.485, 0.456, 0.406)
    assert evaluate(path).top1 == results["methods"][1]["top1"]["mean"]
    assert Classifier(path).format.mean == (0.485, 0.456, 0.406)


def test_eval_normalises_as_in_training(make, imagenet, tmp_path):
    """A checkpoint whose mean is not ImageNet's: what compare found is found again."""
    config = make(methods=("static",), epochs=1)
    results = compare(config)
    path = checkpoint_path(config.out, "static", 0)
    content = read_checkpoint(path) | {"mean": [0.1] * 3}
    torch.save(content, tmp_path / "other.pt")
    assert evaluate(path).loss == pytest.approx(results["methods"][0]["seeds"][0]["curve"][-1]["test_loss"], rel=1e-5)
    assert evaluate(tmp_path / "other.pt").loss != evaluate(path).loss


def test_other_weights_of_the_same_name_are_refused(finished, imagenet, tmp_path):
    config, results = finished
    assert compare(config) == results
    content = imagenet.read_bytes()
    changed = torch.load(imagenet)
    changed["features.0.0.weight"] = changed["features.0.0.weight"] * 1.01
    try:
        torch.save(changed, imagenet)
        with pytest.raises(ConfigError, match="begun with other weights to start from"):
            compare(config)
    finally:
        imagenet.write_bytes(content)
    with pytest.raises(ConfigError, match="weights '.*mobilenet.pt' there and not given here"):
        compare(dataclasses.replace(config, weights="random"))


def test_a_comparisons_own_static_network(make, tmp_path):
    """Its classes are known: the same ones keep their classifier, others get a new one; a dynamic one is refused."""
    first = make(methods=("static", "dcd"), epochs=1, out=tmp_path / "first")
    results = compare(first)
    static, dynamic = (str(checkpoint_path(first.out, name, 0)) for name in ("static", "dcd"))
    config = make(methods=("static", "dcd"), weights=static, out=tmp_path / "second", image_size=None)
    assert config.load_images().shape == (3, 16, 16)
    assert "new for" not in told(config, config.load_images())
    model, data = started(config, "dcd")
    with torch.no_grad():
        x = data.normalise(data.test.batch(torch.arange(8)))
        assert torch.allclose(model(x), load_model(static)(x), atol=1e-5)
    renamed = dataclasses.replace(data, classes=("a", "b", "c", "d"))
    assert "new for these 4 classes" in told(config, renamed)
    with pytest.raises(ConfigError, match=r"checkpoint.pt holds dcd; give the static network beside it"):
        compare(make(weights=dynamic, out=tmp_path / "third"))
    with pytest.raises(ConfigError, match="holds convnet_nano; give --model convnet_nano, or weights of resnet20"):
        compare(make(weights=static, model="resnet20", out=tmp_path / "fourth"))
    assert json.loads((first.out / "results.json").read_text()) == results
