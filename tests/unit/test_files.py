"""Files and directories appear whole or not at all, and a place that cannot take them is one sentence."""

import errno
import json
import os
import pickle
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from jinja2.exceptions import SecurityError
from safetensors import SafetensorError

from stepladder.errors import CheckpointError, ConfigError, DataFormatError
from stepladder.files import atomic_directory, atomic_file, atomic_write_text, read_json_object, reading, remove_temporaries


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


def test_threads_that_write_at_once_leave_the_umask_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the umask sets it for a moment: no other thread may take that moment for the truth, or leave it in place."""
    before, set_mask = os.umask(0o022), os.umask

    def slow(mask: int) -> int:
        found = set_mask(mask)
        time.sleep(0.002)
        return found

    monkeypatch.setattr(os, "umask", slow)
    try:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda number: atomic_write_text(tmp_path / str(number), ""), range(16)))
    finally:
        after = set_mask(before)
    assert after == 0o022
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_temporaries_of_killed_processes_are_removed(tmp_path):
    """Files and directories alike, at any depth; everything else stays."""
    (tmp_path / "rounds" / ".policy.123.tmp" / "below").mkdir(parents=True)
    (tmp_path / "rounds" / ".shard-0000.parquet.123.tmp").write_text("half")
    (tmp_path / "rounds" / "shard-0000.parquet").write_text("whole")
    remove_temporaries(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["rounds", "shard-0000.parquet"]


def _fault(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), "there is no such file"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "you may not read it -- change its rights, or ask its owner"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), "it is a directory"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x"), "a part of its path is a file"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (OSError("Couldn't deserialize thrift: no\nmore"), "Couldn't deserialize thrift: no -- make it again"),
        (UnicodeDecodeError("utf-8", b"ab\xff", 2, 3, "invalid start byte"), "it is not UTF-8: byte 0xff at position 2"),
        (json.JSONDecodeError("Expecting value", " ", 0), "it is empty"),
        (json.JSONDecodeError("Expecting value", "x", 0), "it is not JSON: Expecting value: line 1 column 1 (char 0)"),
        (RecursionError("maximum recursion depth exceeded"), "it is nested too deeply"),
        (MemoryError(), "it asks for more memory than there is"),
        (KeyError("rows"), "'rows' is missing"),
        (TypeError("unhashable type: 'list'"), "TypeError: unhashable type: 'list'"),
        (AttributeError("'list' object has no attribute 'get'"), "AttributeError: 'list' object has no attribute 'get'"),
        (IndexError(), "IndexError"),
        (pickle.UnpicklingError("Weights only load failed"), "is never loaded"),
        (zipfile.BadZipFile("Bad magic number"), "Bad magic number"),
        (pa.ArrowNotImplementedError("Integers with more than 64 bits"), "Integers with more than 64 bits"),
        (SafetensorError("Error while deserializing header: header too small"), "header too small"),
        (SecurityError("access to attribute '__class__' is unsafe"), "access to attribute '__class__' is unsafe"),
        (Exception("invalid type: sequence, expected struct Tokenizer"), "expected struct Tokenizer"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_reading_says_place_cause_and_remedy(error: BaseException, said: str) -> None:
    """Whatever a file can cause is one sentence with the file, what it must be, what is wrong, and what to do."""
    with pytest.raises(DataFormatError) as caught, reading("there/x", what="a thing", remedy="make it again", raises=DataFormatError):
        _fault(error)
    message = str(caught.value)
    assert message.startswith("there/x: must be a thing: ")
    assert said in message
    assert "\n" not in message
    assert message.count(" -- ") == 1


@pytest.mark.parametrize("error", [ConfigError("ours"), KeyboardInterrupt(), SystemExit(3), NameError("x")], ids=repr)
def test_reading_lets_pass_what_no_file_causes(error: BaseException) -> None:
    """Our own errors keep their sentences, stops stay stops, and a mistake of ours is not blamed on the file."""
    with pytest.raises(type(error)) as caught, reading("x", what="a thing", remedy="make it again"):
        _fault(error)
    assert caught.value is error


def test_reading_names_the_file_within_a_directory(tmp_path: Path) -> None:
    """An error of the system about a file below the directory that is read names that file."""
    with pytest.raises(CheckpointError, match=f"^{tmp_path}/missing: "), reading(tmp_path, what="a model", remedy="save it again"):
        (tmp_path / "missing").read_text()


def test_json_files_of_every_kind_of_damage(tmp_path: Path) -> None:
    """Deep nesting, foreign bytes, another type, a directory and nothing at all: one sentence each."""
    path = tmp_path / "x.json"
    for content, said in ((b"[" * 100_000, "nested too deeply"), (b"\xff\xfe", "not UTF-8"), (b"", "is empty"), (b"[1]", "but list")):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=said):
            read_json_object(path, what="a thing", remedy="make it again")
    with pytest.raises(CheckpointError, match="it is a directory"):
        read_json_object(tmp_path, what="a thing", remedy="make it again")
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_json_object(tmp_path / "y.json", what="a thing", remedy="make it again")
