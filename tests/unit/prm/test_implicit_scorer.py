"""An implicit PRM on the policy's own tokens: scores by plain forwards, the contract, and training from graded paths."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from stepladder.errors import ConfigError, DataFormatError
from stepladder.interfaces import ScoreRequest, collect_all
from stepladder.lm.settings import TrainSettings
from stepladder.prm.implicit import train_implicit_on_pairs, train_implicit_on_tokens
from stepladder.prm.layout import Layout
from stepladder.prm.reader import Solution
from stepladder.prm.readings import SurprisalReading
from stepladder.prm.specs import PRMSpec, resolve_reference
from stepladder.testing import check_scorer
from stepladder.types import PreferencePair
from tests.models import save_tiny_policy
from tests.prms import load_step_scorer
from tests.value_paths import HASH, PROVENANCE, value_row

SPEC = PRMSpec(family="implicit", beta=0.5)
PROMPTS = [(5, 6, 7), (9, 8)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [save_tiny_policy(folder / name, hidden=32, layers=1, max_positions=64, seed=seed) for seed, name in enumerate("ab")]


def prompt_length(prefix_ids):
    return next((len(prompt) for prompt in PROMPTS if prefix_ids[: len(prompt)] == prompt), None)


def scorer_of(models, spec=SPEC):
    return load_step_scorer(models[0], spec, reference=models[1], prompt_length=prompt_length)


def plain_score(models, before, step, beta=0.5):
    """The sigmoid of beta times the summed log-ratio, by two forward passes over everything."""
    sums = []
    for directory in models:
        with torch.no_grad():
            logps = AutoModelForCausalLM.from_pretrained(directory)(torch.tensor([[*before, *step]])).logits[0].double().log_softmax(-1)
        sums.append(sum(logps[len(before) - 1 + i, token].item() for i, token in enumerate(step)))
    return 1 / (1 + math.exp(-beta * (sums[0] - sums[1])))


@pytest.mark.parametrize("accumulate", [False, True])
def test_scores_are_log_ratios_of_plain_forwards(models, accumulate):
    """Of every step alone, or of the path from the prompt on; what cannot be read is None, and so is all behind it."""
    scorer = scorer_of(models, replace(SPEC, accumulate=accumulate))
    prompt, first, second, third = PROMPTS[0], (10, 11), (12,), (13, 14, 15)
    requests = [
        ScoreRequest(ticket=0, prefix_ids=prompt, branches=((first, second), (third,), ((), second), (first, (10_000,), second))),
        ScoreRequest(ticket=1, prefix_ids=prompt + first, branches=((third,), ((7,) * 60,))),
        ScoreRequest(ticket=2, prefix_ids=(1, 2), branches=((first,),)),
    ]
    got = [result.scores for result in collect_all(scorer, requests)]
    alone = plain_score(models, prompt, first)
    behind = plain_score(models, prompt, first + second) if accumulate else plain_score(models, prompt + first, second)
    later = plain_score(models, prompt, first + third) if accumulate else plain_score(models, prompt + first, third)
    expected = [(alone, behind), (plain_score(models, prompt, third),), (None, plain_score(models, prompt, second)), (alone, None, None)]
    assert got[0] == tuple(pytest.approx(each, abs=1e-5) for each in expected)
    assert got[1] == (pytest.approx((later,), abs=1e-5), (None,))
    assert got[2] == ((None,),)


def test_the_scorer_keeps_the_contract(models):
    """The shipped contract suite passes, and only new tokens are forwarded."""
    steps = [(10,), (11, 12), (13, 14, 15)]
    check_scorer(lambda: scorer_of(models), prefix_ids=PROMPTS, steps=steps, over_long_step_ids=(7,) * 70)
    scorer = scorer_of(models)
    scorer.submit([ScoreRequest(ticket=0, prefix_ids=PROMPTS[0], branches=((steps[0],), (steps[1],)))])
    assert scorer.collect()
    before = scorer.forwarded_tokens
    scorer.submit([ScoreRequest(ticket=1, prefix_ids=PROMPTS[0] + steps[1], branches=((steps[2],),))])
    assert scorer.collect()
    assert scorer.forwarded_tokens - before <= len(steps[2]) + 1


def test_outcomes_of_paths_teach_which_step_is_bad(models, tmp_path):
    """Trained on graded paths against the policy, the model scores paths with the bad token below others; the spec names its reference."""
    rng = np.random.default_rng(0)

    def paths(count):
        rows = []
        for number in range(count):
            for right in (1.0, 0.0):
                steps = [rng.integers(11, 50, 3).tolist(), [10 if right else 12, *rng.integers(13, 50, 2).tolist()]]
                rows.append(replace(value_row(rng.integers(13, 50, 4).tolist(), steps, [None, right]), problem_id=f"p{number}"))
        return rows

    settings = TrainSettings(learning_rate=3e-3, epochs=4.0, batch_size=8, schedule="constant", device="cpu")
    spec = replace(SPEC, accumulate=True, reference=str(models[0]))
    report = train_implicit_on_tokens(models[0], paths(48), tmp_path / "out", settings, renderer_hash=HASH, spec=spec)
    assert report.first_loss == pytest.approx(math.log(2), abs=1e-3)
    assert report.last_loss < 0.5
    saved = PRMSpec.load(tmp_path / "out")
    assert saved == replace(spec, renderer_hash=HASH)
    scorer = load_step_scorer(tmp_path / "out", saved, prompt_length=lambda prefix: 4)
    fresh = paths(12)
    for ticket, row in enumerate(fresh):
        branches = (tuple(map(tuple, row.step_ids)),)
        scorer.submit([ScoreRequest(ticket=ticket, prefix_ids=tuple(row.prompt_ids), branches=branches)])
    got = {}
    while results := scorer.collect():
        got |= {result.ticket: result.scores[0][1] for result in results}
    assert np.mean([got[2 * i] > got[2 * i + 1] for i in range(12)]) > 0.9
    with pytest.raises(DataFormatError, match="outcomes must differ"):
        train_implicit_on_tokens(models[0], paths(2)[:1], tmp_path / "b", settings, renderer_hash=HASH, spec=spec)
    with pytest.raises(ConfigError, match="must read the policy's tokens: got prompt 'plain'"):
        train_implicit_on_tokens(models[0], paths(2), tmp_path / "b", settings, renderer_hash=HASH, spec=replace(spec, prompt="plain"))
    with pytest.raises(DataFormatError, match="renderer"):
        train_implicit_on_tokens(models[0], paths(2), tmp_path / "b", settings, renderer_hash="other", spec=spec)


def test_pairs_of_steps_teach_the_value_of_single_steps(models, tmp_path):
    """DPO on sibling steps starts at log 2 and follows the formula after one update; the step with the bad token then has the smaller Q."""
    rng = np.random.default_rng(1)

    def pairs(count):
        rows = []
        for number in range(count):
            prompt = rng.integers(13, 50, 4).tolist()
            good, bad = ([token, *rng.integers(13, 50, 2).tolist()] for token in (10, 12))
            ids = {"prompt_ids": prompt, "chosen_ids": good, "rejected_ids": bad}
            texts = {"prompt": "", "chosen": "", "rejected": ""}
            values = {"chosen_value": 1.0, "rejected_value": 0.0, "depth": 1, "provenance": PROVENANCE}
            rows.append(PreferencePair(problem_id=f"p{number}", **ids, **texts, **values))
        return rows

    settings = TrainSettings(learning_rate=3e-3, epochs=4.0, batch_size=8, schedule="constant", device="cpu")
    spec = replace(SPEC, reference=str(models[0]))
    report = train_implicit_on_pairs(models[0], pairs(48), tmp_path / "q", settings, renderer_hash=HASH, spec=spec)
    assert report.first_loss == pytest.approx(math.log(2), abs=1e-3)
    assert report.last_loss < 0.4
    assert PRMSpec.load(tmp_path / "q") == replace(spec, renderer_hash=HASH)
    fresh = pairs(12)
    scorer = load_step_scorer(tmp_path / "q", replace(spec, renderer_hash=HASH), prompt_length=lambda prefix: 4)
    requests = [
        ScoreRequest(ticket=ticket, prefix_ids=tuple(pair.prompt_ids), branches=((tuple(pair.chosen_ids),), (tuple(pair.rejected_ids),)))
        for ticket, pair in enumerate(fresh)
    ]
    scores = np.array([[branch[0] for branch in result.scores] for result in collect_all(scorer, requests)], dtype=float)
    assert np.mean(scores[:, 0] > scores[:, 1]) > 0.9
    # A score is sigmoid(Q), and Q the log-ratio of the step alone.
    expected = plain_score([tmp_path / "q", models[0]], fresh[0].prompt_ids, fresh[0].chosen_ids)
    assert scores[0, 0] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ConfigError, match="single steps: got a spec that accumulates"):
        train_implicit_on_pairs(models[0], fresh, tmp_path / "b", settings, renderer_hash=HASH, spec=replace(spec, accumulate=True))
    with pytest.raises(DataFormatError, match="at least one row"):
        train_implicit_on_pairs(models[0], [], tmp_path / "b", settings, renderer_hash=HASH, spec=spec)


def test_references_are_found_and_other_readers_refused(models, tmp_path):
    """A dot stands for the model's own directory; without any name it must be told; text is not read."""
    assert resolve_reference(tmp_path / "a", replace(SPEC, reference="../b")) == str((tmp_path / "b").resolve())
    assert resolve_reference("m", replace(SPEC, reference="hub/id")) == "hub/id"
    assert resolve_reference("m", replace(SPEC, reference="hub/id"), "other") == "other"
    with pytest.raises(ConfigError, match="names none"):
        resolve_reference("m", SPEC)
    reader = scorer_of(models)._reader
    with pytest.raises(ConfigError, match="no text"):
        reader.score([Solution(question="Q", steps=("a",))])


