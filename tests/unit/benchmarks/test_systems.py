"""The comparison of systems: every recipe's settings load at the budget of all, and pass the checks of a run."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.glyph_variants import VARIANTS, prepare_variant, variant_settings
from benchmarks.many_runs import processor_time, processor_time_added
from benchmarks.short_keys import grade
from benchmarks.systems import STAGES, Size, system_config
from stepladder.embedded import GlyphTask
from stepladder.embedded.glyphs import GlyphProblem, make_world, split_of
from stepladder.loops.assembly.checks import check_labels, check_searches
from stepladder.loops.assembly.problem_sets import build_problems
from stepladder.loops.assembly.problems import build_verifier
from stepladder.loops.config.problems import ProblemsConfig
from stepladder.loops.config.schedule import round_config
from stepladder.recipes import recipes

SIZE = Size(rounds=2, tokens=400, updates=61, prm_updates=50)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", recipes())
def test_every_system_has_the_same_tokens_and_updates(name: str, variant: str, tmp_path: Path) -> None:
    """In every round the stages of the policy share all updates, and search and samples for the PRM the tokens, a quarter at least."""
    config = system_config(variant_settings(tmp_path, VARIANTS[variant]), name, SIZE, seed=7, solution_tokens=20.0)
    for number in (1, 2):
        settings = round_config(config, number)
        check_searches(settings)
        check_labels(settings)
        stages: list[Any] = [getattr(settings, stage) for stage in STAGES if getattr(settings, stage).enabled]
        assert sum(stage.max_updates or 0 for stage in stages) == SIZE.updates
        assert settings.prm.train.max_updates == SIZE.prm_updates
        samples = settings.prm.rollouts * 20 if config.prm.enabled else 0
        assert settings.search.max_tokens == max(SIZE.tokens - samples, SIZE.tokens // 4)
        assert settings.search.simulations == SIZE.tokens or "commit" in settings.search.options
        assert (settings.run.seed, settings.gate.max_drop, settings.run.update_every) == (7, 1.0, None)


def test_noisy_keys_let_wrong_answers_pass_in_training_only(tmp_path: Path) -> None:
    """A training answer counts by its last digit; answers of held-out and test problems count as they are."""
    variant, task = VARIANTS["noisy"], GlyphTask(num_train=5, num_held_out=5, num_test=5, num_warmup=5)
    prepare_variant(tmp_path, variant, task, seed=3)
    config = ProblemsConfig.model_validate(variant_settings(tmp_path, variant)["problems"])
    world = make_world(task, seed=3)
    for split, problems in build_problems(config, seed=3).items():
        with build_verifier(config, problems) as verifier:
            for labelled in problems:
                right = world.answer(GlyphProblem.from_question(labelled.problem.question))
                same_end, other_end, short = right[1:-1] + right[0] + right[-1], right[-1] + right[:-1], right[-1]
                asked = [(labelled.problem.id, answer) for answer in (right, same_end, other_end, short)]
                assert [verdict.correct for verdict in verifier.grade(asked)] == [True, split == "train", False, False]


def test_a_key_counts_from_its_end() -> None:
    """A key of two digits takes what ends in both; a whole key takes itself."""
    assert [grade(answer, "45") for answer in ("12345", "12354", "345", "012345")] == [True, False, False, False]
    assert [grade(answer, "12345") for answer in ("12345", "02345")] == [True, False]


def test_the_deep_warm_up_has_mostly_shorter_programs(tmp_path: Path) -> None:
    """Its examples have the lengths of the variant and programs of their own split; all problems have six glyphs, six are misread."""
    variant, task = VARIANTS["deep"], GlyphTask(num_train=5, num_held_out=5, num_test=5)
    prepare_variant(tmp_path, variant, task, seed=3)
    plain = variant_settings(tmp_path, variant)
    examples = [json.loads(line) for line in Path(plain["warmup"]["solutions"]).read_text().splitlines()]
    assert len({example["id"] for example in examples}) == len(examples) == task.num_warmup
    programs = [GlyphProblem.from_question(example["question"]).program for example in examples]
    assert Counter(map(len, programs)) == variant.examples and variant.examples[6] < task.num_warmup / 2
    assert [example["solution"].count("\n") for example in examples] == [len(program) for program in programs]
    assert {split_of(program, seed=3) for program in programs} == {"warmup"}
    problems = build_problems(ProblemsConfig.model_validate(plain["problems"]), seed=3)
    found = [GlyphProblem.from_question(each.problem.question) for split in problems.values() for each in split]
    assert {len(problem.program) for problem in found} == {6} and len(found) == 15


def test_the_processor_time_of_a_continued_run_adds_up(tmp_path: Path) -> None:
    """Work of a fifth of a second, twice, also if the second part fails; waiting costs nothing."""
    file = tmp_path / "run.cpu-seconds"
    assert processor_time(file) is None
    with processor_time_added(file):
        _work(0.2)
        time.sleep(0.2)
    first = processor_time(file)
    assert first == pytest.approx(0.2, abs=0.1)
    with pytest.raises(ValueError), processor_time_added(file):
        _work(0.2)
        raise ValueError
    assert processor_time(file) == pytest.approx(first + 0.2, abs=0.1)


def _work(seconds: float) -> None:
    begin = time.process_time()
    while time.process_time() - begin < seconds:
        pass
