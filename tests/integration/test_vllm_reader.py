"""Public process reward models on a real vLLM engine; the transformers reader, itself tested against plain logits, is the oracle."""

import json

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.errors import CheckpointError, ConfigError
from stepladder.lm.loaded_models import LoadedModels
from stepladder.lm.settings import EngineSettings
from stepladder.lm.vllm_engine import VLLMEngine
from stepladder.policy.prompts import PromptRenderer, StepFormat
from stepladder.prm.checkpoints import load_bare_lm
from stepladder.prm.reader import Solution
from stepladder.prm.served import CachedModel
from stepladder.prm.specs import NAMED_SPECS, PRMSpec
from stepladder.prm.vllm_scorers import VLLMLogps
from tests.models import save_tiny_policy, save_tiny_scorer, tiny_scorer
from tests.prm_models import llama3_tokenizer, mistral_tokenizer, qwen_tokenizer, save_head_model, save_language_model
from tests.prms import load_reader

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

CONTEXT = 384
SETTINGS = EngineSettings(max_batch=32)
QUESTION = "What is 2 + 3 {really}? Say \\boxed{5}."
STEPS = ("Step 1: Add 2 + 3 - 0.", "Step 2: That is {5}.", "", "So 5")


def _save(folder, name, seed=0):
    """Save a model of a family's architecture, with the heads of 32 dimensions that vLLM's CPU build needs."""
    options = {"max_positions": CONTEXT, "hidden": 64, "seed": seed}
    if name in ("qwen2.5-math-prm", "skywork-o1-open-prm", "trl"):
        head = {"qwen2.5-math-prm": "mlp", "skywork-o1-open-prm": "v_head", "trl": "linear"}[name]
        return save_head_model(folder, qwen_tokenizer(), head=head, num_outputs=NAMED_SPECS[name].spec.num_outputs, **options)
    tokenizer, arch = {
        "math-shepherd": (mistral_tokenizer, "mistral"),
        "rlhflow-llama": (llama3_tokenizer, "llama"),
        "implicit": (llama3_tokenizer, "llama"),
    }[name]
    return save_language_model(folder, tokenizer(), arch=arch, **options)


def _load(folder, spec, models, *, settings=SETTINGS, **options):
    return load_reader(folder, spec, models=models, backend="vllm", settings=settings, **options)


def _tie(folder):
    """Let a saved model predict with its input embeddings, and leave the head out of the checkpoint."""
    config = AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings = True
    AutoModelForCausalLM.from_pretrained(folder, config=config).save_pretrained(folder)


@pytest.mark.parametrize("name", ["qwen2.5-math-prm", "skywork-o1-open-prm", "trl", "math-shepherd", "rlhflow-llama", "implicit"])
def test_scores_are_those_of_the_transformers_reader(name, tmp_path):
    """Two layers and TRL's value head on a body, language models with and without a head of their own, two models: within 1e-5.

    Solutions share steps, one has an empty step, one goes beyond the context and one has no step at all.
    """
    folder = _save(tmp_path / "own", name)
    if name == "rlhflow-llama":
        _tie(folder)
    spec, options = NAMED_SPECS[name].spec, {}
    if name == "implicit":
        options["reference"] = _save(tmp_path / "reference", name, seed=1)
    models = LoadedModels()
    reader, oracle = _load(folder, spec, models, **options), load_reader(folder, spec, **options)
    paths = (STEPS, STEPS[:1], (*STEPS[:2], "or 6"), (*STEPS[:2], "7 " * CONTEXT, "8"), ())
    solutions = [Solution(question=QUESTION, steps=steps) for steps in paths]
    try:
        for got, expected in zip(reader.score(solutions), oracle.score(solutions), strict=True):
            assert [score is None for score in got] == [score is None for score in expected]
            np.testing.assert_allclose(np.array(got, float), np.array(expected, float), atol=1e-5)
        assert len({score for scores in reader.score(solutions) for score in scores}) > 4
    finally:
        models.release()


@pytest.mark.parametrize("name", ["trl", "tokens", "implicit", "ensemble"])
def test_prm_score_and_eval_are_the_same_on_either_backend(name, tmp_path):
    """``--backend vllm`` gives the scores and figures of ``--backend transformers``: text, the policy's tokens, two models, an ensemble."""
    options = []
    if name == "tokens":
        model, step_format = save_tiny_scorer(tmp_path / "model", max_positions=CONTEXT), StepFormat()
        step_format.save(model)
        PRMSpec(renderer_hash=PromptRenderer(tiny_scorer()[1], step_format).hash).save(model)
    elif name == "ensemble":
        model = tmp_path / "model"
        for number in range(2):
            NAMED_SPECS["trl"].spec.save(_save(model / f"member-{number:02d}", "trl", seed=number))
    else:
        model, options = _save(tmp_path / "model", name), ["--spec", name]
        options += ["--reference", str(_save(tmp_path / "reference", name, seed=1))] if name == "implicit" else []
    rows = [{"question": f"1+{i}", "steps": ["is", f"{i}", "so"], "labels": [1, i % 2, 0]} for i in range(4)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = []
    for backend in ("transformers", "vllm"):
        scores, figures = tmp_path / f"{backend}.jsonl", tmp_path / f"{backend}.json"
        shared = ["--model", str(model), *options, "--backend", backend, "--dtype", "float32"]
        for words in (["score", str(file), "--output", str(scores)], ["eval", str(file), "--json", str(figures)]):
            done = CliRunner().invoke(app, ["prm", *words, *shared])
            assert done.exit_code == 0, done.output
        steps = np.array([json.loads(line)["scores"] for line in scores.read_text().splitlines()], float)
        found.append((steps, json.loads(figures.read_text())["steps"]))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-5)
    assert np.isfinite(found[0][0]).all() and len(np.unique(found[0][0].round(6))) > 4
    assert found[0][1]["auc"] == pytest.approx(found[1][1]["auc"]) and found[0][1]["brier"] == pytest.approx(found[1][1]["brier"], abs=1e-4)


