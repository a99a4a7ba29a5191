"""The grader: verdicts, deadlines, and worker processes that never outlive their use."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stepladder.data.grading import verifier as verifier_module
from stepladder.data.grading.verifier import AnswerVerifier
from stepladder.errors import BackendError, ConfigError, DataFormatError
from stepladder.types import LabelledProblem, Problem, Verdict
from tests.processes import is_running

CASES = json.loads((Path(__file__).parent / "grading_cases.json").read_text())
HANGS = "9**9**9**9"
REFERENCE, EQUAL, OTHER = "\\sin^2 x", "1 - \\cos^2 x", "1 - \\cos x"
"""What takes algebra to compare."""


def problems(*answers: str) -> list[LabelledProblem]:
    return [LabelledProblem(problem=Problem(id=f"p{i}", question="q"), answer=answer) for i, answer in enumerate(answers)]


def children() -> set[int]:
    """Worker processes of this process that still run."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                worker = b"math_worker.py" in (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if worker and int(fields[1]) == os.getpid() and fields[0] != "Z":
                found.add(int(entry.name))
    return found


@pytest.mark.parametrize("rule", ["exact", "number"])
def test_table_of_cases_without_workers(rule):
    """Every case of the table gets its verdict and reason, and no process is started for it."""
    cases = [case for case in CASES if case["rule"] == rule]
    with AnswerVerifier(problems(*(case["reference"] for case in cases)), rule) as verifier:
        verdicts = verifier.grade([(f"p{i}", case["answer"]) for i, case in enumerate(cases)])
        assert not children()
    for case, verdict in zip(cases, verdicts, strict=True):
        assert (verdict.correct, verdict.reason) == (case["correct"], case["reason"]), case


def test_table_of_math_cases():
    """The same for rule math; not even the formulas of this table need a process."""
    cases = [case for case in CASES if case["rule"] == "math"]
    with AnswerVerifier(problems(*(case["reference"] for case in cases)), "math", deadline_s=30.0) as verifier:
        verdicts = verifier.grade([(f"p{i}", case["answer"]) for i, case in enumerate(cases)])
        assert not children()
    for case, verdict in zip(cases, verdicts, strict=True):
        assert (verdict.correct, verdict.reason) == (case["correct"], case["reason"]), case


def test_hanging_answer_times_out_and_nothing_else_does():
    """An answer that computes for ever is wrong for its time, its worker is replaced, and its neighbours keep their verdicts."""
    with AnswerVerifier(problems(REFERENCE), "math", deadline_s=0.5) as verifier:
        assert verifier.grade([("p0", EQUAL)]) == [Verdict(correct=True, reason="equivalent")]
        verdicts = verifier.grade([("p0", HANGS), ("p0", OTHER), ("p0", HANGS), ("p0", None), ("p0", EQUAL + "+0")])
        assert [verdict.reason for verdict in verdicts] == ["timeout", "differs", "timeout", "unreadable", "equivalent"]
        assert not verdicts[0].correct
        # Asked again, even in another call, it is not tried again.
        begin = time.monotonic()
        assert verifier.grade([("p0", HANGS)])[0].reason == "timeout"
        assert time.monotonic() - begin < 0.2
    assert not children()


def test_the_successor_of_a_slow_worker_starts_beside_it():
    """With one worker, two processes live while one of them hangs and something waits: the next answer need not wait for a start."""
    with AnswerVerifier(problems(REFERENCE), "math", deadline_s=2.0) as verifier:
        grading = threading.Thread(target=verifier.grade, args=([("p0", HANGS), ("p0", EQUAL)],))
        grading.start()
        most = 0
        while grading.is_alive():
            most = max(most, len(children()))
            time.sleep(0.01)
        grading.join()
        assert most == 2
        assert verifier.grade([("p0", HANGS), ("p0", EQUAL)])[1].correct


def test_several_workers_keep_the_order_of_the_answers():
    """Whichever worker is first, each verdict stands where its answer stood."""
    answers = [EQUAL, OTHER, "\\cos x", REFERENCE, "{", "\\cos x \\tan x \\sin x", EQUAL]
    with AnswerVerifier(problems(REFERENCE), "math", num_workers=2, deadline_s=30.0) as verifier:
        verdicts = verifier.grade([("p0", answer) for answer in answers])
        assert len(children()) == 2
    assert [verdict.correct for verdict in verdicts] == [True, False, False, True, False, True, True]


