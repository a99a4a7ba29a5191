"""Tasks that workers of any kind do in tests; workers import them by their module."""

import os
import time
from pathlib import Path

import pytest

from stepladder.errors import DataFormatError
from stepladder.loops.runs.workers import Progress, Task, Workers, report_progress


def square(*, number: int) -> int:
    """Return the square of a number, and report one item."""
    report_progress(Progress(stage="squares", items=1, tokens=number))
    return number * number


def where() -> str:
    """Return the working directory."""
    return os.getcwd()


def mark(*, folder: Path, name: str) -> None:
    """Leave a file, after the files that are there when it begins are counted in it."""
    (folder / name).write_text(str(len(list(folder.iterdir()))))
    report_progress(Progress(stage="marks", items=1))


def check_ahead(pool: Workers, folder: Path) -> None:
    """Check that a pool of one or two workers does tasks of the next round when it has nothing else to do, and forgets them if it must."""
    seen: list[Progress] = []
    of = lambda *names: [Task.of(mark, folder=folder, name=name) for name in names]  # noqa: E731
    pool.ahead(of("ahead 1", "ahead 2", "ahead 3", "ahead 4"))
    assert list(folder.iterdir()) == []
    before = pool.clock.read()
    pool.run(of("first", "second", "third"), on_progress=seen.append)
    pool.finish_ahead(on_progress=seen.append)
    # A worker begins one only when all tasks of the stage have begun, so that at least two of these have ended.
    assert min(int(path.read_text()) for path in folder.glob("ahead*")) >= 2
    assert len(list(folder.iterdir())) == 7
    assert sum(progress.items for progress in seen) == 7
    worked = pool.clock.read()
    assert worked.stage > before.stage
    assert worked.ahead > before.ahead
    pool.ahead(of("dropped"))
    pool.drop_ahead()
    pool.run(of("last"), on_progress=seen.append)
    pool.finish_ahead(on_progress=seen.append)
    assert not (folder / "dropped").exists()
    pool.ahead([Task.of(fail, message="file.jsonl:3: wrong")])
    with pytest.raises(DataFormatError, match=r"^file\.jsonl:3: wrong"):
        pool.finish_ahead(on_progress=seen.append)


def visible_gpus(*, meeting: Path, count: int) -> str | None:
    """Wait until so many workers do this at once, and return the GPUs that this one sees."""
    (meeting / str(os.getpid())).touch()
    end = time.monotonic() + 120
    while len(list(meeting.iterdir())) < count and time.monotonic() < end:
        time.sleep(0.05)
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def fail(*, message: str) -> None:
    """Fail with an error of the package."""
    raise DataFormatError(message)
