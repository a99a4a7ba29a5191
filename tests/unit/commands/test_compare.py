"""Methods at equal budgets in a scripted world: every step has three tokens, every solution two steps, scores are drawn by prefix."""

import itertools
import json
import random
import xml.dom.minidom
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stepladder.commands import compare as compare_module
from stepladder.commands.compare import run_comparison
from stepladder.commands.comparison import Comparison, read_budgets, read_contenders, resolve_comparison
from stepladder.data.metrics.answers import Interval
from stepladder.errors import BackendError, CheckpointError, ConfigError
from stepladder.interfaces import TokenCounts
from stepladder.lm.flops import ModelFlops
from stepladder.loops.assembly import search
from stepladder.loops.assembly.search import token_simulations
from stepladder.loops.config.run import Config
from stepladder.loops.runs.flops import SearchFlops
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.stages.graded_rows import answer_within
from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.methods import METHODS, resolve_method
from stepladder.report.comparison import render_csv, render_markdown, render_page, render_table, write_comparison
from stepladder.testing import CharRenderer, ScriptedPolicy, TableScorer, make_step
from stepladder.types import Budget, LabelledProblem, Problem, Provenance, StopReason, derive_seed
from tests import report_run
from tests.models import save_tiny_policy

STEP_TOKENS, NUM_STEPS = 3, 2
PROVENANCE = Provenance(round=0, policy_version=0, scorer_version=None, seed=0, config_hash="", renderer_hash="")
SOLUTION_TOKENS = STEP_TOKENS * NUM_STEPS


def propose(prefix_ids, index, seed):
    """Return a step of three tokens; the second one of a solution states its answer."""
    rng = random.Random(derive_seed(str(prefix_ids), index, seed))
    if bytes(prefix_ids).count(b";") < NUM_STEPS - 1:
        return make_step(rng.choice("abcdefgh") + rng.choice("xyz") + ";", logp=-rng.random())
    return make_step(f" ={rng.choice('12')}", stop_reason=StopReason.END, logp=-rng.random())


def score(prefix_ids):
    return derive_seed("score", str(prefix_ids)) % 997 / 997


def problems(count=6, *, right="1"):
    return [LabelledProblem(problem=Problem(id=f"p{i}", question=f"q{i}"), answer=right) for i in range(count)]


class InlinePool:
    """A pool without processes; can be stopped, as by Ctrl-C, after some tasks."""

    def __init__(self, stop_after=None):
        self.stop_after, self.done = stop_after, []

    def run(self, tasks, *, on_progress, **_):
        for task in tasks:
            if len(self.done) == self.stop_after:
                raise KeyboardInterrupt
            task.function(**task.arguments)
            self.done.append(task)


@pytest.fixture
def world(monkeypatch):
    monkeypatch.setattr(search, "build_renderer", lambda config, policy: CharRenderer())
    monkeypatch.setattr(search, "build_policy", lambda config, models, policy: ScriptedPolicy(propose))
    monkeypatch.setattr(search, "build_scorer", lambda *_, **__: TableScorer(score))


def comparison(out, methods=("mcts", "beam", "majority"), *, given=None, budgets=(30, 90), num_seeds=2, prm=("scripted",), **sections):
    config = {"problems": {"train": "", "test": "", "rule": "exact"}, "policy": {"model": "scripted"}, "run": {"shard_size": 4}}
    return Comparison(
        config=Config.model_validate({**config, **sections}),
        policy="scripted",
        prm=prm,
        source="scripted",
        problems=given or problems(),
        contenders=read_contenders(methods),
        budgets=budgets,
        num_seeds=num_seeds,
        out=out,
    )


def compare(*args, pool=None, **kwargs):
    return run_comparison(comparison(*args, **kwargs), display=ProgressDisplay(), pool=pool or InlinePool())  # type: ignore[arg-type]