def test_killed_idle_worker_is_replaced():
    """A worker that somebody kills between two calls costs nothing but its start."""
    with AnswerVerifier(problems(REFERENCE), "math", deadline_s=30.0) as verifier:
        verifier.grade([("p0", EQUAL)])
        (pid,) = children()
        os.kill(pid, signal.SIGKILL)
        while children():
            time.sleep(0.01)
        assert verifier.grade([("p0", EQUAL + "+0")]) == [Verdict(correct=True, reason="equivalent")]


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_workers_die_with_a_killed_parent(state):
    """A parent that is killed with SIGKILL leaves no worker behind: idle ones end at once, busy ones by their deadline."""
    script = (
        "import sys\n"
        "from stepladder.data.grading.verifier import AnswerVerifier\n"
        "from stepladder.types import LabelledProblem, Problem\n"
        "verifier = AnswerVerifier([LabelledProblem(problem=Problem(id='p', question='q'), answer='sin(x)')], 'math', deadline_s=1.5)\n"
        "verifier.grade([('p', 'cos(x)')])\n"
        "print(verifier._grader._pool._idle[0]._process.pid, flush=True)\n"
        f"verifier.grade([('p', {HANGS!r})]) if sys.argv[1] == 'busy' else sys.stdin.read()\n"
    )
    root = Path(__file__).parents[4]
    parent = subprocess.Popen([sys.executable, "-c", script, state], cwd=root, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdin is not None
    worker = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    parent.stdin.close()
    give_up_at = time.monotonic() + 30
    while is_running(worker):
        assert time.monotonic() < give_up_at, "the worker outlived its parent"
        time.sleep(0.02)


def test_worker_that_cannot_start_is_one_sentence(tmp_path, monkeypatch):
    """Without its packages the grader says so instead of waiting."""
    broken = tmp_path / "worker.py"
    broken.write_text("import no_such_module\n")
    monkeypatch.setattr(verifier_module, "_WORKER", broken)
    with AnswerVerifier(problems(REFERENCE), "math") as verifier, pytest.raises(BackendError, match="worker process must start"):
        verifier.grade([("p0", EQUAL)])


def test_crashed_worker_costs_its_answer_only(tmp_path, monkeypatch):
    """An answer that takes the process down is wrong with reason crashed, and the next one gets a new process."""
    fragile = tmp_path / "worker.py"
    fragile.write_text(
        "import json, os, sys\n"
        "print(json.dumps({'ready': True}), flush=True)\n"
        "for line in sys.stdin:\n"
        "    if 'tan' in line: os._exit(3)\n"
        "    print(json.dumps({'correct': True, 'reason': 'equivalent'}), flush=True)\n"
    )
    monkeypatch.setattr(verifier_module, "_WORKER", fragile)
    with AnswerVerifier(problems(REFERENCE), "math") as verifier:
        verdicts = verifier.grade([("p0", "\\cos x"), ("p0", "\\tan x"), ("p0", "\\cot x")])
    assert [verdict.reason for verdict in verdicts] == ["equivalent", "crashed", "equivalent"]


def test_waiting_worker_is_ended_by_the_wall_clock(tmp_path, monkeypatch):
    """A worker that waits instead of computing is ended as well, later."""
    sleepy = tmp_path / "worker.py"
    sleepy.write_text("import time\nprint('{}', flush=True)\ntime.sleep(600)\n")
    monkeypatch.setattr(verifier_module, "_WORKER", sleepy)
    with AnswerVerifier(problems(REFERENCE), "math", deadline_s=0.01) as verifier:
        assert verifier.grade([("p0", EQUAL)]) == [Verdict(correct=False, reason="timeout")]


def test_unknown_ids_and_unusable_references_are_refused():
    """The grader names what it cannot grade, when it is built if possible."""
    with AnswerVerifier(problems("1"), "exact") as verifier, pytest.raises(DataFormatError, match="got 'other'"):
        verifier.grade([("other", "1")])
    with pytest.raises(DataFormatError, match=r"problem 'p1': must have a reference answer"):
        AnswerVerifier(problems("1", " "), "exact")
    with pytest.raises(DataFormatError, match=r"problem 'p0': reference answer must be a number .*got 'Janet has 4'"):
        AnswerVerifier(problems("Janet has 4"), "number")


@pytest.mark.parametrize("settings", [{"rule": "fuzzy"}, {"num_workers": 0}, {"deadline_s": 0.0}, {"deadline_s": float("nan")}])
def test_impossible_settings_are_refused(settings):
    """Settings out of range are configuration errors."""
    with pytest.raises(ConfigError):
        AnswerVerifier(problems("1"), **{"rule": "exact", **settings})


def test_empty_request_has_no_verdicts():
    """Nothing in, nothing out, nothing started."""
    with AnswerVerifier([], "math") as verifier:
        assert verifier.grade([]) == []
        assert not children()
