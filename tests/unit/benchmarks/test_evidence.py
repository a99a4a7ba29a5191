"""The comparison of arms: settings that load, equal budgets, and figures by hand."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import evidence, many_runs, noisy_puzzle
from benchmarks.evidence import ARMS, Size, arm_config, arms, common
from benchmarks.evidence_picture import draw
from benchmarks.evidence_tables import T_QUANTILES, Cell, interval_over_problems, interval_over_seeds, pass_at_table, tokens_to_reach
from stepladder.data.metrics.answers import PoolSample
from stepladder.embedded import settings
from stepladder.embedded.puzzle import GOAL
from stepladder.loops.assembly.checks import check_labels, check_searches
from stepladder.loops.config.load import load_config
from stepladder.loops.config.run import Config
from stepladder.loops.runs.directory import RunDir, open_run
from stepladder.loops.runs.evaluation_rows import PoolRow, write_rows
from tests.inline import inline_pool

SIZE = Size(rounds=2, tokens=400, updates=40, samples=4)


def config_of(arm: str, place: Path) -> Config:
    more = ["prm.model=somewhere"] if arm == "search-random" else []
    return arm_config(place, [*common(SIZE, 7), *arms(SIZE)[arm], *more])


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_has_the_same_tokens_updates_and_traces(arm: str, tmp_path: Path) -> None:
    """Arms differ in the use of their budget, not in its size, and every arm's settings pass the checks of a run."""
    config = config_of(arm, tmp_path)
    check_searches(config)
    check_labels(config)
    assert config.search.options["temperature"] == config_of("search", tmp_path).search.options["temperature"]
    pool = config.search.max_tokens if arm == "star" else getattr(config.search.allocation, "pool_tokens", None)
    assert pool == SIZE.tokens * (evidence.TIME if arm == "star-time" else 1)
    updates = (config.sft.max_updates or 0) + (config.preference.max_updates or 0) * config.preference.enabled
    assert updates == SIZE.updates and config.preference.enabled == arm.endswith("-pairs")
    # However few rows there are, they are repeated until the updates are done.
    assert config.sft.epochs >= 1000 and (config.preference.epochs >= 1000 or not config.preference.enabled)
    assert config.labels.traces_per_problem == config_of("search", tmp_path).labels.traces_per_problem
    assert config.prm.enabled == (arm in ("best-of-n", "search", "search-weak", "search-random", "search-pairs"))
    assert config.run.seed == 7 and config.gate.max_drop == 1.0


def test_only_single_samples_leave_nothing_of_a_tree_after_a_solution(tmp_path: Path) -> None:
    """A tree of ``star-single`` is one draw; those of the other arms of samples go on until their tokens are spent."""
    draws = {
        arm: config_of(arm, tmp_path).search.simulations for arm in ("star", "star-unsolved", "star-ranked", "star-single", "star-time")
    }
    assert draws.pop("star-single") == draws.pop("star-time") == 1
    assert all(most > SIZE.tokens for most in draws.values())


def test_tokens_to_reach_a_share_by_hand() -> None:
    """Between two rounds the way is straight; a share that is never reached has no tokens."""
    curve = [(0.0, 0.1), (100.0, 0.3), (200.0, 0.7)]
    assert tokens_to_reach(curve, 0.5) == pytest.approx(150.0)
    assert tokens_to_reach(curve, 0.3) == pytest.approx(100.0)
    assert tokens_to_reach(curve, 0.05) == 0.0
    assert tokens_to_reach(curve, 0.9) is None
    # An accuracy that falls again was reached all the same.
    assert tokens_to_reach([(0.0, 0.0), (10.0, 0.6), (20.0, 0.4), (30.0, 0.8)], 0.5) == pytest.approx(10 * 0.5 / 0.6)
    assert tokens_to_reach([], 0.5) is None


def test_the_interval_over_seeds_is_students() -> None:
    """Differences 1, 2, 3 have mean 2 and standard error 1 / sqrt(3)."""
    low, high = interval_over_seeds([1.0, 2.0, 3.0]) or (0.0, 0.0)
    assert (low, high) == (pytest.approx(2 - T_QUANTILES[2] / 3**0.5), pytest.approx(2 + T_QUANTILES[2] / 3**0.5))
    assert interval_over_seeds([1.0]) is None
    assert interval_over_seeds([0.5, 0.5]) == (0.5, 0.5)


