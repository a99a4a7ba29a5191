"""Every family on every backend in both views, and a family that somebody else wrote."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.errors import ConfigError
from stepladder.interfaces import ScoreRequest, StepScorer, collect_all
from stepladder.lm.loaded_models import LoadedModels, Role
from stepladder.loops.assembly.prms import open_solution_scorer
from stepladder.loops.assembly.scorers import build_scorer
from stepladder.loops.config.load import with_overrides
from stepladder.loops.config.run import Config
from stepladder.policy.prompts import PromptRenderer, StepFormat
from stepladder.prm.families import FAMILIES, Family
from stepladder.prm.new_models import initialise_prm
from stepladder.prm.reader import Scores, Solution
from stepladder.prm.sources import PRMSource
from stepladder.prm.specs import NAMED_SPECS, PRMSpec
from stepladder.types import Problem
from tests.fake_vllm import FakeVLLMEngine, install_fake_vllm
from tests.models import save_tiny_policy, tiny_tokenizer
from tests.prm_models import llama3_tokenizer, mistral_tokenizer, qwen_tokenizer, save_head_model, save_language_model

FORMAT = StepFormat()
PROBLEM = Problem(id="p", question="1+12")
STEPS = ("is", "so", "end")
LM = {"max_positions": 512}


def _renderer() -> PromptRenderer:
    return PromptRenderer(tiny_tokenizer("chars"), FORMAT)


def _save_head(folder: Path, name: str, head: str) -> Path:
    spec = NAMED_SPECS[name].spec
    return save_head_model(folder / "model", qwen_tokenizer(), head=head, num_outputs=spec.num_outputs, max_positions=512)


def _save_tokens(folder: Path, spec: PRMSpec) -> Path:
    """Save a model of the policy's tokens with its format and spec."""
    start, directory = save_tiny_policy(folder / "start"), folder / "model"
    model, spec = initialise_prm(start, renderer_hash=_renderer().hash, seed=0, spec=spec, device="cpu")
    # Scores that lie apart: a new head is nearly zero.
    _linear_head(model).weight.data *= 10.0
    model.save_pretrained(directory)
    spec.save(directory)
    tiny_tokenizer("chars").save_pretrained(directory)
    FORMAT.save(directory)
    return directory


def _linear_head(model: Any) -> torch.nn.Linear:
    return model.score


def _save_implicit_tokens(folder: Path) -> Path:
    model = save_tiny_policy(folder / "model", seed=1)
    save_tiny_policy(folder / "reference", seed=2)
    FORMAT.save(model)
    spec = PRMSpec(family="implicit", beta=0.5, reference="../reference")
    replace(spec, renderer_hash=_renderer().hash).save(model)
    return model


def _save_implicit_text(folder: Path) -> Path:
    save_language_model(folder / "reference", llama3_tokenizer(), arch="llama", seed=3, **LM)
    model = save_language_model(folder / "model", llama3_tokenizer(), arch="llama", **LM)
    replace(NAMED_SPECS["implicit"].spec, beta=0.5, reference="../reference").save(model)
    return model


def _save_judge(folder: Path) -> Path:
    model = save_language_model(folder / "model", llama3_tokenizer(), arch="llama", **LM)
    # A verdict that a random model gives now and then: which half of the alphabet a letter is of.
    replace(NAMED_SPECS["judge"].spec, good="a", bad="b", verdict="([ab])", num_verdicts=8).save(model)
    return model


class Row(NamedTuple):
    """A row of the table."""

    family: str
    save: Callable[[Path], Path]
    spec: str | None = None
    """Name of a spec, where the model's directory has none."""


