"""Moving digits, and the digits they are made of."""

import struct

import pytest
import torch

from convary.data import generator
from convary.data.digits import DigitsWarning, load_digits
from convary.data.moving import moving_digits, scaled
from convary.errors import DataError


def places(frames):
    """Top left corner of what is lit in each frame."""
    return torch.stack([frame[0].nonzero().min(0).values for frame in frames])


def test_digits_fly_straight_and_bounce():
    square = torch.ones(1, 4, 4)
    frames = moving_digits(square, generator(3), size=24, frames=60, count=1, speed=0.1)
    assert frames.shape == (60, 1, 24, 24) and set(frames.unique().tolist()) == {0.0, 1.0}
    assert (frames.sum((1, 2, 3)) == 16).all(), "never cut by an edge"
    at = places(frames)
    steps = (at[1:] - at[:-1]).float()
    assert steps.norm(dim=1).max() <= 0.1 * 20 + 2**0.5, "one frame's way, rounded to pixels"
    for axis in (0, 1):
        turns = steps[:, axis].sign()
        turns = turns[turns != 0]
        assert (turns[1:] != turns[:-1]).any(), "it turned round at an edge"


def test_the_brighter_of_two_is_seen_and_the_seed_decides():
    digits = torch.tensor([0.25, 1.0]).reshape(2, 1, 1).expand(2, 20, 20)
    frames = moving_digits(digits, generator(0), size=24, frames=4, count=8)
    both = frames[frames > 0]
    assert both.max() == 1.0 and both.min() >= 0.25
    assert torch.equal(frames, moving_digits(digits, generator(0), size=24, frames=4, count=8))
    assert not torch.equal(frames, moving_digits(digits, generator(1), size=24, frames=4, count=8))


def test_a_canvas_too_small_is_refused():
    with pytest.raises(DataError, match="no room"):
        moving_digits(torch.ones(1, 28, 28), generator(0), size=20)
    assert moving_digits(torch.ones(1, 4, 4), generator(0), size=4, frames=2).min() == 1


def test_scikit_learns_digits_look_like_mnists():
    digits = load_digits("scikit-learn")
    assert digits.source == "scikit-learn"
    assert digits.train.shape == (1500, 28, 28) and digits.test.shape == (297, 28, 28)
    assert digits.train.min() == 0 and digits.train.max() == 1
    assert digits.train[:, :4].abs().max() == 0, "a margin of four, as MNIST's"
    assert scaled(digits.test, 14).shape == (297, 14, 14)


def write_mnist(root, count):
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        header = struct.pack(">iiii", 0x803, count, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + bytes([255]) * count * 784)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 0x801, count) + bytes(count))


def test_mnist_is_read_where_it_lies(tmp_path):
    write_mnist(tmp_path, 3)
    digits = load_digits("auto", tmp_path)
    assert digits.source == "mnist" and digits.train.shape == (3, 28, 28) and digits.test.max() == 1


def test_without_mnist_the_others_stand_in_with_a_word(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise RuntimeError("Error downloading train-images")

    monkeypatch.setattr("convary.data.digits.MNIST", unreachable)
    with pytest.warns(DigitsWarning, match="no MNIST under"):
        assert load_digits("auto", tmp_path).source == "scikit-learn"
    with pytest.raises(DataError, match="Error downloading train-images"):
        load_digits("mnist", tmp_path)