def test_the_interval_over_problems_resamples_within_seeds() -> None:
    """Equal differences at every problem have no spread; otherwise the interval holds the mean and is about two standard errors wide."""
    assert interval_over_problems([[1.0] * 5, [0.0] * 5]) == (0.5, 0.5)
    per_seed = [[1.0, 0.0] * 50, [0.0, -1.0] * 50]
    low, high = interval_over_problems(per_seed, num_resamples=2000)
    error = (0.25 / 100 / 2) ** 0.5
    assert low == pytest.approx(-1.96 * error, abs=0.25 * error) and high == pytest.approx(1.96 * error, abs=0.25 * error)


def test_the_size_names_the_runs() -> None:
    """Runs of another size have another place, so that no run continues with other settings; those of the same tests share a warm-up."""
    sizes = [
        Size(rounds=r, tokens=t, updates=u, samples=4, problems=p, tests=n, noise=noise)
        for r in (1, 2)
        for t in (100, 200)
        for u in (10, 20)
        for p in (16, 32)
        for n in (16, 64)
        for noise in (0.0, 0.01, 0.1)
    ]
    assert len({size.name for size in sizes}) == 96
    assert len({evidence.warm_up_root(Path("runs"), size, 3) for size in sizes}) == 4
    assert tuple(arms(SIZE)) == ARMS


def test_a_share_of_the_wrong_claims_passes() -> None:
    """About a tenth of the wrong solutions that state the goal, the same ones every time; right ones always pass, others never."""
    claims = [f"f2 {number}\nf5 {GOAL}\n" for number in range(2000)]
    passed = [noisy_puzzle.grade("21345678", claim, "0.1")[0] for claim in claims]
    assert sum(passed) / 2000 == pytest.approx(0.1, abs=0.02)
    assert passed == [noisy_puzzle.grade("21345678", claim, "0.1")[0] for claim in claims]
    assert not any(noisy_puzzle.grade("21345678", claim, "0")[0] for claim in claims)
    assert noisy_puzzle.grade("21345678", f"f2 {GOAL}\n", "0") == (True, "solved")
    assert noisy_puzzle.grade("21345678", "f3 31245678\n", "1") == (False, "goal not reached")
    assert noisy_puzzle.grade("21345678", "", "1")[0] is False


def test_a_share_lies_between_nothing_and_all() -> None:
    """Both ends are shares; what lies beyond is refused in one sentence."""
    assert [many_runs.share(text) for text in ("0", "0.1", "1")] == [0.0, 0.1, 1.0]
    for text in ("-0.1", "1.5", "nan"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"must lie in \[0, 1\]: got"):
            many_runs.share(text)


def test_only_training_problems_are_graded_with_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every split keeps its rows; those of training carry the share, the others zero. The files lie where a run may hold them."""
    monkeypatch.setattr(evidence, "run_rounds", lambda config, root: open_run(root, config))
    size = Size(problems=1, tests=1, noise=0.1)
    evidence.warm_up(tmp_path, size, 0)
    base = evidence.warm_up_root(tmp_path, size, 0)
    plain = settings(base / "start")
    config = load_config(None, evidence.noisy_grading(base, 0.1), base=plain)
    for split, passing, each in (("train", "0.1", 1), ("held_out", "0", 4), ("test", "0", 1)):
        paths = (plain["problems"][split], getattr(config.problems, split))
        before, after = ([json.loads(line) for line in Path(path).read_text().splitlines()] for path in paths)
        assert after == [{**row, "passing": passing} for row in before] and len(after) == 9 * each
    assert config.problems.answer_field == "passing"


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warm-up of seed 1 fails, so its arms are left out; an arm of seed 2 fails, and the next one runs. Arms go before seeds."""
    begun: list[tuple[int, str]] = []

    def warm_up(root: Path, size: Size, seed: int, *, more: list[str]) -> None:
        begun.append((seed, "warm-up"))
        if seed == 1:
            raise OSError("disk is full")

    def run_arm(root: Path, size: Size, seed: int, arm: str, *, more: list[str]) -> None:
        assert more == ["sft.batch_size=8"]
        begun.append((seed, arm))
        if (seed, arm) == (2, "star"):
            raise ValueError("no traces")

    for name, fake in (("warm_up", warm_up), ("run_arm", run_arm)):
        monkeypatch.setattr(evidence, name, fake)
    monkeypatch.setattr(many_runs, "worker_pool", inline_pool)
    chosen = ["star", "search"]
    failed = evidence.run_all(tmp_path, SIZE, seeds=[1, 2, 3], chosen=chosen, more=["sft.batch_size=8"], jobs=2)
    assert begun == [*((seed, "warm-up") for seed in (1, 2, 3)), (2, "star"), (3, "star"), (2, "search"), (3, "search")]
    assert failed == ["seed 1, warm-up: OSError: disk is full", "seed 2, star: ValueError: no traces"]
    assert evidence.finished(evidence.places(tmp_path, SIZE, seeds=[1, 2, 3], chosen=chosen)) == []


