"""RGB-D folders in the layouts of the public sets, depth of every kind, and what is wrong with them."""

import numpy as np
import pytest
import torch
from PIL import Image

from convary.data.rgbd import fill_holes, load_rgbd, read_depth, salient_scene, stretched
from convary.errors import DataError
from tests.data.written import gradient, write_rgbd


@pytest.mark.parametrize(
    "folders",
    [
        ("RGB", "depth", "GT"),
        ("Image", "Depth", "Mask"),
        ("RGB_left", "depth", "GT"),
        ("train_images", "train_depth", "train_masks"),
    ],
)
def test_the_layouts_of_the_public_sets(tmp_path, folders):
    photos = load_rgbd(write_rgbd(tmp_path, folders=folders))
    assert len(photos) == 3
    assert [photos[i].name for i in range(3)] == ["a", "b", "c.d"]
    photo = photos[1]
    assert photo.image.shape == (3, 12, 20) and photo.image.dtype == torch.uint8
    assert photo.depth.shape == photo.mask.shape == (1, 12, 20)
    assert photo.mask.sum() == 60
    torch.testing.assert_close(photo.depth[0], torch.from_numpy(gradient((20, 12))) / 255)


def test_a_list_takes_some_of_them(tmp_path):
    write_rgbd(tmp_path)
    names = tmp_path / "train.lst"
    names.write_text("somewhere/NJUD/c.d\n\na.jpg 1\n")
    photos = load_rgbd(tmp_path, names)
    assert [photos[i].name for i in range(len(photos))] == ["c.d", "a"]
    names.write_text("a\nzebra\n")
    with pytest.raises(DataError, match="zebra has no image; zebra has no depth; zebra has no mask"):
        load_rgbd(tmp_path, names)
    with pytest.raises(DataError, match=r"nowhere.lst is not a readable list"):
        load_rgbd(tmp_path, tmp_path / "nowhere.lst")


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        load_rgbd(tmp_path / "nowhere")
    write_rgbd(tmp_path)
    (tmp_path / "depth" / "b.png").unlink()
    (tmp_path / "GT" / "a.png").unlink()
    with pytest.raises(DataError, match="a has no mask; b has no depth; add the missing"):
        load_rgbd(tmp_path)
    (tmp_path / "GT").rename(tmp_path / "truth")
    with pytest.raises(DataError, match=r"no folder called gt, mask.*it has \['depth', 'rgb', 'truth'\]"):
        load_rgbd(tmp_path)


def test_an_empty_folder_says_so(tmp_path):
    write_rgbd(tmp_path, names=())
    with pytest.raises(DataError, match="holds no images"):
        load_rgbd(tmp_path)


@pytest.mark.parametrize("folder", ["RGB", "depth", "GT"])
def test_a_broken_file_is_named(tmp_path, folder):
    write_rgbd(tmp_path)
    path = next((tmp_path / folder).glob("b.*"))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="not a readable") as caught:
        load_rgbd(tmp_path)[1]
    assert str(path) in str(caught.value)


def test_depth_of_another_size_is_brought_to_the_image(tmp_path):
    photo = load_rgbd(write_rgbd(tmp_path, depth_size=(40, 24)))[0]
    assert photo.depth.shape == (1, 12, 20)
    assert 0 <= photo.depth.min() < 0.05 and 0.95 < photo.depth.max() <= 1


def test_a_mask_without_objects_is_empty(tmp_path):
    assert not load_rgbd(write_rgbd(tmp_path, mask=0))[0].mask.any()
    faint = load_rgbd(write_rgbd(tmp_path, mask=1))[0].mask  # 0 and 1 instead of 0 and 255
    assert faint.sum() == 60


def test_16_bit_depth_is_stretched_and_its_holes_are_filled(tmp_path):
    values = gradient((20, 12), np.uint16, 60_000) + 500
    values[3, 4] = 0
    Image.fromarray(values).save(tmp_path / "deep.png")
    depth = read_depth(tmp_path / "deep.png")
    assert depth.shape == (1, 12, 20) and depth.min() == 0 and depth.max() == 1
    want = (values[3, 5] - 500) / 60_000
    assert abs(depth[0, 3, 5] - want) < 0.01
    assert abs(depth[0, 3, 4] - want) < 0.1, "the hole looks like its surroundings"


@pytest.mark.parametrize("ending", ["tiff", "npy"])
def test_float_depth_with_nan_and_infinity(tmp_path, ending):
    values = gradient((20, 12), np.float32, 3.0)
    values[:5, :7], values[11, 19] = np.nan, np.inf
    path = tmp_path / f"metres.{ending}"
    np.save(path, values[..., None]) if ending == "npy" else Image.fromarray(values).save(path)
    depth = read_depth(path)
    assert depth.shape == (1, 12, 20) and depth.isfinite().all()
    assert depth.min() == 0 and depth.max() == 1
    values[:] = np.nan
    np.save(path, values) if ending == "npy" else Image.fromarray(values).save(path)
    with pytest.raises(DataError, match=rf"metres.{ending} has no depth at all"):
        read_depth(path)


def test_depth_must_be_a_plane(tmp_path):
    np.save(tmp_path / "three.npy", np.zeros((12, 20, 3)))
    with pytest.raises(DataError, match=r"three.npy is \(12, 20, 3\); depth must be one plane"):
        read_depth(tmp_path / "three.npy")


def test_filled_holes_leave_the_known_alone_and_stay_between_them():
    rng = torch.Generator().manual_seed(0)
    depth = torch.rand(37, 50, generator=rng) + 1
    depth[torch.rand(37, 50, generator=rng) < 0.9] = torch.nan
    filled, known = fill_holes(depth), depth.isfinite()
    assert torch.equal(filled[known], depth[known])
    assert depth[known].min() <= filled.min() and filled.max() <= depth[known].max() + 1e-6
    one = torch.full((5, 9), torch.nan)
    one[2, 3] = 7.0
    torch.testing.assert_close(fill_holes(one), torch.full((5, 9), 7.0))


def test_strays_do_not_flatten_the_depth():
    depth = torch.linspace(1, 2, 1000).reshape(20, 50)
    depth[0, :5] = 500.0
    found = stretched(depth)
    assert found.min() == 0 and found.max() == 1
    assert found[10, 25] == pytest.approx(0.5, abs=0.03)
    assert torch.equal(stretched(torch.full((4, 5), 7.0)), torch.zeros(4, 5))


def test_the_scene_is_ready():
    photo = salient_scene()
    assert photo.image.shape == (3, 480, 640) and photo.depth.shape == photo.mask.shape == (1, 480, 640)
    assert photo.depth.min() == 0 and photo.depth.max() == 1
    assert photo.depth.std() > 0.2
    assert 0.05 < photo.mask.float().mean() < 0.6
