"""Value heads on a policy's own hidden states: trained alone, saved beside or inside the policy, and refused where they do not belong."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from stepladder.digests import digest_of
from stepladder.errors import CheckpointError, ConfigError
from stepladder.interfaces import ScoreRequest, collect_all
from stepladder.lm.loaded_models import LoadedModels
from stepladder.lm.loading import load_causal_lm, load_tokenizer
from stepladder.lm.settings import EngineSettings, TrainSettings
from stepladder.loops.assembly.checks import check_model
from stepladder.loops.assembly.prms import MemberAccess, Sampler
from stepladder.loops.assembly.scorers import check_probes
from stepladder.loops.config.models import PolicyConfig
from stepladder.loops.config.problems import ProblemsConfig
from stepladder.loops.config.run import Config
from stepladder.policy.backends.transformers import TransformersPolicy
from stepladder.policy.prompts import StepFormat
from stepladder.prm.checkpoints import load_head
from stepladder.prm.openers import open_probe
from stepladder.prm.probes import HEAD_FILE, copy_head
from stepladder.prm.sources import VALUE_HEAD_FOLDER, PRMSource, check_backend, has_value_head, prm_members
from stepladder.prm.specs import PRMSpec
from stepladder.prm.target_rows import group_rows, pair_rows, target_rows
from stepladder.prm.value_training import train_value
from stepladder.types import PreferencePair
from tests.backends import samples_of, step_request
from tests.models import save_tiny_policy
from tests.value_paths import HASH, PROVENANCE, auc, scores_of, toy_rows, value_row

SETTINGS = TrainSettings(learning_rate=3e-2, epochs=8.0, batch_size=16, device="cpu")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy."""
    return save_tiny_policy(tmp_path_factory.mktemp("policies") / "policy", hidden=32, layers=1, max_positions=64)


@pytest.fixture(scope="module", params=["step-end", "before-end"])
def probe(request: pytest.FixtureRequest, policy: Path) -> Path:
    """A head that was trained on the toy task, beside its policy."""
    out = policy.with_name(f"probe-{request.param}")
    spec = PRMSpec(family="probe", body="../policy", read=request.param)
    train_value(policy, toy_rows(256, seed=0), out, SETTINGS, renderer_hash=HASH, spec=spec)
    return out


def test_only_a_small_head_is_trained_and_saved(policy: Path, probe: Path) -> None:
    """The directory holds 32 weights and a bias; the policy's files are what they were, and the scores tell good steps from bad ones.

    They do so a little better than chance: the body is random, so a linear head finds little in it.
    """
    assert load_head(probe, PRMSpec.load(probe)).weight.shape == (1, 32)
    assert (probe / HEAD_FILE).stat().st_size < 1000
    assert not (probe / "model.safetensors").exists()
    rows = toy_rows(64, seed=1)
    good = np.array([target > 0.5 for row in rows for target in row.targets])
    assert auc(scores_of(probe, rows), good) > 0.6
    fresh = save_tiny_policy(probe.with_name("again"), hidden=32, layers=1, max_positions=64)
    assert digest_of(fresh / "model.safetensors") == digest_of(policy / "model.safetensors")


def test_scores_are_those_of_a_whole_forward(policy: Path, probe: Path) -> None:
    """sigmoid(w h + b) with the policy's last hidden state at the last token of a step, or at the one before it."""
    spec, rows = PRMSpec.load(probe), toy_rows(8, seed=2)
    model, head = AutoModelForCausalLM.from_pretrained(policy), load_head(probe, spec)
    expected = []
    for row in rows:
        ids, end = [*row.prompt_ids, *(token for step in row.step_ids for token in step)], len(row.prompt_ids)
        with torch.no_grad():
            hidden = model.model(torch.tensor([ids])).last_hidden_state[0]
        for step in row.step_ids:
            end += len(step)
            expected.append(torch.sigmoid(head(hidden[end - (1 if spec.read == "step-end" else 2)])).item())
    np.testing.assert_allclose(scores_of(probe, rows), expected, atol=1e-5)


def test_the_policy_that_samples_lends_its_body(policy: Path, probe: Path) -> None:
    """What it samples is scored without a pass of the scorer's own; without it, the named policy is loaded, with the same scores."""
    spec, source = PRMSpec.load(probe), PRMSource(model=str(probe), device="cpu")
    sampler = TransformersPolicy(load_causal_lm(policy, device="cpu"), load_tokenizer(policy), StepFormat(answer_pattern=r"=(\d)"))
    scorers = []
    for shared in (Sampler(str(policy), sampler), None):
        access = MemberAccess(LoadedModels(), EngineSettings(), sampler=shared)
        scorers.append(open_probe(source, spec, access).load(len))
    request = step_request(0, (5, 6, 7), 4, max_step_tokens=5)
    samples = samples_of(sampler, [request])
    branches = tuple((steps[0].token_ids,) for steps in samples[0])
    shared, own = (collect_all(scorer, [ScoreRequest(ticket=0, prefix_ids=(5, 6, 7), branches=branches)])[0].scores for scorer in scorers)
    np.testing.assert_allclose(shared, own, atol=1e-5)
    assert scorers[0].forwarded_tokens == 0
    assert scorers[1].forwarded_tokens > 3


