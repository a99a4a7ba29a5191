"""Time and verdicts of rule ``math``: this version beside another one, and beside the deadlines of answers that hang the grader.

    python benchmarks/grading.py                         # this version
    python benchmarks/grading.py --old ../old-worktree   # and a checkout of another commit, in the same run

Every version grades the same tables in processes of its own. Figures are CPU seconds of the grader and its workers, which a crowded machine
changes little, and wall seconds.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLES = [ROOT / "tests" / "unit" / "data" / "grading" / name for name in ("reported_cases.jsonl", "math_cases.jsonl")]
DEADLINE_S = 1.0

# Run by every version's own interpreter process; it uses nothing that the older versions lack.
_RUN = """
import json, resource, sys, time
from stepladder.data.grading.verifier import AnswerVerifier
from stepladder.types import LabelledProblem, Problem
job = json.loads(sys.stdin.read())
problems = [LabelledProblem(problem=Problem(id=str(i), question="q"), answer=each) for i, (each, _) in enumerate(job["pairs"])]
def cpu():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
with AnswerVerifier(problems, "math", num_workers=job["workers"], deadline_s=job["deadline_s"]) as verifier:
    cpu_begin, begin = cpu(), time.monotonic()
    verdicts = verifier.grade([(str(i), answer) for i, (_, answer) in enumerate(job["pairs"])])
    wall = time.monotonic() - begin
reasons = [verdict.reason for verdict in verdicts]
print(json.dumps({"correct": [v.correct for v in verdicts], "reasons": reasons, "wall_s": wall, "cpu_s": cpu() - cpu_begin}))
"""


def run(version: Path, pairs: list[tuple[str, str]], *, workers: int, deadline_s: float) -> dict:
    """Grade (reference, answer) pairs with one version in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN],
        input=json.dumps({"pairs": pairs, "workers": workers, "deadline_s": deadline_s}),
        env={**os.environ, "PYTHONPATH": str(version.resolve())},
        cwd=version,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def tables(version: Path) -> str:
    """Return a line on the tables of cases: time per answer, and how many verdicts are wrong in which way."""
    cases = [json.loads(line) for table in TABLES for line in table.read_text(encoding="utf-8").splitlines()]
    pairs = [(case["reference"], case["answer"]) for case in cases]
    found = run(version, pairs, workers=1, deadline_s=10.0)
    kind = sum(correct and not case["equal"] for correct, case in zip(found["correct"], cases, strict=True))
    strict = sum(case["equal"] and not correct for correct, case in zip(found["correct"], cases, strict=True))
    per_answer = 1000 * found["cpu_s"] / len(pairs)
    return f"{len(pairs)} answers: {per_answer:.2f} CPU ms each, start included; {kind} wrong graded right, {strict} right graded wrong"


def algebra(version: Path) -> str:
    """Return a line on answers that all need algebra."""
    pairs = [("\\sin^2 x", f"1-\\cos^2 x+{i}y-{i}\\cdot y\\cos^2 z-{i}y\\sin^2 z") for i in range(100)]
    found = run(version, pairs, workers=1, deadline_s=10.0)
    return f"{len(pairs)} answers that need algebra: {1000 * found['cpu_s'] / len(pairs):.2f} CPU ms each, {sum(found['correct'])} right"


def hostile(version: Path, *, num_answers: int = 400) -> str:
    """Return a line on answers of which every twentieth hangs the grader."""
    pairs = [("\\sin^2 x", f"9**9**9**9+{i}" if i % 20 == 0 else f"1-\\cos^2 x+{i}y-{i}y") for i in range(num_answers)]
    found = run(version, pairs, workers=2, deadline_s=DEADLINE_S)
    timeouts = found["reasons"].count("timeout")
    ideal = timeouts * DEADLINE_S
    return (
        f"{num_answers} answers, {timeouts} of which hang: {found['cpu_s']:.1f} CPU s, {found['cpu_s'] / ideal:.2f} times their deadlines "
        f"({ideal:.0f} s); {found['wall_s']:.1f} s with 2 workers, {2 * found['wall_s'] / ideal:.2f} times the ideal"
    )


def main() -> None:
    """Print the figures of this version, and of another one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, help="checkout of another commit")
    old = parser.parse_args().old
    for name, version in {"new": ROOT, **({"old": old} if old else {})}.items():
        for measure in (tables, algebra, hostile):
            print(f"{name}: {measure(version)}", flush=True)


if __name__ == "__main__":
    main()
