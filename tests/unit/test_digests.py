"""Digests say whether files are still what they were."""

from stepladder.commands.solve_progress import model_digest
from stepladder.digests import current_digest, digest_of, file_stats


def test_a_flipped_byte_and_a_moved_boundary_change_the_digest(tmp_path):
    """Contents, names, and where one file ends and the next begins all count."""
    model = tmp_path / "model"
    (model / "below").mkdir(parents=True)
    (model / "a").write_bytes(b"12")
    (model / "below" / "b").write_bytes(b"34")
    before = digest_of(model)
    assert digest_of(model) == before
    (model / "a").write_bytes(b"13")
    assert digest_of(model) != before
    (model / "a").write_bytes(b"12")
    assert digest_of(model) == before
    (model / "a").rename(model / "c")
    assert digest_of(model) != before
    (model / "c").rename(model / "a")
    (model / "a").write_bytes(b"123")
    (model / "below" / "b").write_bytes(b"4")
    assert digest_of(model) != before


def test_a_file_has_the_digest_of_its_bytes_wherever_it_lies(tmp_path):
    """The place of a problem file is not part of it."""
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    (tmp_path / "b").write_bytes(b"x" * 3_000_000)
    assert digest_of(tmp_path / "a") == digest_of(tmp_path / "b")


def test_stats_change_with_every_write(tmp_path):
    """Same size, other bytes: the time of change tells."""
    (tmp_path / "a").write_bytes(b"1")
    before = file_stats(tmp_path)
    assert file_stats(tmp_path) == before
    import os

    (tmp_path / "a").write_bytes(b"2")
    os.utime(tmp_path / "a", ns=(1, 1))
    assert file_stats(tmp_path) != before


def test_what_was_not_written_since_is_read_once(tmp_path, monkeypatch):
    """Every caller in a process shares one digest; a file that is written again is read again."""
    read = []
    monkeypatch.setattr("stepladder.digests.digest_of", lambda path: read.append(path) or f"digest {len(read)}")
    for name in ("model", "questions"):
        (tmp_path / name).write_text("1")
    assert [current_digest(tmp_path / "model"), model_digest(str(tmp_path)), model_digest(str(tmp_path))] == [
        "digest 1",
        "digest 2",
        "digest 2",
    ]
    (tmp_path / "model").write_text("12")
    assert current_digest(tmp_path / "model") == "digest 3" and read == [tmp_path / "model", tmp_path, tmp_path / "model"]