@pytest.mark.parametrize("accumulate", [False, True])
def test_observations_are_in_no_sum(models, accumulate):
    """The log-ratio of a path leaves its observations out, though they are context of the steps after them."""
    scorer = scorer_of(models, replace(SPEC, accumulate=accumulate))
    prompt, first, observed, second = PROMPTS[0], (10, 11), (40, 41, 42), (12, 13)
    prefix = prompt + first + observed
    request = ScoreRequest(ticket=0, prefix_ids=prefix, branches=((second,),), observations=((5, 8),))
    ((score,),) = collect_all(scorer, [request])[0].scores
    own, before = plain_score(models, prefix, second), plain_score(models, prompt, first)
    logits = [math.log(each / (1 - each)) for each in (own, before)]
    assert score == pytest.approx(1 / (1 + math.exp(-(sum(logits) if accumulate else logits[0]))), abs=1e-5)


@pytest.mark.parametrize("center", [0.0, 3.0])
def test_a_surprisal_scores_by_its_distance_from_the_wanted_one(models, center):
    """exp(-(s - center)^2 / (2 width^2)) of the mean -log p of a step's sampled tokens, by a plain forward; observations do not count."""
    spec = PRMSpec(family="surprisal", center=center, width=2.0)
    scorer = load_step_scorer(models[0], spec, prompt_length=prompt_length)
    prompt, first, seen, second = PROMPTS[0], (10, 11, 12), (20, 21), (13, 14)

    def plain(before, step):
        with torch.no_grad():
            model = AutoModelForCausalLM.from_pretrained(models[0])
            logps = model(torch.tensor([[*before, *step]])).logits[0].double().log_softmax(-1)
        surprisal = -np.mean([logps[len(before) - 1 + i, token].item() for i, token in enumerate(step)])
        return math.exp(-((surprisal - center) ** 2) / 8)

    requests = [
        ScoreRequest(ticket=0, prefix_ids=prompt, branches=((first, second), ((), second))),
        ScoreRequest(ticket=1, prefix_ids=(*prompt, *first, *seen), branches=((second,),), observations=((6, 8),)),
    ]
    got = [result.scores for result in collect_all(scorer, requests)]
    assert got[0][0] == pytest.approx((plain(prompt, first), plain((*prompt, *first), second)), abs=1e-5)
    assert got[0][1] == (None, pytest.approx(plain(prompt, second), abs=1e-5))
    assert got[1][0] == pytest.approx((plain((*prompt, *first, *seen), second),), abs=1e-5)


def test_the_surprisal_of_the_obvious_and_of_noise_is_worth_less():
    """By hand: tokens of -log p 0, 1 and 4 against center 1 and width 1 score exp(-1/2), 1 and exp(-9/2)."""
    model: Any = SimpleNamespace(logps=lambda paths, starts: [np.array([0.0, -1.0, -4.0])])
    reading = SurprisalReading(model, PRMSpec(family="surprisal", center=1.0, width=1.0))
    layout = Layout(token_ids=(1, 2, 3, 4), begin=1, reads=(1, 2, 3))
    assert reading.scores([layout])[0] == pytest.approx([math.exp(-0.5), 1.0, math.exp(-4.5)])
    # An observation that the model calls impossible, before a token of -log p 1.
    observed: Any = SimpleNamespace(logps=lambda paths, starts: [np.array([-np.inf, -1.0])])
    reading = SurprisalReading(observed, PRMSpec(family="surprisal", center=1.0, width=1.0))
    assert reading.scores([Layout(token_ids=(1, 2, 3), begin=1, reads=(2,), observations=((1, 2),))])[0].tolist() == [1.0]
    with pytest.raises(ConfigError, match="a center of at least 0 and a positive width"):
        PRMSpec(family="surprisal", width=0.0)