ROWS = {
    "value head, tokens": Row("value-head", lambda folder: _save_tokens(folder, PRMSpec())),
    "bins, tokens": Row("value-head", lambda folder: _save_tokens(folder, PRMSpec(bins=4, transform="identity"))),
    "two classes, tokens": Row("two-class", lambda folder: _save_tokens(folder, PRMSpec(family="two-class"))),
    "implicit, tokens": Row("implicit", _save_implicit_tokens),
    "Qwen's two classes": Row("two-class", lambda folder: _save_head(folder, "qwen2.5-math-prm", "mlp"), "qwen2.5-math-prm"),
    "Skywork's value head": Row("value-head", lambda folder: _save_head(folder, "skywork-o1-open-prm", "v_head"), "skywork-o1-open-prm"),
    "pairwise PPM": Row("value-head", lambda folder: _save_head(folder, "ppm", "linear"), "ppm"),
    "Math-Shepherd's tokens": Row(
        "vocabulary", lambda folder: save_language_model(folder / "m", mistral_tokenizer(), arch="mistral", **LM), "math-shepherd"
    ),
    "RLHFlow's tokens": Row(
        "vocabulary", lambda folder: save_language_model(folder / "m", llama3_tokenizer(), arch="llama", **LM), "rlhflow-llama"
    ),
    "implicit, text": Row("implicit", _save_implicit_text),
    "judge": Row("judge", _save_judge),
}


def _config(*overrides: str) -> Config:
    base = {"policy": {"model": "m", "device": "cpu"}, "problems": {"train": "t.jsonl", "test": "u.jsonl"}}
    return with_overrides(Config.model_validate(base), list(overrides))


def _scores_in_a_search(scorer: StepScorer, renderer: PromptRenderer) -> Scores:
    """Return the scores of the steps, the first two behind the prompt and the last behind these."""
    first, second, third = renderer.encode_steps("".join(f"{step}\n" for step in STEPS))
    prompt = renderer.prompt_ids(PROBLEM)
    requests = [
        ScoreRequest(ticket=0, prefix_ids=prompt, branches=((first, second),)),
        ScoreRequest(ticket=1, prefix_ids=prompt + first + second, branches=((third,),)),
    ]
    begin, rest = collect_all(scorer, requests)
    return (*begin.scores[0], *rest.scores[0])