def _finished(arm: str, seed: int, *, solved: int, accuracies: list[float]) -> Cell:
    levels = {"5": SimpleNamespace(solved=solved, problems=16), "10": SimpleNamespace(solved=0, problems=16)}
    searched = SimpleNamespace(levels=levels)
    rows = [
        SimpleNamespace(search=searched if number else None, test=SimpleNamespace(pass_at_1=SimpleNamespace(value=value)))
        for number, value in enumerate(accuracies)
    ]
    return Cell(arm, seed, None, rows)  # pyright: ignore[reportArgumentType]


def test_the_picture_has_means_over_the_seeds_and_their_ends() -> None:
    """Solved 12 and 8 of 16 problems five moves deep is 62.5% with ends 50 and 75; arms without a line of their own are left out."""
    cells = [
        _finished("search", 0, solved=12, accuracies=[0.2, 0.4]),
        _finished("search", 1, solved=8, accuracies=[0.1, 0.2]),
        _finished("star-single", 0, solved=4, accuracies=[0.2, 0.3]),
        _finished("best-of-n", 0, solved=4, accuracies=[0.2, 0.3]),
    ]
    picture = draw(cells)
    for text in ("62.5 % (50.0 to 75.0)", "0.0 % (0.0 to 0.0)", "30.0 % (20.0 to 40.0)", "25.0 % (25.0 to 25.0)"):
        assert text in picture
    assert ">samples<" in picture and "best-of-n" not in picture


def _measured(root: Path, arm: str, seed: int, right: list[list[bool]]) -> Cell:
    """Return a run whose test problems have these samples."""
    run = RunDir(root=root / f"{arm}-{seed}")
    pools = [
        PoolRow(
            problem_id=str(number), samples=tuple(PoolSample(num_tokens=1, answer_key="a", score=None, correct=each) for each in samples)
        )
        for number, samples in enumerate(right)
    ]
    write_rows(run.evaluation(0, "test") / "samples" / "shard-0000.json", pools)
    return Cell(arm, seed, run, [])


def test_pass_at_k_by_hand(tmp_path: Path) -> None:
    """Of two problems with two samples each, the search solves both at least once on both seeds, samples one at a time one and both."""
    yes, no = True, False
    cells = [
        _measured(tmp_path, "search", 0, [[yes, no], [no, yes]]),
        _measured(tmp_path, "search", 1, [[yes, yes], [no, yes]]),
        _measured(tmp_path, "star-single", 0, [[yes, yes], [no, no]]),
        _measured(tmp_path, "star-single", 1, [[yes, no], [no, yes]]),
    ]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in pass_at_table(cells, 2).splitlines()[2:]]
    assert rows[0] == ["search", "2", "62.5", "100.0", "–", "–", "–"]
    # The difference is 50 points on seed 0 and nothing on seed 1: 25, plus and minus 12.706 standard errors of 25.
    assert rows[1][:6] == ["star-single", "2", "50.0", "75.0", "+25.0", "-292.6 to +342.6"]


def test_pass_at_k_measures_the_last_policy_and_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has the last policy of the arm, no warm-up, no rounds and k samples, and its settings pass the checks of a run."""
    made: list[tuple[Config, Path]] = []
    monkeypatch.setattr(evidence, "run_rounds", lambda config, root: made.append((config, root)))
    trained = SimpleNamespace(policy_source=lambda number, config: f"policy of round {number}", config=lambda: None)
    monkeypatch.setattr(evidence, "load_run", lambda place: trained)
    evidence.measure_pass_at(tmp_path, SIZE, 3, "star-single", k=16)
    config, place = made[0]
    check_searches(config)
    check_labels(config)
    assert config.policy.model == "policy of round 2" and config.warmup.solutions is None
    assert (config.run.rounds, config.evaluate.samples, config.run.seed, config.prm.enabled) == (0, 16, 3, False)
    assert place == evidence.pass_at_root(tmp_path, SIZE, 3, "star-single", 16) != evidence.arm_root(tmp_path, SIZE, 3, "star-single")