def without_times(results):
    timeless = [replace(figures, seconds=0.0, policy_seconds=0.0, prm_seconds=0.0) for figures in results.figures]
    return replace(results, figures=tuple(timeless))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_comes_to_a_result_within_its_budget(world, tmp_path, name):
    """Each preset answers most problems, and stops before it is beyond its budget by its first wave, or else by one expansion."""
    budget, method = 400, resolve_method(name)
    results = compare(tmp_path, [name], budgets=[budget], num_seeds=1)
    figure = next(figure for figure in results.figures if figure.method == name)
    assert figure.problems == 6
    assert figure.answered > 0.5
    assert figure.tokens <= budget
    assert 0 <= figure.interval[0] <= figure.accuracy <= figure.interval[1] <= 1
    settings = method.all_settings()
    num_children = settings["num_children"]
    rollouts = settings["rollouts"] * SOLUTION_TOKENS * num_children
    expansion = SOLUTION_TOKENS if method.samples_solutions else num_children * STEP_TOKENS + rollouts
    first = settings["wave"] * SOLUTION_TOKENS if method.samples_solutions else method.root_samples * STEP_TOKENS + rollouts
    for row in results.outcomes:
        assert row.generated_tokens < max(first + 1, budget + expansion), row


def test_an_answer_counts_from_the_token_at_which_it_was_known():
    """Within the budget the final answer counts; beyond it, the one that the search had when the budget was spent, or none."""

    def result(tokens):
        (found,) = SearchEngine(
            policy=ScriptedPolicy(propose),
            renderer=CharRenderer(),
            method=resolve_method("majority"),
            budget=Budget(num_simulations=1),
            provenance=PROVENANCE,
        ).search([Problem(id="p", question="q")])
        course = ((10, None), (20, "early"), (30, "final"))
        return replace(found, answer="final", anytime=course, tree=replace(found.tree, generated_tokens=tokens))

    budgets = (5, 10, 20, 29, 30, 99, None)
    expected = [None, None, "early", "early", "final", "final", "final"]
    assert [answer_within(result(30), resolve_method("mcts"), budget) for budget in budgets] == expected


@pytest.mark.parametrize("name", ["majority", "best-of-n", "weighted-vote"])
def test_draws_that_fit_give_the_answer_that_they_would_give_alone(name):
    """Of seven draws, asked for two at a time, 41 tokens pay for six: the answer is that of a search that drew six."""
    method = resolve_method(name, wave=2)
    asked = [Problem(id=f"p{i}", question=f"q{i}") for i in range(12)]
    seven, six = (
        list(
            SearchEngine(
                policy=ScriptedPolicy(propose),
                scorer=TableScorer(score),
                renderer=CharRenderer(),
                method=method,
                budget=Budget(num_simulations=number),
                provenance=PROVENANCE,
            ).search(asked)
        )
        for number in (7, 6)
    )
    for longer, exact in zip(seven, six, strict=True):
        assert (longer.tree.generated_tokens, exact.tree.generated_tokens) == (7 * SOLUTION_TOKENS, 6 * SOLUTION_TOKENS)
        assert answer_within(longer, method, 7 * SOLUTION_TOKENS - 1) == exact.answer
        assert answer_within(longer, method, SOLUTION_TOKENS - 1) is None


def test_figures_by_hand(world, tmp_path):
    """Majority at 20 tokens is what three draws of six tokens say; the fourth, which is asked for with them, does not count."""
    results = compare(tmp_path, ["majority"], budgets=[20], num_seeds=1)
    (figure, point) = results.figures
    for row in results.outcomes[:6]:
        engine = SearchEngine(
            policy=ScriptedPolicy(propose),
            scorer=TableScorer(score),
            renderer=CharRenderer(),
            method=resolve_method("majority"),
            budget=Budget(num_simulations=4),
            provenance=PROVENANCE,
        )
        (four,) = engine.search([Problem(id=row.problem_id, question="q" + row.problem_id[1:])])
        first_three = [answer for answer in four.tree.answers if answer is not None][:3]
        winner = max("12", key=first_three.count)
        assert (row.answer, row.correct, row.generated_tokens) == (winner, winner == "1", 24)
    assert figure.accuracy == pytest.approx(sum(row.correct for row in results.outcomes[:6]) / 6)
    assert (figure.tokens, figure.tokens_beyond, figure.policy_calls, figure.simulations) == (20.0, 4.0, 1.0, 4.0)
    assert figure.answered == 1.0
    # One request holds the four draws; those that repeat another's first step are in a second one.
    assert 1 <= figure.prm_calls <= 4
    assert (point.method, point.budget, point.tokens, point.seeds) == ("greedy", None, 6.0, 1)
    assert figure.difference is None, "the baseline is not set against itself"


