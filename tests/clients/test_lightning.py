# SPDX-License-Identifier: Apache-2.0
"""``lightning.Trainer`` with the package's callback: fit, checkpoint, resume, recipe, and what a checkpoint lacks."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import convary as cv
from tests.nets import Net

lightning = pytest.importorskip("lightning")
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

ours = cv.integrations.lightning
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:lightning.*")]
X = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(5))
EPOCHS, BATCHES = 4, 3


class Classifier(lightning.LightningModule):
    """Builds the static network, as one's own class does."""

    def __init__(self, width: int = 5):
        super().__init__()
        self.save_hyperparameters()
        self.model = Net(num_classes=width)

    def training_step(self, batch, index):
        x, y = batch
        return nn.functional.cross_entropy(self.model(x), y)

    def configure_optimizers(self):
        return torch.optim.AdamW(cv.param_groups(self, 0.05), lr=1e-2)


class ConfiguredLate(Classifier):
    """Builds its network when the trainer asks for it, and forgets what was there."""

    def configure_model(self):
        self.model = Net()


def dynamic(config, seed=0, kind=Classifier):
    torch.manual_seed(seed)
    return cv.convert(kind(), config, cv.where.all() & ~cv.where.first())


def loader(size=4):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4 * BATCHES, 3, 24, 24, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(4 * BATCHES) % 5), batch_size=size)


def trainer(folder, callback, epochs=EPOCHS, **options):
    keep = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[callback, keep], default_root_dir=folder, **quiet, **options
    )


def temperatures(module):
    return {float(m.temperature) for m in module.modules() if isinstance(m, cv.nn.Router) and m.temperature is not None}


METHODS = [cv.ODConv(experts=2), cv.DyConv(experts=2), cv.KernelWarehouse(), cv.DCD(), cv.CondConv(router="block")]


@pytest.mark.filterwarnings("ignore::convary.errors.TemperatureWarning")
@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.name)
def test_resumed_is_the_uninterrupted_training(config, tmp_path):
    """Stopped after two of four epochs, resumed in a module that began elsewhere: the same weights and temperature."""
    whole, annealed = dynamic(config), ours.TemperatureCallback(steps=9)
    trainer(tmp_path / "whole", annealed).fit(whole, loader())
    path = tmp_path / "whole" / "epoch=1.ckpt"
    content = torch.load(path, weights_only=True)
    assert content["global_step"] == 2 * BATCHES and content["convary"] == cv.recipe(whole)

    again, resumed, seen = dynamic(config, seed=7), ours.TemperatureCallback(steps=9), []
    again.on_train_batch_start = lambda batch, index: seen.append(temperatures(again))
    trainer(tmp_path / "again", resumed).fit(again, loader(), ckpt_path=path)
    torch.testing.assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert len(seen) == 2 * BATCHES
    if annealed.annealing is not None:
        first, last = bounds(whole)
        assert list(seen[0]) == [pytest.approx(first + (last - first) * 6 / 9)] and temperatures(again) == {last}
        assert resumed.annealing.state_dict() == annealed.annealing.state_dict()

    loaded = ours.load_from_checkpoint(Classifier, path)
    assert type(loaded) is Classifier and cv.recipe(loaded) == cv.recipe(whole)
    torch.testing.assert_close(dict(loaded.state_dict()), content["state_dict"], rtol=0, atol=0)


def bounds(module):
    router = next(m for m in module.modules() if isinstance(m, cv.nn.Router) and m.temperature is not None)
    return router.first_temperature, router.final_temperature


def test_accumulated_gradients_are_one_step_of_annealing(tmp_path):
    module, callback = dynamic(cv.DyConv(experts=2)), ours.TemperatureCallback(fraction=0.5)
    trainer(tmp_path, callback, accumulate_grad_batches=3).fit(module, loader())
    assert (callback.annealing.steps, callback.annealing.last_step) == (2, 4) and temperatures(module) == {1.0}


def test_arguments_of_the_module_come_from_the_checkpoint(tmp_path):
    torch.manual_seed(0)
    module = cv.convert(Classifier(width=3), cv.ODConv(experts=2), cv.where.all())
    short = trainer(tmp_path, ours.TemperatureCallback(), epochs=1)
    short.fit(module, DataLoader(TensorDataset(X, torch.tensor([0, 1, 2])), batch_size=3))
    loaded = ours.load_from_checkpoint(Classifier, tmp_path / "epoch=0.ckpt")
    assert loaded.hparams.width == 3
    cv.set_temperature(loaded, 1.0), cv.set_temperature(module, 1.0)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval().model(X), module.eval().model(X))


def test_a_checkpoint_without_recipe_says_which_call_is_missing(tmp_path):
    module = dynamic(cv.DyConv(experts=2))
    trainer(tmp_path, lightning.Callback(), epochs=1).fit(module, loader())
    with pytest.raises(cv.CheckpointError, match=r"no recipe.*TemperatureCallback"):
        ours.load_from_checkpoint(Classifier, tmp_path / "epoch=0.ckpt")


def test_a_converted_checkpoint_never_resumes_a_static_module(tmp_path):
    trainer(tmp_path, ours.TemperatureCallback(), epochs=1).fit(dynamic(cv.ODConv(experts=2)), loader())
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match=r"(?s)router\.temperature.*size mismatch"):
        trainer(tmp_path / "static", ours.TemperatureCallback()).fit(
            Classifier(), loader(), ckpt_path=tmp_path / "epoch=0.ckpt"
        )


def test_a_module_that_builds_its_network_again_warns(tmp_path):
    module = dynamic(cv.DyConv(experts=2), kind=ConfiguredLate)
    with pytest.warns(cv.ConversionWarning, match=r"configure_model of ConfiguredLate.*convary\.convert at its end"):
        trainer(tmp_path, ours.TemperatureCallback(), epochs=1).fit(module, loader())


@pytest.mark.parametrize("fraction", [-0.1, 1.5])
def test_fraction_is_a_part(fraction):
    with pytest.raises(cv.ConfigError, match="from 0 to 1"):
        ours.TemperatureCallback(fraction=fraction)