def test_targets_stand_where_the_head_reads() -> None:
    """One token before the end: prompt of 2, steps of 2, 1 and 3 tokens are read at 2, 3 and 6; compared paths end there, too."""
    row = value_row([5, 6], [[7, 8], [9], [7, 7, 7]], [0.25, 0.5, 0.75])
    (made,) = target_rows([row], vocabulary=20, dropped={}, lag=1)
    assert (made.positions, made.ids) == ([2, 3, 6], [5, 6, 7, 8, 9, 7, 7])
    (every,) = target_rows([row], vocabulary=20, dropped={}, supervise="every-token", lag=1)
    assert every.positions == [1, 2, 3, 4, 5, 6]
    others = [value_row([5], [[7, 4]], [0.2]), value_row([5], [[8, 4]], [0.9])]
    (group,) = group_rows(others, vocabulary=20, dropped={}, lag=1)
    assert group.paths == [[5, 7], [5, 8]]
    sides = {"chosen_ids": [7, 4], "rejected_ids": [8, 4], "chosen": "", "rejected": "", "chosen_value": 1.0, "rejected_value": 0.0}
    pair = PreferencePair(problem_id="p", depth=1, prompt_ids=[5], prompt="", provenance=PROVENANCE, **sides)
    (compared,) = pair_rows([pair], vocabulary=20, dropped={}, lag=1)
    assert compared.paths == [[5, 7], [5, 8]]


def test_a_two_head_model_is_one_directory(policy: Path, probe: Path, tmp_path: Path) -> None:
    """With the head inside, the directory is still a plain language model, and as a PRM it is its head; the head can be taken out again."""
    both = shutil.copytree(policy, tmp_path / "both")
    shutil.copytree(probe, both / VALUE_HEAD_FOLDER)
    replace(PRMSpec.load(probe), body="..").save(both / VALUE_HEAD_FOLDER)
    ids, rows = torch.tensor([[5, 6, 7]]), toy_rows(4, seed=3)
    plain, two = (AutoModelForCausalLM.from_pretrained(each)(ids).logits for each in (policy, both))
    torch.testing.assert_close(two, plain)
    assert has_value_head(str(both))
    assert prm_members(str(both)) == [str(both / VALUE_HEAD_FOLDER)]
    np.testing.assert_array_equal(scores_of(both / VALUE_HEAD_FOLDER, rows), scores_of(probe, rows))
    copy_head(both, tmp_path / "head", body="../both")
    np.testing.assert_array_equal(scores_of(tmp_path / "head", rows), scores_of(probe, rows))


def test_an_earlier_head_is_trained_on(policy: Path, probe: Path, tmp_path: Path) -> None:
    """Without updates to speak of, the head is the earlier one."""
    spec = replace(PRMSpec.load(probe), body=str(policy))
    still = replace(SETTINGS, learning_rate=1e-9, epochs=1.0, max_updates=1)
    train_value(policy, toy_rows(16, seed=4), tmp_path / "out", still, renderer_hash=HASH, spec=spec, head_from=probe)
    heads = [load_head(each, spec).weight for each in (tmp_path / "out", probe)]
    torch.testing.assert_close(*heads, rtol=0, atol=1e-7)


def test_heads_and_models_in_each_others_places_are_refused(policy: Path, probe: Path, tmp_path: Path) -> None:
    """One sentence each: a head on another policy, a head as the model to train whole, a spec with half of a probe."""
    wider = save_tiny_policy(tmp_path / "wider", hidden=64, layers=1)
    foreign = shutil.copytree(probe, tmp_path / "foreign")
    replace(PRMSpec.load(probe), body=str(wider)).save(foreign)
    with pytest.raises(CheckpointError, match="takes 32 numbers per token, and the policy's hidden states have 64"):
        scores_of(foreign, toy_rows(1, seed=0))
    with pytest.raises(ConfigError, match=r"must have a body of its own: it is a value head on the body of \.\./policy"):
        train_value(probe, toy_rows(8, seed=0), tmp_path / "out", SETTINGS, renderer_hash=HASH)
    with pytest.raises(ConfigError, match=r"must be a language model: .* is a value head on the body of \.\./policy -- name that policy"):
        check_model(PolicyConfig(model=str(probe)))
    served = Config(problems=ProblemsConfig(train="", test=""), policy=PolicyConfig(model=str(policy), backend="vllm"))
    with pytest.raises(ConfigError, match=r"which only the backend 'transformers' gives: got policy\.backend 'vllm'"):
        check_probes(served, [str(probe)])
    with pytest.raises(ConfigError, match="a PRM of the family probe runs on the embedded engine: got 'vllm'"):
        check_backend(PRMSource(model=str(probe), backend="vllm"))
    with pytest.raises(ConfigError, match="needs a body for the family"):
        PRMSpec(family="probe")
    with pytest.raises(ConfigError, match="needs a body for the family"):
        PRMSpec(body="../policy")
    with pytest.raises(ConfigError, match="needs the family 'probe' for the read 'before-end'"):
        PRMSpec(read="before-end")
