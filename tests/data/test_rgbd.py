"""RGB-D folders in the layouts of the public sets, depth of every kind, and what is wrong with them."""

import numpy as np
import pytest
import torch
from PIL import Image

from convary.data.rgbd import fill_holes, load_rgbd, read_depth, salient_scene
from convary.errors import DataError


def write(root, names=("a", "b", "c.d"), folders=("RGB", "depth", "GT"), size=(20, 12), depth_size=None, mask=255):
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for shade, name in enumerate(names):
        Image.new("RGB", size, (40 * shade, 9, 7)).save(root / folders[0] / f"{name}.jpg")
        Image.fromarray(gradient(depth_size or size)).save(root / folders[1] / f"{name}.png")
        picture = Image.new("L", size)
        picture.paste(mask, (5, 2, 15, 8))
        picture.save(root / folders[2] / f"{name}.png")
    return root


def gradient(size, dtype=np.uint8, top=255):
    return np.linspace(0, top, size[0] * size[1]).reshape(size[1], size[0]).astype(dtype)


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
    photos = load_rgbd(write(tmp_path, folders=folders))
    assert len(photos) == 3
    assert [photos[i].name for i in range(3)] == ["a", "b", "c.d"]
    photo = photos[1]
    assert photo.image.shape == (3, 12, 20) and photo.image.dtype == torch.uint8
    assert photo.depth.shape == photo.mask.shape == (1, 12, 20)
    assert photo.mask.sum() == 60
    torch.testing.assert_close(photo.depth[0], torch.from_numpy(gradient((20, 12))) / 255)


def test_a_list_takes_some_of_them(tmp_path):
    write(tmp_path)
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
    write(tmp_path)
    (tmp_path / "depth" / "b.png").unlink()
    (tmp_path / "GT" / "a.png").unlink()
    with pytest.raises(DataError, match="a has no mask; b has no depth; add the missing"):
        load_rgbd(tmp_path)
    (tmp_path / "GT").rename(tmp_path / "truth")
    with pytest.raises(DataError, match=r"no folder called gt, mask.*it has \['depth', 'rgb', 'truth'\]"):
        load_rgbd(tmp_path)


def test_an_empty_folder_says_so(tmp_path):
    write(tmp_path, names=())
    with pytest.raises(DataError, match="holds no images"):
        load_rgbd(tmp_path)


@pytest.mark.parametrize("folder", ["RGB", "depth", "GT"])
def test_a_broken_file_is_named(tmp_path, folder):
    write(tmp_path)
    path = next((tmp_path / folder).glob("b.*"))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="not a readable") as caught:
        load_rgbd(tmp_path)[1]
    assert str(path) in str(caught.value)


def test_depth_of_another_size_is_brought_to_the_image(tmp_path):
    photo = load_rgbd(write(tmp_path, depth_size=(40, 24)))[0]
    assert photo.depth.shape == (1, 12, 20)
    assert 0 <= photo.depth.min() < 0.05 and 0.95 < photo.depth.max() <= 1


def test_a_mask_without_objects_is_empty(tmp_path):
    assert not load_rgbd(write(tmp_path, mask=0))[0].mask.any()
    faint = load_rgbd(write(tmp_path, mask=1))[0].mask  # 0 and 1 instead of 0 and 255
    assert faint.sum() == 60


def test_16_bit_depth_is_stretched_and_its_holes_are_filled(tmp_path):
    values = gradient((20, 12), np.uint16, 60_000) + 500
    values[3, 4] = 0
    Image.fromarray(values).save(tmp_path / "deep.png")
    depth = read_depth(tmp_path / "deep.png")
    assert depth.shape == (1, 12, 20) and depth.min() == 0 and depth.max() == 1
    want = (values[3, 5] - 500) / 60_000
    assert abs(depth[0, 3, 5] - want) < 1e-4
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


def test_the_scene_is_ready():
    photo = salient_scene()
    assert photo.image.shape == (3, 480, 640) and photo.depth.shape == photo.mask.shape == (1, 480, 640)
    assert photo.depth.min() == 0 and photo.depth.max() == 1
    assert 0.05 < photo.mask.float().mean() < 0.6
