"""Files and directories appear whole or not at all, and a place that cannot take them is one sentence."""

import os
from pathlib import Path

import pytest

from stepladder.errors import CheckpointError
from stepladder.files import atomic_directory, atomic_file, atomic_write_text, remove_temporaries


def test_what_fails_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    """The old file stays, and so does the old directory; no temporary is left."""
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    for place in (atomic_file(tmp_path / "file"), atomic_directory(tmp_path / "folder")):
        with pytest.raises(RuntimeError), place as temporary:
            (temporary / "inner" if temporary.is_dir() else temporary).write_text("new")
            raise RuntimeError
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize(("name", "found"), [("folder", "Is a directory: '{}/folder'"), ("file/inner", "File exists: '{}/file'")])
def test_a_place_that_cannot_hold_a_file_is_one_sentence(tmp_path: Path, name: str, found: str) -> None:
    """A directory where the file goes, or a file where its directory goes; nothing is left behind."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    with pytest.raises(CheckpointError) as caught:
        atomic_write_text(tmp_path / name, "new")
    assert str(caught.value) == f"{tmp_path / name}: could not be written: {found.format(tmp_path)} -- choose another place"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_place_that_cannot_hold_a_directory_is_one_sentence(tmp_path: Path) -> None:
    """A file where the directory goes is left as it is."""
    (tmp_path / "file").write_text("old")
    with (
        pytest.raises(CheckpointError, match=r"could not be written: Not a directory: .* -- choose another place"),
        atomic_directory(tmp_path / "file"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_and_directories_take_the_umask(tmp_path):
    """A library that writes for its user alone does not decide who may read the result."""

    def write(path):
        path.touch(mode=0o600)
        path.chmod(0o600)

    before = os.umask(0o022)
    try:
        with atomic_directory(tmp_path / "model") as temporary:
            (temporary / "below").mkdir(mode=0o700)
            write(temporary / "below" / "model.safetensors")
        with atomic_file(tmp_path / "rows.jsonl") as temporary:
            write(temporary)
    finally:
        os.umask(before)
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"model": 0o755, "model/below": 0o755, "model/below/model.safetensors": 0o644, "rows.jsonl": 0o644}


def test_temporaries_of_killed_processes_are_removed(tmp_path):
    """Files and directories alike, at any depth; everything else stays."""
    (tmp_path / "rounds" / ".policy.123.tmp" / "below").mkdir(parents=True)
    (tmp_path / "rounds" / ".shard-0000.parquet.123.tmp").write_text("half")
    (tmp_path / "rounds" / "shard-0000.parquet").write_text("whole")
    remove_temporaries(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["rounds", "shard-0000.parquet"]
