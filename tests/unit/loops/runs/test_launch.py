"""Jobs that accelerate launches: the first process's result and progress, errors as they were raised, nobody left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from stepladder.errors import BackendError, ConfigError, DataFormatError
from stepladder.files import remove_temporaries
from stepladder.loops.assembly.checks import check_training
from stepladder.loops.config.load import load_config
from stepladder.loops.config.training import TrainingConfig
from stepladder.loops.runs.launch import launch_command, launch_environment, run_launched
from stepladder.loops.runs.workers import Progress, Task, report_progress, worker_pool

REPO = Path(__file__).parents[4]
REQUIRED = ["problems.train=a.jsonl", "problems.test=b.jsonl", "policy.model=some/model", "policy.device=cpu"]
TWO = TrainingConfig(num_processes=2)
CONFIGS = sorted((REPO / "configs" / "accelerate").glob("*.yaml"))


def add_ranks(*, out: Path, offset: int) -> tuple[int, int, str]:
    """Return this process's number, the sum over all processes of theirs plus an offset, and the threads."""
    import torch
    from accelerate import PartialState

    here = PartialState(cpu=True)
    total = torch.tensor(here.process_index + offset)
    torch.distributed.all_reduce(total)
    report_progress(Progress(stage="sums", items=here.process_index + 1, tokens=offset))
    return here.process_index, int(total), os.environ["OMP_NUM_THREADS"]


def fail(*, out: Path) -> None:
    raise DataFormatError("file.jsonl:3: wrong")


