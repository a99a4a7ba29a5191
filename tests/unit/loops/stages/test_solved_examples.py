"""Solved examples as rows of the PRM: values by the configured target, and what cannot be replayed."""

from pathlib import Path

import pytest

from stepladder.data.datasets.problems import SeedSolution
from stepladder.data.labels.values import node_values
from stepladder.errors import ConfigError
from stepladder.loops.assembly.checks import check_labels
from stepladder.loops.config.load import load_config
from stepladder.loops.stages.solved_examples import example_tree, example_values
from stepladder.policy.prompts import PromptRenderer, StepFormat
from stepladder.types import Provenance
from tests.models import save_tiny_policy

PROVENANCE = Provenance(round=0, policy_version=0, scorer_version=None, seed=0, config_hash="c", renderer_hash="r")
REQUIRED = ["problems.train=a.jsonl", "problems.test=b.jsonl", "policy.model=m"]


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> PromptRenderer:
    from stepladder.lm.loading import load_tokenizer

    place = tmp_path_factory.mktemp("policy")
    save_tiny_policy(place)
    return PromptRenderer(load_tokenizer(place), StepFormat(answer_pattern="([a-d])"))


def test_an_example_is_a_graded_path(renderer: PromptRenderer) -> None:
    """One that ends with an answer is right from its last step back, any other is wrong; its tokens are those of a sampled one."""
    right = example_tree(SeedSolution(id="s", question="q", solution="+\n+\nb\n"), renderer=renderer, provenance=PROVENANCE)
    assert right.outcomes == [None, None, None, 1.0] and right.parents == [-1, 0, 1, 2] and right.depths == [0, 1, 2, 3]
    assert right.texts == ["", "+\n", "+\n", "b\n"]
    assert node_values(right, "discounted") == pytest.approx([0.85**3, 0.85**2, 0.85, 1.0])
    wrong = example_tree(SeedSolution(id="w", question="q", solution="+\n+\n"), renderer=renderer, provenance=PROVENANCE)
    assert node_values(wrong, "discounted") == [0.0] * len(wrong.parents)
    cut = example_tree(SeedSolution(id="c", question="q", solution="+\n+\n", finished=False), renderer=renderer, provenance=PROVENANCE)
    assert cut.texts == ["", "+\n", "+\n"] and node_values(cut, "discounted") == [None] * 3
    # The end token is a step of its own after a closed one.
    assert wrong.token_ids[-1] == [renderer.end_id]


def test_rows_have_the_configured_target(renderer: PromptRenderer, tmp_path: Path) -> None:
    """A file of examples becomes one value row each."""
    file = tmp_path / "warmup.jsonl"
    file.write_text('{"id": "s", "question": "q", "solution": "+\\nb\\n"}\n{"id": "t", "question": "q", "solution": "+\\n"}\n')
    for target, expected in (("discounted", [0.85, 1.0]), ("monte-carlo", [1.0, 1.0]), ("distance", [0.5, 1.0])):
        config = load_config(None, [*REQUIRED, f"warmup.solutions={file}", "prm.replay=0.5", f"prm.target={target}"])
        rows = {row.problem_id: row.targets for row in example_values(config, renderer, file)}
        assert rows["s"] == pytest.approx(expected)
        # A wrong example alone says nothing about the way to a right one.
        assert rows.get("t") == (None if target == "distance" else [0.0, 0.0])


@pytest.mark.parametrize(
    ("more", "words"),
    [([], "needs solved examples"), (["warmup.solutions=w.jsonl", "prm.target=rollouts"], "have no target 'rollouts'")],
    ids=["no examples", "no target"],
)
def test_what_cannot_be_replayed_is_told_before_the_work(more: list[str], words: str) -> None:
    """Without solved examples, or with a target that only rollouts give, the setting is refused."""
    with pytest.raises(ConfigError, match=words):
        check_labels(load_config(None, [*REQUIRED, "prm.replay=0.5", *more]))
