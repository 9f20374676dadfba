# SPDX-License-Identifier: Apache-2.0
"""Training on a set of Hugging Face ``datasets`` is training on the folder of the same images, to the last bit."""

import pytest

from convary.train import compare, evaluate
from convary.train.arms import checkpoint_path
from convary.train.classifier import Classifier
from tests.data.photos import write_photos
from tests.data.tables import save
from tests.train.test_scale import StopAt, assert_same, ends


def test_it_trains_as_on_the_folder_resumes_with_workers_and_is_known_to_eval_and_predict(make_for, tmp_path):
    photos = write_photos(tmp_path / "photos", 3, 8, 4)
    table = save(photos, tmp_path / "table", train="train", validation="val")
    options = {"model": "convnet_nano", "batch_size": 4, "crops": True, "methods": ("dyconv",), "where": "all & ~first"}
    whole = ends(make_for(tmp_path / "whole", data=f"folder:{photos}", **options))
    config = make_for(tmp_path / "cut", data=f"hf:{table}", workers=2, **options)
    with pytest.raises(KeyboardInterrupt):
        compare(config, StopAt(5))
    found = ends(make_for(tmp_path / "cut", data=f"hf:{table}", workers=1, **options))
    assert_same(whole, found)
    path = checkpoint_path(config.out, "dyconv", 0)
    assert evaluate(path, workers=1).top1 == found[0][-1]["test_top1"]
    assert set(Classifier(path)(photos / "val" / "n0001" / "0000.jpg")) == {"n0000", "n0001", "n0002"}
