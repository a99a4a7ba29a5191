"""Files and directories appear whole or not at all, and a place that cannot take them is one sentence."""

from pathlib import Path

import pytest

from stepladder.errors import CheckpointError
from stepladder.files import atomic_directory, atomic_file, atomic_write_text


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
