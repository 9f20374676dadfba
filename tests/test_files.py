# SPDX-License-Identifier: Apache-2.0
"""Files: whole or not at all."""

import contextlib
import os
from pathlib import Path

import pytest

from convary.errors import ConvaryError
from convary.files import read_json, staged, write_json, write_whole


def test_write_whole_replaces(tmp_path):
    path = tmp_path / "new" / "file"
    for content in (b"one", b"two"):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_no_space_left_keeps_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    (tmp_path / "file.part").symlink_to("/dev/full")
    with pytest.raises(ConvaryError, match="No space left on device; free some space") as caught:
        write_whole(path, b"after")
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("name", "kind"), [("", "a folder"), ("folder", "a folder"), ("pipe", "no ordinary file")])
def test_what_is_no_file_stays(tmp_path, name, kind, monkeypatch):
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs named pipes")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConvaryError, match=f"it is {kind}; name a file"):
        write_whole(Path(name), b"content")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "pipe"]
    assert (tmp_path / "pipe").is_fifo()


def test_several_files_get_there_together(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"before")
    with contextlib.suppress(ValueError), staged(path) as part:
        part.write_bytes(b"half")
        raise ValueError
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("model", b"before")]
    with staged(path) as part:
        part.write_bytes(b"one")
        part.with_name("model.data").write_bytes(b"two")
    found = sorted((file.name, file.read_bytes()) for file in tmp_path.iterdir())
    assert found == [("model", b"one"), ("model.data", b"two")]


def test_json_comes_back(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"b": [1.5, None]})
    assert read_json(tmp_path / "new" / "a.json") == {"b": [1.5, None]}
    (tmp_path / "half.json").write_text('{"b": ')
    with pytest.raises(ConvaryError, match="half.json is not readable"):
        read_json(tmp_path / "half.json")