def test_a_new_step_forwards_what_lies_behind_the_last_whole_block(tmp_path):
    """Scored step by step, a step costs its own tokens and those of the last begun block of 32; earlier steps cost nothing."""
    spec = NAMED_SPECS["trl"].spec
    models = LoadedModels()
    reader = _load(_save(tmp_path, "trl"), spec, models)
    steps = tuple(f"step {i} has some words" for i in range(6))
    ends = [len(reader.layout.lay_out(QUESTION, steps[:count]).token_ids) for count in range(1, 7)]
    try:
        for i, end in enumerate(ends):
            before = reader.forwarded_tokens
            scores = reader.score([Solution(question=QUESTION, steps=steps[: i + 1])])[0]
            assert reader.forwarded_tokens - before == end - (ends[i - 1] // 32 * 32 if i else 0)
        assert reader.score([Solution(question=QUESTION, steps=steps)])[0] == scores
        assert reader.forwarded_tokens - before == ends[5] - ends[4] // 32 * 32
        reader.reset()
        np.testing.assert_allclose(reader.score([Solution(question=QUESTION, steps=steps)])[0], scores, atol=1e-6)
        assert reader.forwarded_tokens - before > ends[5]
    finally:
        models.release()


def test_log_probabilities_behind_a_long_prefix_use_the_cache(tmp_path):
    """Four siblings of five tokens behind 100: three blocks of 32 once; where the cache reaches the first token asked for, all again."""
    folder = _save(tmp_path, "implicit")
    engine = VLLMEngine(folder, task="generate", settings=SETTINGS)
    model = VLLMLogps(engine)
    oracle = CachedModel.of_language_model(*load_bare_lm(folder, device="cpu"))
    prefix = tuple(range(20, 120))
    paths = [(*prefix, 30 + i, 40, 50, 60, 70) for i in range(4)]
    try:
        for got, expected in zip(model.logps(paths, [100] * 4), oracle.logps(paths, [100] * 4), strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5)
        assert model.forwarded_tokens == 105 + 3 * (105 - 96)
        np.testing.assert_allclose(model.logps(paths[:1], [96])[0], oracle.logps(paths[:1], [96])[0], atol=1e-5)
        assert model.forwarded_tokens == 105 + 3 * (105 - 96) + (105 - 96) + 105
    finally:
        engine.close()


def test_a_search_is_guided_by_a_public_prm_on_vllm(tmp_path):
    """``solve`` with ``prm.backend=vllm`` finds the tree that it finds with the embedded engine, with the same scores."""
    policy, prm = save_tiny_policy(tmp_path / "policy"), _save(tmp_path / "prm", "trl")
    NAMED_SPECS["trl"].spec.save(prm)
    trees = []
    for backend in ("transformers", "vllm"):
        out = tmp_path / f"{backend}.json"
        arguments = ["solve", "1+2", "--policy", str(policy), "--prm", str(prm), "--simulations", "6", "--tree", str(out)]
        settings = [
            f"prm.backend={backend}",
            "search.max_step_tokens=16",
            "search.max_depth=3",
            "policy.device=cpu",
            "policy.dtype=float32",
        ]
        done = CliRunner().invoke(app, [*arguments, *(word for setting in settings for word in ("--set", setting))])
        assert done.exit_code == 0, done.output
        trees.append(json.loads(out.read_text()))
    assert trees[0]["token_ids"] == trees[1]["token_ids"]
    scores = [np.array(tree["scores"], float) for tree in trees]
    np.testing.assert_allclose(*scores, atol=1e-5)
    assert np.isfinite(scores[0]).sum() > 5


def test_what_does_not_fit_is_said_in_one_sentence(tmp_path):
    """A head with other outputs, another tokenizer, an implicit model without its reference, and options that a body cannot take."""
    head, language = _save(tmp_path / "head", "trl"), _save(tmp_path / "language", "math-shepherd")
    with pytest.raises(CheckpointError, match="must have 1 outputs per token: got 2"):
        _load(head, NAMED_SPECS["ppm"].spec, LoadedModels())
    with pytest.raises(CheckpointError, match="must have id 12"):
        _load(language, NAMED_SPECS["rlhflow-llama"].spec, LoadedModels())
    with pytest.raises(ConfigError, match="give --reference"):
        _load(language, NAMED_SPECS["implicit"].spec, LoadedModels())
    with pytest.raises(ConfigError, match="'load_format'"):
        _load(head, NAMED_SPECS["trl"].spec, LoadedModels(), settings=EngineSettings(options={"load_format": "dummy"}))