@pytest.mark.parametrize("name", ROWS)
def test_both_views_on_both_backends_give_the_same_scores(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a search sees is what a written solution gets, and vLLM's numbers are those of transformers."""
    row = ROWS[name]
    model = str(row.save(tmp_path))
    renderer = _renderer()
    started = install_fake_vllm(monkeypatch)
    found = {}
    for backend in FAMILIES[row.family].backends:
        overrides = [f"prm.backend={backend}", *([] if row.spec is None else [f"prm.spec={row.spec}"])]
        with LoadedModels() as models:
            scorer = build_scorer(_config(*overrides), models, prm=model, renderer=renderer, problems=[PROBLEM])
            found[backend, "steps"] = _scores_in_a_search(scorer, renderer)
        device = "auto" if backend == "vllm" else "cpu"
        with LoadedModels() as models:
            solutions = open_solution_scorer(PRMSource(model=model, spec=row.spec, device=device, backend=backend), models)
            (found[backend, "solutions"],) = solutions.score([Solution(question=PROBLEM.question, steps=STEPS)])
    expected = found["transformers", "solutions"]
    assert len(set(expected)) > 1
    assert any(score is not None for score in expected)
    for view, scores in found.items():
        assert scores == tuple(None if score is None else pytest.approx(score, abs=2e-6) for score in expected), view
    per_view = 0 if row.family == "judge" else 2 if row.family == "implicit" else 1
    assert len(started) == 2 * per_view
    assert all(engine.closed for engine in started)


def test_a_judge_is_refused_on_vllm_and_embedded_in_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--backend vllm` with a judge is a mistake; `prm.backend = "vllm"` is a wish for those PRMs that it can forward."""
    model, started = str(_save_judge(tmp_path)), install_fake_vllm(monkeypatch)
    with pytest.raises(ConfigError, match="a judge writes its verdicts on the embedded engine"), LoadedModels() as models:
        open_solution_scorer(PRMSource(model=model, backend="vllm"), models)
    with LoadedModels() as models:
        build_scorer(_config("prm.backend=vllm"), models, prm=model, renderer=_renderer(), problems=[PROBLEM])
    assert started == []


def test_members_of_an_ensemble_share_the_memory_and_leave_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two members take half each, an implicit pair half of that; one PRM afterwards has all of it, and the others are shut down first."""
    started = install_fake_vllm(monkeypatch)
    head, pair = str(_save_head(tmp_path / "a", "trl", "linear")), str(_save_implicit_text(tmp_path / "b"))
    NAMED_SPECS["trl"].spec.save(head)
    config, models = _config("prm.backend=vllm", "policy.vllm.prm_memory_share=0.8"), LoadedModels()

    def build(*prm: str) -> StepScorer:
        return build_scorer(config, models, prm=prm, renderer=_renderer(), problems=[PROBLEM])

    build(head, pair)
    assert [engine.settings.memory_share for engine in started] == pytest.approx([0.4, 0.2, 0.2])
    build(head, pair)
    assert len(started) == 3
    build(head)
    assert [engine.closed for engine in started] == [True, True, True, False]
    assert started[-1].settings.memory_share == pytest.approx(0.8)
    models.release()
    assert started[-1].closed


def test_weights_stay_from_job_to_job_and_are_given_up_for_others() -> None:
    """One load for the same model, whoever asks; another model takes the place; release forgets all."""
    models, loads = LoadedModels(), []

    def load(name: str) -> Callable[[], object]:
        def make() -> object:
            loads.append(name)
            return object()

        return make

    policy, first, second = Role(kind="policy"), Role(kind="prm"), Role(kind="prm", number=1)
    held = models.weights(policy, "a", load("a"))
    assert models.weights(policy, "a", load("a")) is held
    assert models.weights(first, "a", load("a")) is held
    models.weights(second, "b", load("b"))
    models.weights(policy, "c", load("c"))
    assert models.weights(first, "a", load("a")) is held
    models.keep_first("prm", 1)
    models.weights(second, "b", load("b"))
    assert loads == ["a", "b", "c", "b"]
    models.release()
    assert models.weights(first, "a", load("a")) is not held


_MODULE = '''
"""A family of models that like short steps."""

from stepladder.prm.open import TextPRM


class Brevity:
    forwarded_tokens = 0

    def reset(self):
        pass

    def score(self, solutions, *, strict=True):
        return [tuple(1 / (1 + len(step)) for step in solution.steps) for solution in solutions]


def open_brevity(source, spec, access):
    return TextPRM(spec=spec, load=Brevity)
'''


def test_a_family_of_your_own_is_a_module_and_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It then guides a search and scores written solutions, alone and in an ensemble, without another line anywhere."""
    (tmp_path / "brevity_family.py").write_text(_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(FAMILIES, "brevity", Family(opener="brevity_family:open_brevity"))
    policy = save_tiny_policy(tmp_path / "policy")
    FORMAT.save(policy)
    prm = tmp_path / "prm"
    prm.mkdir()
    PRMSpec(family="brevity", prompt="plain").save(prm)

    for given in ([prm], [prm, prm]):
        words = ["solve", "1+1", "--policy", policy, "--method", "mcts", "--simulations", "3", "--tree", tmp_path / "t.json", "--overwrite"]
        words += [word for each in given for word in ("--prm", each)]
        done = CliRunner().invoke(app, [*map(str, words), "--set", "search.max_step_tokens=8"])
        assert done.exit_code == 0, done.output
        tree = json.loads((tmp_path / "t.json").read_text())
        scored = [(text, score) for text, score in zip(tree["texts"], tree["scores"], strict=True) if score is not None]
        assert len(scored) > 2
        assert all(score == pytest.approx(1 / (1 + len(text.removesuffix("\n")))) for text, score in scored)

    (tmp_path / "in.jsonl").write_text(json.dumps({"question": "Q", "steps": ["a", "bcd"]}) + "\n")
    words = ["prm", "score", tmp_path / "in.jsonl", "--model", prm, "--output", tmp_path / "out.jsonl"]
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out.jsonl").read_text())["scores"] == [0.5, 0.25]
    assert "brevity_family" in sys.modules


def test_every_family_has_an_opener_that_can_be_imported() -> None:
    """A row that names a function which is not there would fail at the user's."""
    for family in FAMILIES.values():
        assert callable(family.open_with())
    assert FakeVLLMEngine.started == []
