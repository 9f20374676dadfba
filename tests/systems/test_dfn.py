"""The three DFN systems: they train, score and draw; their baselines are what they say; bad input is refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from convary.errors import ConfigError, DataError
from convary.methods.dfn import DFNConv2d
from convary.systems.dfn_moving_mnist import EPSILON, DFNMovingMNISTConfig, cross_entropy
from convary.systems.dfn_steerable import DFNSteerableConfig, response, steered
from convary.systems.dfn_video import DFNVideoConfig
from convary.train.fit import fit, restore
from tests.data.written import write_video

CPU = torch.device("cpu")


class Copy(torch.nn.Module):
    """Predicts the last frame."""

    def forward(self, frames, steps=1):
        return frames[:, -1:].expand(-1, steps, -1, -1, -1)


def moving_mnist(folder, **options):
    options = {"size": 16, "seen": 2, "predicted": 2, "batch_size": 2, "sequences": 4, "steps": 2} | options
    return DFNMovingMNISTConfig(out=folder, digits="scikit-learn", cpu=True, **options)


def video(folder, **options):
    rng = np.random.default_rng(0)
    count = options.pop("frames", 34)
    picture = rng.integers(0, 256, (19, 2 * count + 21, 3), dtype=np.uint8)
    frames = np.stack([picture[:, 2 * t : 2 * t + 21] for t in range(count)])
    path = write_video(folder / "moving.mkv", frames)
    options = {"seen": 2, "height": None, "crop": 12, "hidden": 8, "kernel_size": 5, "steps": 2} | options
    options = {"cut": 1.0} | options  # moving noise has no frame like the one before
    return DFNVideoConfig(out=folder / "run", video=path, batch_size=2, cpu=True, **options)


def test_moving_mnist_trains_scores_and_draws(tmp_path):
    results = fit(moving_mnist(tmp_path))
    assert results["params"] == 637_361
    assert list(results["scores"]) == ["bce", "bce_copy", "mse", "mse_copy"]
    assert (tmp_path / results["pictures"][0]).stat().st_size > 5000
    assert results["run"]["digits"] == "scikit-learn"


def test_what_auto_found_is_part_of_the_run(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("convary.data.digits.MNIST", unreachable)
    config = dataclasses.replace(moving_mnist(tmp_path, steps=1), digits="auto", root=tmp_path / "nowhere")
    with pytest.warns(UserWarning, match="no MNIST"):
        results = fit(config)
    assert results["run"]["digits"] == "scikit-learn"
    with pytest.warns(UserWarning, match="no MNIST"):
        restore(config)
    fit(dataclasses.replace(config, digits="scikit-learn"))


def test_moving_mnist_scores_are_those_of_copying(tmp_path):
    system = moving_mnist(tmp_path).load()
    scores = system.scores(Copy(), CPU)
    assert scores["bce"] == scores["bce_copy"] > 0 and scores["mse"] == scores["mse_copy"] > 0
    tests = system._tests()
    want = (tests[:, 1:2] - tests[:, 2:]).square().mean().item()
    assert scores["mse"] == pytest.approx(want, rel=1e-5)
    assert torch.equal(tests, moving_mnist(tmp_path).load()._tests()), "always the same"


def test_cross_entropy_per_pixel():
    truth = torch.tensor([0.0, 1.0, 0.5])
    guess = torch.tensor([0.25, 0.0, 0.5])
    want = [-np.log(0.75), -np.log(EPSILON), np.log(2)]
    assert cross_entropy(guess, truth).tolist() == pytest.approx(want, rel=1e-4)


def test_video_trains_scores_and_draws_at_an_odd_size(tmp_path):
    config = video(tmp_path)
    results = fit(config)
    assert list(results["scores"])[:2] == ["mse", "mse_copy"]
    assert (config.out / results["pictures"][0]).stat().st_size > 5000
    assert restore(config).channels == 3


def test_gray_video(tmp_path):
    system = video(tmp_path, gray=True).load()
    assert system.model().channels == 1 and system.item(0, torch.Generator()).shape == (3, 1, 12, 12)


def test_no_test_frame_is_trained_on_and_copying_is_scored_as_such(tmp_path):
    system = video(tmp_path).load()
    trained = {start + i for start in system.train for i in range(3)}
    tested = {start + i for start in system.test for i in range(3)}
    assert not trained & tested and trained | tested == set(range(34))
    scores = system.scores(Copy(), CPU)
    assert scores["psnr"] == pytest.approx(scores["psnr_copy"]) and scores["mse"] == pytest.approx(scores["mse_copy"])
    assert scores["better"] == 0


def test_no_window_reaches_across_a_cut(tmp_path):
    rng = np.random.default_rng(0)
    shots = rng.integers(0, 256, (2, 19, 21, 3), dtype=np.uint8)
    path = write_video(tmp_path / "shots.mkv", np.repeat(shots, (13, 21), axis=0))
    options = {"seen": 2, "height": None, "crop": 12, "steps": 2, "cpu": True}
    system = DFNVideoConfig(out=tmp_path, video=path, **options).load()
    windows = system.train + system.test
    assert windows and not {11, 12} & set(windows) and {10, 13} <= set(windows), "frame 13 starts the second shot"
    all_of_them = DFNVideoConfig(out=tmp_path, video=path, cut=1.0, **options).load()
    assert {11, 12} <= set(all_of_them.train + all_of_them.test)
    with pytest.raises(DataError, match=r"no shot of 3 frames .* greater --cut"):
        video(tmp_path, cut=0.04).load()


def test_every_other_frame(tmp_path):
    one, other = video(tmp_path, frames=68).load(), video(tmp_path, frames=68, every=2).load()
    assert torch.equal(other.frames, one.frames[::2]) and len(other.frames) == 34


def test_video_learns_a_steady_motion(tmp_path):
    """Two pixels to the left in every frame: the filters find them, which no copy can."""
    scores = fit(video(tmp_path, steps=120, lr=5e-3, crop=16))["scores"]
    assert scores["psnr"] > scores["psnr_copy"] + 1 and scores["better"] == 1


def test_video_refuses_what_is_too_short_or_broken(tmp_path):
    with pytest.raises(DataError, match=r"moving.mkv gives 20 frames; at least 30 are needed with --seen 2"):
        video(tmp_path, frames=20).load()
    with pytest.raises(DataError, match=r"no video file"):
        DFNVideoConfig(out=tmp_path, video=tmp_path / "none.mp4").load()
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(bytes(range(256)) * 8)
    with pytest.raises(DataError, match=r"broken\.mp4 cannot be decoded"):
        DFNVideoConfig(out=tmp_path, video=broken).load()


def test_steerable_trains_scores_and_draws(tmp_path):
    results = fit(DFNSteerableConfig(out=tmp_path, steps=3, batch_size=2, crops=4, cpu=True))
    assert results["params"] == 18_897
    assert list(results["scores"]) == ["mse", "mse_zero", "cosine"]
    assert (tmp_path / results["pictures"][0]).stat().st_size > 5000


def test_the_response_is_that_of_the_steered_filter():
    angle = torch.tensor([0.3, 4.0]).reshape(2, 1, 1, 1)
    image = torch.randn(2, 1, 20, 20)
    filters = steered(angle)
    each = [torch.nn.functional.conv2d(image[i : i + 1], filters[i : i + 1], padding=4) for i in range(2)]
    torch.testing.assert_close(response(image, angle), torch.cat(each), atol=1e-4, rtol=1e-4)
    slope = torch.arange(20.0).expand(1, 1, 20, 20)
    right = response(slope, torch.zeros(1, 1, 1, 1))[0, 0, 8, 8]
    assert right > 0 and response(slope, torch.full((1, 1, 1, 1), torch.pi / 2))[0, 0, 8, 8].abs() < 1e-4


def test_the_true_filters_score_perfectly(tmp_path):
    class True_(torch.nn.Module):
        def forward(self, angle):
            return steered(angle).reshape(-1, 81)

    system = DFNSteerableConfig(out=tmp_path, crops=8).load()
    scores = system.scores(DFNConv2d(1, 1, 9, padding=4, generator=True_()), CPU)
    assert scores["mse"] < 1e-9 < scores["mse_zero"] and scores["cosine"] == pytest.approx(1)


def test_steerable_takes_a_folder_of_images(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 200, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    system = DFNSteerableConfig(out=tmp_path, data=tmp_path).load()
    assert [tuple(image.shape) for image in (*system.train, *system.test)] == [(40, 150), (40, 50)]
    with pytest.raises(DataError, match=r"a\.png is 40x200; a crop of 64"):
        DFNSteerableConfig(out=tmp_path, data=tmp_path, crop=64).load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in"):
        DFNSteerableConfig(out=tmp_path, data=tmp_path / "empty").load()
    (tmp_path / "b.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"b\.jpg is not a readable image"):
        DFNSteerableConfig(out=tmp_path, data=tmp_path).load()


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (DFNMovingMNISTConfig, {"size": 8}),
        (DFNMovingMNISTConfig, {"speed": 0.0}),
        (DFNMovingMNISTConfig, {"predicted": 0}),
        (DFNVideoConfig, {"seen": 1}),
        (DFNVideoConfig, {"crop": 4}),
        (DFNSteerableConfig, {"crop": 9}),
        (DFNSteerableConfig, {"halve_every": 0}),
    ],
)
def test_impossible_values_are_refused(config, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        config(**options)


def test_the_command_line_gives_the_config_again(tmp_path):
    config = moving_mnist(tmp_path, steps=7)
    assert json.loads(json.dumps(config.to_dict()))["steps"] == 7
    assert "--steps 7" in config.command() and config.command().startswith("convary train dfn-moving-mnist")


@pytest.mark.slow
@pytest.mark.long
def test_a_short_training_beats_a_copy_of_the_last_frame(tmp_path):
    options = {"digits": "scikit-learn", "steps": 120, "halve_every": 40}
    scores = fit(DFNMovingMNISTConfig(out=tmp_path, cpu=True, **options))["scores"]
    assert scores["bce"] < scores["bce_copy"] / 2 and scores["mse"] < 0.75 * scores["mse_copy"]


@pytest.mark.slow
def test_a_short_training_steers(tmp_path):
    scores = fit(DFNSteerableConfig(out=tmp_path, cpu=True, steps=2500, halve_every=500, crops=64))["scores"]
    assert scores["mse"] < scores["mse_zero"] / 2 and scores["cosine"] > 0.25


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.parametrize("config", [DFNMovingMNISTConfig, DFNVideoConfig, DFNSteerableConfig])
def test_the_sample_training_beats_its_baseline(tmp_path, config):
    options = {"digits": "scikit-learn"} if config is DFNMovingMNISTConfig else {}
    scores = fit(config(out=tmp_path, cpu=True, **options))["scores"]
    if config is DFNMovingMNISTConfig:
        assert scores["bce"] < scores["bce_copy"] / 2 and scores["mse"] < scores["mse_copy"] / 2
    elif config is DFNVideoConfig:
        assert scores["mse"] < 0.8 * scores["mse_copy"] and scores["psnr"] > scores["psnr_copy"] + 0.3
    else:
        assert scores["mse"] < scores["mse_zero"] / 10 and scores["cosine"] > 0.85