def die(*, out: Path) -> None:
    print("the last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def wait_long(*, out: Path) -> None:
    (out.parent / f"pid-{os.getpid()}").touch()
    time.sleep(300)


@pytest.mark.slow
def test_the_first_process_answers_for_all(tmp_path: Path) -> None:
    """Both processes take part (0 + 10 and 1 + 10 make 21); result and progress are the first one's. Nothing else is left."""
    seen: list[Progress] = []
    task = Task.of(add_ranks, out=tmp_path / "models" / "policy", offset=10)
    assert run_launched(task, TWO, threads=1, on_progress=seen.append) == (0, 21, "1")
    assert seen == [Progress(stage="sums", items=1, tokens=10)]
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.slow
def test_failures_of_launched_processes_keep_their_type(tmp_path: Path) -> None:
    """An error is raised as it is, with its place as a note; a process that was killed is explained with its last lines."""
    with pytest.raises(DataFormatError) as caught:
        run_launched(Task.of(fail, out=tmp_path / "policy"), TWO, threads=1, on_progress=lambda progress: None)
    assert str(caught.value) == "file.jsonl:3: wrong" and "in fail" in caught.value.__notes__[0]
    with pytest.raises(BackendError, match=r"a launched process ended with code .*SIGKILL"):
        run_launched(Task.of(die, out=tmp_path / "policy"), TWO, threads=1, on_progress=lambda progress: None)


_LAUNCHER = """
import sys
from pathlib import Path
from stepladder.loops.runs.launch import run_launched
from stepladder.loops.runs.workers import Task
from tests.unit.loops.runs.test_launch import TWO, wait_long
run_launched(Task.of(wait_long, out=Path(sys.argv[1])), TWO, threads=1, on_progress=print)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_launched_processes_end_with_who_launched_them(tmp_path: Path, how: int) -> None:
    """After ``kill -9`` of the launching process, or Ctrl-C, both processes are gone within seconds, and the next start finds no files."""
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    command = [sys.executable, "-c", _LAUNCHER, str(tmp_path / "policy")]
    process = subprocess.Popen(command, env=environment, cwd=REPO, stderr=subprocess.DEVNULL, preexec_fn=heed)
    deadline = time.monotonic() + 120
    while len(pids := list(tmp_path.glob("pid-*"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(how)
    process.wait()
    while any(Path(f"/proc/{path.name.removeprefix('pid-')}").exists() for path in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(list(tmp_path.glob(".training-*"))) == (how == signal.SIGKILL)
    remove_temporaries(tmp_path)
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} == {"pid"}


def count_starts(*, folder: Path) -> int:
    (folder / str(os.getpid())).touch()
    return len(list(folder.iterdir()))


@pytest.mark.slow
def test_resting_workers_are_other_processes_afterwards(tmp_path: Path) -> None:
    """A pool that rested runs the next task in a new process, so nothing that the old one held is left."""
    task = Task(function=count_starts, arguments={"folder": tmp_path})
    with worker_pool(1, threads=1) as pool:
        counts = [pool.run([task], on_progress=lambda progress: None)[0] for _ in range(2)]
        pool.rest()
        counts += pool.run([task], on_progress=lambda progress: None)
    assert counts == [1, 1, 2]


# ---- configuration ----


def _broken_accelerate_files(folder: Path) -> dict[Path, str]:
    """Write files that accelerate does not take, and return them with words of the reason."""
    reasons = {
        "mapping.yaml": ("a: 1\n: :\n", "while parsing"),
        "list.yaml": ("- 1\n", "list"),
        "empty.yaml": ("", "NoneType"),
        "kind.yaml": ("num_processes: 2\n", "distributed_type"),
        "unknown.yaml": ("distributed_type: FSDP\nnum_processes: 2\nfsdp: {}\n", "unknown keys"),
        "text.json": ("{", "Expecting"),
    }
    for name, (text, _) in reasons.items():
        (folder / name).write_text(text)
    return {folder / name: said for name, (_, said) in reasons.items()}


def test_missing_parts_are_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracker or bitsandbytes that is not installed, a file that does not exist, and too few GPUs are configuration errors."""
    monkeypatch.setattr("stepladder.lm.trackers.find_spec", lambda name: None)
    monkeypatch.setattr("stepladder.loops.assembly.checks.find_spec", lambda name: None)
    cases = {
        "training.report_to=['mlflow']": "pip install mlflow",
        f"training.accelerate_config={tmp_path / 'absent.yaml'}": "absent.yaml' does not exist",
        **{
            f"training.accelerate_config={path}": f"{path.name}: must be a file of `accelerate config`: .*{said}"
            for path, said in _broken_accelerate_files(tmp_path).items()
        },
        "sft.lora.four_bit=true": "sft.lora.four_bit: needs the package bitsandbytes",
    }
    for override, words in cases.items():
        with pytest.raises(ConfigError, match=words):
            check_training(load_config(None, [*REQUIRED, override]))
    monkeypatch.setattr("stepladder.loops.assembly.checks.uses_gpu", lambda device: True)
    monkeypatch.setattr("stepladder.loops.assembly.checks.gpu_names", lambda: ["0", "1"])
    check_training(load_config(None, [*REQUIRED, "training.num_processes=2"]))
    with pytest.raises(ConfigError, match=r"training.num_processes: .* got 4 > 2"):
        check_training(load_config(None, [*REQUIRED, "training.num_processes=4"]))
    with pytest.raises(ConfigError, match="held_out must be 0 without checkpoint_every, because it chooses among checkpoints"):
        load_config(None, [*REQUIRED, "sft.held_out=0.1"])


def test_how_trainings_run_may_change_within_a_run() -> None:
    """Processes, their configuration and trackers leave the hash of a run alone."""
    base, other = (load_config(None, [*REQUIRED, f"training.num_processes={count}"]) for count in (1, 2))
    assert base.hash() == other.hash() and not base.differences(other)
    assert (base.training.launched, other.training.launched) == (False, True)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_accelerate_configurations_are_accelerates(path: Path) -> None:
    """Accelerate reads every file and makes of it what its name says: the kind of sharding reaches the processes' environment."""
    assert load_config_from_file(str(path)).num_machines == 1
    environment = launch_environment(TrainingConfig(num_processes=4, accelerate_config=str(path)))
    assert "PYTHONPATH" not in environment
    if path.stem == "fsdp":
        assert environment["ACCELERATE_USE_FSDP"] == "true"
        assert (environment["FSDP_VERSION"], environment["FSDP_STATE_DICT_TYPE"]) == ("2", "SHARDED_STATE_DICT")
        assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    else:
        stage = int(path.stem.removeprefix("deepspeed-zero"))
        assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
        assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == str(stage)
        assert environment["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == environment["ACCELERATE_GRADIENT_CLIPPING"] == "auto"
        assert environment.get("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "None") == ("true" if stage == 3 else "None")


def test_without_a_file_processes_hold_copies() -> None:
    """Neither FSDP nor DeepSpeed is turned on, and the command names the number of processes."""
    environment = launch_environment(TWO)
    assert not {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"} & set(environment)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert "--num_processes=2" in launch_command(TWO)
