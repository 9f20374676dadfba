"""Video files: what they hold, and what is said of those that cannot be read."""

import av
import numpy as np
import pytest
import torch

from convary.data.video import read_video, sample_clip
from convary.errors import DataError
from tests.data.written import write_video


def test_frames_of_odd_size_come_back(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 33, 47, 3), dtype=np.uint8)
    path = write_video(tmp_path / "odd.mkv", frames)
    assert torch.equal(read_video(path), torch.from_numpy(frames).permute(0, 3, 1, 2))
    gray = read_video(path, gray=True, limit=2)
    assert gray.shape == (2, 1, 33, 47) and gray.dtype == torch.uint8
    weights = torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)
    luma = 16 + 219 / 255 * (torch.from_numpy(frames[:2]).permute(0, 3, 1, 2) * weights).sum(1, keepdim=True)
    assert min((gray - luma).abs().max(), (gray - (luma - 16) * 255 / 219).abs().max()) < 4


def test_the_bundled_clips_are_whole():
    assert read_video(sample_clip("carphone_pristine"), limit=3).shape == (3, 3, 144, 176)
    assert read_video(sample_clip()).shape == (250, 3, 272, 640)
    with pytest.raises(DataError, match=r"no clip 'cats'; choose from bikes"):
        sample_clip("cats")


def test_a_bad_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no video file .*none\.mp4"):
        read_video(tmp_path / "none.mp4")
    text = tmp_path / "text.mp4"
    text.write_text("not a video, not a video")
    with pytest.raises(DataError, match=r"text\.mp4 cannot be decoded at all"):
        read_video(text)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(sample_clip("carphone_pristine").read_bytes()[:3000])
    with pytest.raises(DataError, match=r"cut\.mp4"):
        read_video(cut)


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="no video stream"):
        read_video(path)