def test_methods_are_set_against_the_first_problem_by_problem(world, tmp_path):
    """The difference at each budget is that of the accuracies, and no method is set against another budget."""
    results = compare(tmp_path, ["majority", "mcts"])
    by_name = {(figure.method, figure.budget): figure for figure in results.figures}
    for budget in (30, 90):
        ours, base = by_name["mcts", budget], by_name["majority", budget]
        assert ours.difference == pytest.approx(ours.accuracy - base.accuracy)
        assert ours.difference_interval[0] <= ours.difference <= ours.difference_interval[1]
    assert results.baseline == "majority"
    assert by_name["greedy", None].difference is None


def test_the_same_call_gives_the_same_figures(world, tmp_path):
    """Everything but seconds depends on problems, models, methods, budgets and seeds alone; seeds differ from each other."""
    first, second = (compare(tmp_path / name, ["mcts", "gumbel"]) for name in "ab")
    assert without_times(first) == without_times(second)
    by_seed = [[row.answer for row in first.outcomes if row.seed == seed and row.method == "mcts"] for seed in (0, 1)]
    assert by_seed[0] != by_seed[1]


@pytest.mark.parametrize("wave", [1, 8])
def test_answers_that_mean_the_same_share_a_vote(world, tmp_path, monkeypatch, wave):
    """Two draws of 2 lose to 1/2, 0.5 and a fraction in LaTeX, whether twenty tokens end the search or are counted out afterwards."""
    draws = itertools.cycle(["2", "1/2", "2", "0.5", "\\frac12"])
    # Greedy samples have seed 0.
    policy = ScriptedPolicy(lambda prefix, index, seed: make_step(f"={next(draws) if seed else 2}", stop_reason=StopReason.END))
    monkeypatch.setattr(search, "build_policy", lambda config, models, name: policy)
    sections = {"problems": {"train": "", "test": "", "rule": "math"}, "run": {"workers": 1}}
    found = compare(tmp_path, [f"majority,wave={wave}"], given=problems(1, right="1/2"), budgets=[20], num_seeds=1, prm=(), **sections)
    assert {row.method: row.correct for row in found.outcomes} == {f"majority,wave={wave}": True, "greedy": False}


def test_answers_do_not_reach_the_search(world, tmp_path):
    """With other reference answers every prediction is the same, and other ones are right."""
    first = compare(tmp_path / "a").outcomes
    second = compare(tmp_path / "b", given=problems(right="2")).outcomes
    assert [row.answer for row in first] == [row.answer for row in second]
    assert all(a.correct != b.correct for a, b in zip(first, second, strict=True) if a.answer is not None)


def test_a_stopped_comparison_continues(world, tmp_path):
    """Only what is missing is run, and the end is that of a comparison that was never stopped."""
    whole, stopped, rest = InlinePool(), InlinePool(stop_after=5), InlinePool()
    expected = compare(tmp_path / "whole", pool=whole)
    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path / "stopped", pool=stopped)
    assert not (tmp_path / "stopped" / "results.json").exists()
    assert without_times(compare(tmp_path / "stopped", pool=rest)) == without_times(expected)
    assert len(rest.done) == len(whole.done) - 5
    again = InlinePool()
    compare(tmp_path / "stopped", pool=again)
    assert again.done == []


