"""What a command may replace: nothing foreign, nothing of its inputs, its own results only when told."""

import os

import pytest

from stepladder.errors import CheckpointError
from stepladder.outputs import check_output, directory_with, rows_with, text_with


def check(path, *, overwrite=False, inputs=(), ours=lambda path: False, is_directory=False):
    check_output(path, option="--output", ours=ours, overwrite=overwrite, inputs=inputs, is_directory=is_directory)


def test_new_places_empty_files_and_empty_directories_are_free(tmp_path):
    """Nothing is lost there; a file goes in the place of a file, and a directory in that of a directory."""
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "empty").mkdir()
    for name in ("new.jsonl", "folder/below/new.jsonl", "empty.jsonl"):
        check(tmp_path / name)
    for name in ("new", "folder/below/new", "empty"):
        check(tmp_path / name, is_directory=True)
    with pytest.raises(CheckpointError, match=r"empty: must be a file: it is a directory -- choose another place"):
        check(tmp_path / "empty", overwrite=True)
    with pytest.raises(CheckpointError, match=r"empty.jsonl: must be a directory: it is a file -- choose another place"):
        check(tmp_path / "empty.jsonl", overwrite=True, is_directory=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_files_and_directories_are_never_replaced(tmp_path, overwrite):
    """Not even with --overwrite, and not through a link."""
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("years of work")
    (tmp_path / "link").symlink_to(tmp_path / "thesis.txt")
    for name in ("thesis.txt", "folder", "link"):
        with pytest.raises(CheckpointError, match="holds what this command did not write -- choose another place"):
            check(tmp_path / name, overwrite=overwrite)


def test_an_earlier_result_needs_overwrite(tmp_path):
    """The message names the option."""
    (tmp_path / "rows.jsonl").write_text('{"id": "1", "answer": "2"}\n')
    ours = rows_with("id", "answer")
    with pytest.raises(CheckpointError, match="an earlier result -- choose another place or pass --overwrite"):
        check(tmp_path / "rows.jsonl", ours=ours)
    check(tmp_path / "rows.jsonl", ours=ours, overwrite=True)


def test_an_input_is_never_an_output(tmp_path):
    """By whatever name it is reached, and not when it lies below the output."""
    source = tmp_path / "data" / "questions.jsonl"
    source.parent.mkdir()
    source.write_text('{"id": "1"}\n')
    (tmp_path / "alias").symlink_to(source)
    for target in (source, tmp_path / "data" / ".." / "data" / "questions.jsonl", tmp_path / "alias", source.parent):
        with pytest.raises(CheckpointError, match="must not be an input of the same command"):
            check(target, overwrite=True, inputs=[source], ours=lambda path: True)


def test_the_working_directory_is_never_an_output(tmp_path, monkeypatch):
    """``--output .`` would replace everything that stands there."""
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    for name in (".", "..", str(tmp_path)):
        with pytest.raises(CheckpointError, match="must not be the working directory"):
            check(type(tmp_path)(name), overwrite=True, ours=lambda path: True)


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    """A file where a directory is needed, and a directory without the right to write."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"must lie in a directory: .*file is a file"):
        check(tmp_path / "file" / "below" / "rows.jsonl")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(CheckpointError, match="you may not write to"):
        check(tmp_path / "rows.jsonl")


def test_results_are_recognised_by_what_they_hold(tmp_path):
    """Rows by the keys of the first one, pages by a mark, directories by a file; anything else is foreign."""
    for number, text in enumerate(('{"id": 1}', "[1]", "id answer", '{"id": 1, "answer"', "[" * 100_000, "\udcff")):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(text.encode(errors="surrogateescape"))
        assert not rows_with("id", "answer")(path), text
    long = tmp_path / "long.jsonl"
    long.write_text(f'{{"id": 1, "solution": "{"step " * 50_000}", "answer": 2}}\n{{}}\n')
    assert rows_with("id", "answer")(long), "however long the first row is"
    page = tmp_path / "page.html"
    page.write_text("<html>ours</html>")
    assert text_with("ours")(page)
    assert not text_with("theirs")(page)
    assert not text_with("ours")(tmp_path)
    assert directory_with("page.html")(tmp_path)
    assert not directory_with("other.html")(tmp_path)
