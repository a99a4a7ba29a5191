"""Steps judged by their code: what of a solution is code, which step has to run it, and a search that heeds it."""

import pytest

from stepladder.data.step_checks.code_blocks import code_of
from stepladder.data.step_checks.sandbox import CodeSandbox
from stepladder.errors import ConfigError
from stepladder.interfaces import ScoreRequest
from stepladder.loops.assembly import checks
from stepladder.loops.assembly.checks import check_backends
from stepladder.loops.assembly.scorers import composed_scorer
from stepladder.loops.config.load import load_config
from stepladder.loops.config.run import Config
from stepladder.loops.config.search import CodeCheck, NoCheck, ScoresConfig
from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.methods import resolve_method
from stepladder.testing import CharRenderer, ScriptedPolicy, TableScorer, make_step
from stepladder.types import Budget, Problem, Provenance, StopReason
from tests.locks import needs_locks

PROVENANCE = Provenance(round=0, policy_version=0, scorer_version=None, seed=0, config_hash="", renderer_hash="")
PROMPT = "Use code, as in ```python\n1 / 0\n```\nQ\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("no code, and `x = 1` in line", ""),
        ("First\n```python\nx = 1\n```\nthen\n```py\ny = x\n```\n", "x = 1\ny = x\n"),
        ("```Python3\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n", ""),
        ("```\nx = 1\n```\n```text\ny\n```\n", ""),
        ("```python\n\n    if x:\n        y\n\n```", "    if x:\n        y\n"),
        ("```python\ns = '```'\n```", "s = '```'\n"),
        ("```python\n```", ""),
        ("<code>\nx = 1\n<end_of_code>\n<output>1<end_of_output>", "x = 1\n"),
        ("<code>x = 1</code> so", "x = 1\n"),
        ("<code>\n# one\nx = 1\n<end_of_step>\n# two\ny = x\n<end_of_step>\nz =", "# one\nx = 1\n\n# two\ny = x\n"),
        ("<code>\nx = 1\n<end_of_step>\ny = x\n<end_of_code>", "x = 1\n\ny = x\n"),
        ("<code>\nx = 1", ""),
    ],
)
def test_code_of_a_solution(text, code):
    """Complete blocks, in order; of an open rStar-Math part, the steps that are finished."""
    assert code_of(text) == code


def composed(score=lambda path: 0.9, check="code", **settings_of_check):
    chosen = CodeCheck(**{"cap": 0.2, **settings_of_check}) if check == "code" else NoCheck()
    settings = ScoresConfig(check=chosen)
    length = len(PROMPT)

    def known(prefix):
        return length if CharRenderer().decode(prefix[:length]) == PROMPT else None

    return composed_scorer([TableScorer(score)], settings, decode=CharRenderer().decode, prompt_length=known)


def scores_of(prefix, *branches, **scores):
    encode = CharRenderer().encode
    scorer = composed(**scores)
    scorer.submit([ScoreRequest(ticket=0, prefix_ids=encode(prefix), branches=tuple(tuple(map(encode, branch)) for branch in branches))])
    (result,) = scorer.collect()
    return result.scores


@needs_locks
def test_a_step_runs_behind_the_code_of_the_steps_before_it():
    """State is seen along a branch and from the prefix, not from siblings or the prompt; text alone is not judged.

    Code behind a failure fails with it, text behind it does not, and a score below the cap stays.
    """
    first, second = "Let\n```python\nx = 1\n```\n", "```python\nassert x == 1\n```\n"
    assert scores_of(PROMPT, (first, second, "done"), (second, "done", first)) == ((0.9, 0.9, 0.9), (0.2, 0.9, 0.2))
    assert scores_of(PROMPT + first, (second,), ("```python\nassert x == 2\n```\n",)) == ((0.9,), (0.2,))
    assert scores_of("another prompt\n", (second,)) == ((0.9,),)
    assert scores_of(PROMPT, ("```python\n1 / 0\n```",), cap=0.95) == ((0.9,),)


@needs_locks
def test_the_step_that_completes_a_block_is_judged():
    """A block may go over several steps, and rStar-Math's part of code over all of them."""
    assert scores_of(PROMPT, ("```python\n", "1 / 0\n", "```\n")) == ((0.9, 0.9, 0.2),)
    assert scores_of(PROMPT, ("<code>\nx = 1<end_of_step>", "\nx / 0<end_of_step>")) == ((0.9, 0.2),)


@needs_locks
def test_a_search_heeds_the_check():
    """Greedy search takes the better-scored step, whose code fails, without the check, and the other one with it; both are run once."""
    wrong, right = "```python\nassert 1 + 1 == 3\n``` =3\n", "```python\nassert 1 + 1 == 2\n``` =2\n"
    policy = ScriptedPolicy(lambda prefix, index, seed: make_step((wrong, right)[index % 2], stop_reason=StopReason.END))
    encode = CharRenderer().encode

    def answer(**scores):
        engine = SearchEngine(
            policy=policy,
            scorer=composed(lambda path: 0.9 if path[-len(wrong) :] == encode(wrong) else 0.6, **scores),
            renderer=CharRenderer(),
            method=resolve_method("best-of-n"),
            budget=Budget(num_simulations=4),
            provenance=PROVENANCE,
        )
        (result,) = engine.search([Problem(id="p", question=PROMPT.removesuffix("\n"))])
        return result.answer

    assert answer(check="none") == "3"
    assert answer() == "2"


def test_a_machine_that_cannot_shut_code_in_is_said_before_any_work(monkeypatch):
    """``check=code`` in either search is refused at the start, unless the user allows it; a search that is not run is not asked about."""

    def refuse():
        raise ConfigError("sandbox: no locks")

    monkeypatch.setattr(checks, "check_sandbox", refuse)

    def configured(*overrides) -> Config:
        base = {"problems": {"train": "a.jsonl", "test": "b.jsonl"}, "policy": {"model": "m"}}
        return load_config(None, list(overrides), base=base)

    for section, trains in (("search", True), ("evaluate", True), ("evaluate", False)):
        with pytest.raises(ConfigError, match="no locks"):
            check_backends(configured(f"{section}.scores.check=code"), trains=trains)
        check_backends(configured(f"{section}.scores.check=code", f"{section}.scores.check.allow_unsandboxed=true"), trains=trains)
    check_backends(configured("search.scores.check=code"), trains=False)
    assert CodeSandbox(allow_unsandboxed=True).run([]) == []