def test_methods_budgets_and_seeds_can_be_added(world, tmp_path):
    """What was run before is kept, and stands in the results as if all had been asked for at once."""
    compare(tmp_path / "grown", ["mcts"], budgets=[30], num_seeds=1)
    pool = InlinePool()
    grown = compare(tmp_path / "grown", ["mcts", "beam,wave=2"], pool=pool)
    assert without_times(grown) == without_times(compare(tmp_path / "new", ["mcts", "beam,wave=2"]))
    # Two shards each: three new cells of mcts, four of beam, and none of greedy.
    assert len(pool.done) == 2 * (3 + 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"given": problems(5)}, "differs in problems"),
        ({"prm": ()}, "differs in prm"),
        ({"search": {"max_depth": 5}}, "search.max_depth: 5 != 16"),
    ],
)
def test_another_comparison_is_refused(world, tmp_path, change, words):
    """A directory belongs to one set of problems, models and settings; the message says what differs."""
    compare(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        compare(tmp_path, **change)


def test_foreign_and_damaged_files_are_refused(world, tmp_path):
    """Other people's files stay untouched; a damaged cell and one of another method's settings are named."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(CheckpointError, match="must be empty or hold an evaluation"):
        compare(tmp_path / "other")
    with pytest.raises(CheckpointError, match="must be a directory or not exist: it is a file"):
        compare(tmp_path / "other" / "thesis.tex")
    compare(tmp_path / "ours")
    shard = tmp_path / "ours" / "cells" / "mcts" / "30" / "seed-1" / "shard-0001.json"
    held = json.loads(shard.read_text())
    held["facts"]["settings"]["c"] = 9.0
    shard.write_text(json.dumps(held))
    with pytest.raises(CheckpointError, match=r"shard-0001.json: holds results of 'mcts' with other settings \(c\)"):
        compare(tmp_path / "ours")
    shard.write_text("{")
    with pytest.raises(CheckpointError, match=r"shard-0001.json: must be a cell"):
        compare(tmp_path / "ours")
    (tmp_path / "ours" / "eval.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"eval.json: must be what an evaluation"):
        compare(tmp_path / "ours")


def test_a_run_gives_models_and_problems(tmp_path):
    """Best models or those of a round, adopted or not; a split of the run's problems, cut to the limit; or a file of one's own."""
    files = {}
    for name in ("train", "held_out", "test"):
        rows = [{"id": f"{name}-{i}", "question": f"{name} {i}", "answer": "1"} for i in range(9)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[name] = str(tmp_path / f"{name}.jsonl")
    run = report_run.write_run(
        tmp_path / "run", report_run.full_rows(), settings=report_run.config(problems={**files, "rule": "exact"}, format={"chat": False})
    )
    for number in range(4):
        save_tiny_policy(run.policy(number))
    run.prm(3).mkdir()
    asked: dict[str, Any] = {"problems": None, "split": "test", "limit": None, "number": None, "policy": None, "prm": ()}
    asked |= {"methods": [], "tokens": "64,8", "num_seeds": 2, "overrides": [], "run": run.root, "out": tmp_path / "out"}
    best = resolve_comparison(**asked)
    assert (best.policy, best.prm, best.budgets) == (str(run.policy(2)), (str(run.prm(3)),), [8, 64])
    assert [labelled.problem.id for labelled in best.problems] == [f"test-{i}" for i in range(9)]
    third = resolve_comparison(**asked | {"number": 3, "split": "held_out", "limit": 2, "prm": ("none",)})
    assert (third.policy, third.prm) == (str(run.policy(3)), ())
    assert [labelled.problem.id for labelled in third.problems] == ["held_out-0", "held_out-1"]
    own = resolve_comparison(**asked | {"problems": Path(files["train"]), "number": 0})
    assert (own.policy, own.prm, len(own.problems)) == (str(run.policy(0)), (), 9)
    with pytest.raises(CheckpointError, match="round 9 must be finished: 4 rounds are, from 0 on"):
        resolve_comparison(**asked | {"number": 9})
    with pytest.raises(ConfigError, match="--split: must be one of train, held_out, test: got 'dev'"):
        resolve_comparison(**asked | {"split": "dev"})


def test_contenders_are_read(tmp_path):
    """Settings follow a comma, ``all`` is every method, and the reference comes last."""
    named = read_contenders(["beam,wave=2,num_children=3", "majority", "majority"])
    assert [each.label for each in named] == ["beam,wave=2,num_children=3", "majority", "greedy"]
    assert (named[0].method.selection.wave, named[0].method.growth.num_children) == (2, 3)
    assert {each.label for each in read_contenders(["all"])} == set(METHODS)
    assert [each.label for each in read_contenders([])][-1] == "greedy"
    assert [each.is_point for each in read_contenders(["best-of-n,temperature=0", "mcts"])] == [True, False, True]
    for text, words in [("mtcs", "did you mean 'mcts'"), ("beam,wide=2", "unknown setting 'wide'"), ("beam,wave", "key=value")]:
        with pytest.raises(ConfigError, match=words):
            read_contenders([text])


def test_budgets_are_read():
    """Ascending and each once; anything but whole numbers above 0 is refused."""
    assert read_budgets("256, 64,64") == [64, 256]
    for text in ("", "64,", "0", "-1", "1e3", "64;128"):
        with pytest.raises(ConfigError, match="--tokens"):
            read_budgets(text)


def test_a_schedule_is_made_for_what_the_budget_pays_for(world, tmp_path):
    """Gumbel gets the mean expansions of its pilot: eight steps of three tokens each, 90 tokens pay for three and begin a fourth."""
    compare(tmp_path, ["gumbel"], budgets=[90], num_seeds=1)
    shard = json.loads((tmp_path / "cells" / "gumbel" / "90" / "seed-0" / "shard-0000.json").read_text())
    assert shard["facts"]["budget"]["num_simulations"] == 4
    assert (tmp_path / "cells" / "gumbel" / "90" / "pilot").exists()


def test_free_visits_end():
    """A search that may revisit terminals for nothing ends after as many simulations as tokens, though it never spends them."""
    right, open_step = make_step("=1", stop_reason=StopReason.END), make_step("ab;")
    policy = ScriptedPolicy(lambda prefix, index, seed: right if len(prefix) > 2 or index == 0 else open_step)
    engine = SearchEngine(
        policy=policy,
        scorer=TableScorer(lambda prefix: 0.9 if prefix[-1] == ord("1") and len(prefix) == 4 else 0.01),
        renderer=CharRenderer(),
        method=resolve_method("alphamath:paper"),
        budget=Budget(num_simulations=token_simulations(500), max_tokens=500),
        provenance=PROVENANCE,
    )
    (result,) = engine.search([Problem(id="p", question="q")])
    assert result.tree.num_simulations <= 500
    assert result.tree.generated_tokens < 500


def test_failed_samples_are_shown_and_where_all_failed_there_are_no_figures(world, tmp_path, monkeypatch, capsys):
    """A method is not wrong about questions that it could not ask."""

    def some(models_fail):
        policy = lambda config, models, policy: ScriptedPolicy(propose, fail_when=models_fail)  # noqa: E731
        monkeypatch.setattr(search, "build_policy", policy)

    some(lambda request: request.seed % 2 == 0)
    compare(tmp_path / "some", methods=("mcts", "majority"))
    assert "samples failed, the first with: scripted failure" in capsys.readouterr().err
    some(lambda request: True)
    with pytest.raises(BackendError, match=r"eval: samples must be given: all \d+ samples failed, the first with: scripted failure"):
        compare(tmp_path / "none", methods=("mcts", "majority"))
    assert not (tmp_path / "none" / "results.json").exists()


def test_outputs_show_every_method(world, tmp_path):
    """Table, Markdown, CSV, page and charts name every method; the same results give the same files, and the SVG is well-formed."""
    results = compare(tmp_path, ["majority", "beam", "mcts", "beam,wave=2"])
    hostile = replace(results.facts.problems, source="<script>alert(1)</script>")
    results = replace(results, facts=replace(results.facts, problems=hostile))
    paths = write_comparison(results, tmp_path)
    texts = [path.read_text() for path in paths]
    assert [path.name for path in paths][-1] == "comparison.html"
    assert texts == [path.read_text() for path in write_comparison(results, tmp_path)]
    for text in (render_table(results), render_markdown(results), render_csv(results), render_page(results), *texts):
        assert all(name in text for name in ("majority", "beam,wave=2", "greedy"))
    assert "<script>alert" not in render_page(results)
    for path in paths:
        if path.suffix == ".svg":
            assert "var(--paper)" in path.read_text()
            xml.dom.minidom.parse(str(path))
    lines = render_csv(results).splitlines()
    assert len(lines) == 1 + 4 * 2 + 1
    assert lines[0].startswith("method,budget,problems,seeds,accuracy,interval_low,interval_high,")


def test_table_marks_what_differs(world, tmp_path):
    """A method whose paired interval leaves out 0 has a mark; greedy stands where its tokens fit first; the best method comes first."""
    results = compare(tmp_path, ["majority", "mcts", "beam"], num_seeds=1)
    changed = []
    for figures in results.figures:
        better = figures.method == "mcts"
        difference = figures.difference_interval
        if figures.method != "majority" and figures.budget:
            difference = Interval(0.1, 0.9) if better else Interval(-0.2, -0.1) if figures.budget == 30 else Interval(-0.1, 0.1)
        given = {"accuracy": 0.9 if better else 0.2, "interval": Interval(0.1, 0.95), "difference_interval": difference}
        changed.append(replace(figures, **given))
    results = replace(results, figures=tuple(changed))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in render_markdown(results).splitlines() if line.startswith("|")]
    assert rows[0] == ["method", "30", "90", "tokens", "seconds", "PRM calls", "answered"]
    cells = {row[0]: row[1:3] for row in rows[2:]}
    assert rows[2][0] == "mcts"
    assert cells["mcts"] == ["90.0 (10.0–95.0) ▲"] * 2
    assert cells["beam"] == ["20.0 (10.0–95.0) ▼", "20.0 (10.0–95.0)"]
    assert cells["majority"] == ["20.0 (10.0–95.0)"] * 2
    assert cells["greedy"] == ["20.0 (10.0–95.0)", ""]


def test_partial_credit_has_a_column(world, tmp_path):
    """Half a point for a wrong answer: the mean is the share of right ones and half of the others; without a verifier, no column."""
    (tmp_path / "task.py").write_text("def grade(answer):\n    return 1.0 if answer == '1' else 0.5\n")
    task = {"train": "", "test": "", "verifier": f"{tmp_path / 'task.py'}:grade"}
    results = compare(tmp_path / "out", ["majority", "mcts"], num_seeds=1, problems=task)
    for figures in results.figures:
        wrong = figures.answered - figures.accuracy
        assert figures.credit == pytest.approx(figures.accuracy + 0.5 * wrong)
    assert any(0 < figures.accuracy < 1 for figures in results.figures)
    header, _, first, *_ = render_markdown(results).splitlines()
    shown = {figures.method: figures.credit for figures in results.figures}[first.split("|")[1].strip()]
    assert header.endswith("| answered | credit |") and float(first.split("|")[-2]) == pytest.approx(100 * shown, abs=0.06)
    assert "mean number at the largest budget" in render_page(results)
    assert all(figures.credit is None for figures in compare(tmp_path / "plain", ["majority"], num_seeds=1).figures)


def test_operations_have_a_column(world, tmp_path, monkeypatch):
    """Majority samples 24 tokens a problem. Its one shard of six problems forwards 100 tokens, and 30 through the PRM."""
    counts = TokenCounts(prefix_tokens=0, cached_tokens=0, generated_tokens=0, forwarded_tokens=100)
    monkeypatch.setattr(ScriptedPolicy, "token_counts", counts, raising=False)
    monkeypatch.setattr(TableScorer, "forwarded_tokens", 30, raising=False)
    policy, prm = ModelFlops(body=10**9, head=10**8, attention=7), ModelFlops(body=10**7, head=10**6, attention=7)
    monkeypatch.setattr(compare_module, "_flops", lambda _: SearchFlops(policy=policy, prm=prm))
    results = compare(tmp_path / "out", ["majority"], budgets=[20], num_seeds=1, run={"shard_size": 6})
    # (2 * 10^9 * 100 + 2 * 10^7 * 30) / 6 + 2 * 10^8 * 24 = 33.43e9 + 4.8e9
    assert results.figures[0].flops == pytest.approx((2e11 + 6e8) / 6 + 4.8e9)
    header, _, *rows = render_markdown(results).splitlines()
    assert "| seconds | GFLOPs |" in header
    (row,) = (row for row in rows if row.startswith("| majority"))
    assert row.split("|")[header.split("|").index(" GFLOPs ")].strip() == "38.2"
    assert "10^9 operations" in render_page(results)
    monkeypatch.setattr(compare_module, "_flops", lambda _: SearchFlops(policy=policy, prm=None))
    unknown = compare(tmp_path / "out", ["majority"], budgets=[20], num_seeds=1, run={"shard_size": 6})
    assert unknown.figures[0].flops is None and "GFLOPs" not in render_markdown(unknown)


def test_two_dozen_methods_are_drawn_six_to_a_panel(world, tmp_path):
    """The baseline is in every panel, every other method in one; a line and its label are two elements, in two charts."""
    results = compare(tmp_path, ["all"], budgets=[60], num_seeds=1, given=problems(1))
    page = render_page(results)
    num_panels = -(-(len(METHODS) - 2) // 6)
    assert page.count('class="baseline"') == 4 * num_panels
    assert page.count('class="line-0"') == 4 * num_panels
