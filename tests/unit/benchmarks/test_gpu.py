"""The parts of the GPU benchmark: how they start and end, and that their commands are understood."""

import itertools
import json
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_rehearsal
from benchmarks import gsm8k as benchmark_gsm8k
from benchmarks.gpu import gsm8k, run_group, run_parts, searches
from stepladder.loops.config.load import load_config


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def _is_alive(pid: int) -> bool:
    """Say whether a process runs; one that has ended and was not fetched by its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_part_that_is_stopped_takes_its_processes_along(tmp_path: Path) -> None:
    """Or they would hold the GPU's memory while the next part runs; what the part had printed is kept."""
    file = tmp_path / "child"
    part = ["sh", "-c", f"sleep 60 & echo $! > {file}; echo begun; wait"]
    assert run_group({"training": part}, tmp_path, limit_s=2.0) == ["training"]
    assert "begun" in (tmp_path / "training.txt").read_text()
    pid, deadline = int(file.read_text()), time.monotonic() + 10
    while _is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_alive(pid)


def test_a_failure_is_named_at_the_end_and_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 1; what failed has its own exit code in the text."""
    with pytest.raises(SystemExit, match=r"failed or stopped: search, training"):
        run_parts(
            {"search": _python("raise SystemExit(3)"), "training": _python("1 / 0"), "gsm8k": _python("print('fine')")},
            tmp_path,
            limit_s=60.0,
        )
    said = capsys.readouterr().out
    assert "search: exit code 3" in said and "ZeroDivisionError" in said and "fine" in said


def test_searches_measure_one_after_the_other(tmp_path: Path) -> None:
    """All start at once, so that engines start side by side; the file that each waits for comes with the end of the one before it."""
    part = (
        "import sys, time, pathlib\nnow, *after = pathlib.Path({now!r}), *map(pathlib.Path, sys.argv[2:])\n"
        "while after and not after[0].exists(): time.sleep(0.05)\n"
        "if now.exists(): raise SystemExit(1)\nnow.touch(); time.sleep(0.5); now.unlink()\nprint('alone')"
    )
    code = _python(part.format(now=str(tmp_path / "now")))
    assert run_group(dict.fromkeys(("search", "plain", "large"), code), tmp_path, limit_s=60.0) == []
    ends = [(tmp_path / f"{name}.ended").stat().st_mtime_ns for name in ("search", "plain", "large")]
    assert ends == sorted(ends) and all("alone" in (tmp_path / f"{name}.txt").read_text() for name in ("search", "plain", "large"))


def _settings(command: list[str]) -> list[str]:
    return [word for option, word in itertools.pairwise(command) if option == "--set"]


@pytest.mark.parametrize("more", [(), (*gpu_rehearsal.SMALL_ENGINE, *gpu_rehearsal.SMALL_ROUND)])
@pytest.mark.parametrize("backend", ["vllm", "transformers"])
def test_the_settings_of_a_round_of_gsm8k_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, more: tuple[str, ...]
) -> None:
    """A setting that has another name by now would fail only on a GPU. Solutions are written for the warm-up; exit codes are passed on."""
    gpu_rehearsal.write_toy_problems(tmp_path)
    ran: list[list[str]] = []
    monkeypatch.setattr(benchmark_gsm8k.subprocess, "call", lambda command: ran.append(command) or 7)
    made: list[Path] = []
    monkeypatch.setattr(benchmark_gsm8k, "cut_vocabulary", lambda model, out, texts: made.append(out))
    arguments = [*gsm8k(tmp_path / "model", tmp_path, tmp_path / "out", more)[3:], "--solved", "5"]
    with pytest.raises(SystemExit) as ended:
        benchmark_gsm8k.main([*arguments, *(["--cpu"] if backend == "transformers" else [])])
    assert ended.value.code == 7
    config = load_config(Path(ran[0][ran[0].index("evolve") + 1]), _settings(ran[0]))
    assert config.warmup.train.micro_batch_size == (4 if backend == "transformers" else None)
    assert config.policy.backend == backend and config.policy.vllm.options["kv_cache_memory_bytes"]
    assert [Path(config.policy.model)] == (made or [tmp_path / "model"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "solutions.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and rows[0].keys() == {"id", "question", "solution"}


def test_the_commands_of_the_parts_are_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every part answers ``--help`` after its own options, so none has a wrong name; the rehearsal has all parts."""
    seen: dict[str, list[str]] = {}
    monkeypatch.setattr(gpu_rehearsal, "run_parts", lambda commands, *_, **__: seen.update(commands))
    monkeypatch.setattr(sys, "argv", ["gpu_rehearsal", "--out", str(tmp_path)])
    gpu_rehearsal.main()
    assert set(seen) == {name for group in gpu.PARTS for name in group}
    monkeypatch.setattr(gpu, "run_parts", lambda commands, *_, **__: seen.update(commands))
    monkeypatch.setattr(
        sys, "argv", ["gpu", "--out", str(tmp_path), "--model", str(tmp_path / "model"), "--gsm8k", str(tmp_path / "problems")]
    )
    rehearsed = {name: command[2] for name, command in seen.items()}
    gpu.main()
    assert {name: command[2] for name, command in seen.items()} == rehearsed
    assert searches("7b", 256, "mcts:4", sequences=768, cache_gb=20)[2] == "benchmarks.gpu_search"
