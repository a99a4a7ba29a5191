"""Trees of refinements by hand: which solutions fail, what is refined further, and when a tree ends."""

import re

import pytest

from stepladder.errors import ConfigError
from stepladder.loops.assembly.checks import check_judge, check_refinement
from stepladder.loops.assembly.refinement import Attempt, Refiner, failed_attempts, refinement_question
from stepladder.loops.config.load import load_config
from stepladder.loops.config.search import RefinementConfig
from stepladder.testing import ScriptedPolicy
from stepladder.types import Problem, Step, StopReason
from tests.runs import write_tiny_config
from tests.trees import tree

RULE = RefinementConfig(prompt="{question}|{solution}|{critique}", children=2, keep=1, depth=3)
SCORES = {"wa": 0.3, "wb": 0.5, "wba": 0.4, "wbb": 0.9, "va": 0.2, "vb": 0.1, "vaa": 0.3, "vab": 0.3, "vaaa": 0.4, "vaab": 0.5}


class Judge:
    """Scores solutions by a table, and says the score of their last step."""

    def __init__(self):
        self.known = set()

    def score(self, solutions):
        self.known |= set(solutions)
        return [tuple(SCORES.get(step, 0.0) for step in solution.steps) for solution in solutions]

    def critique(self, solution):
        assert solution in self.known
        return f"not {solution.steps[-1]}"


class Renderer:
    """Prompts are the bytes of questions, an answer is the last character."""

    hash = "h"

    def prompt_ids(self, problem):
        return tuple(problem.question.encode())

    def extract_answer(self, text):
        return text[-2]

    def decode(self, token_ids):
        return bytes(token_ids).decode()


def propose(prefix_ids, sample, seed):
    """Refine a solution by one more letter; those of the problem z never end."""
    question, solution, _ = bytes(prefix_ids).decode().split("|")
    text = f"{solution}{'ab'[sample]}\n"
    reason = StopReason.LENGTH if question == "z" else StopReason.END
    return Step(token_ids=tuple(text.encode()), logps=(0.0,) * len(text), text=text, stop_reason=reason)


def failed(problem, text):
    return Attempt(
        problem=Problem(id=problem, question=problem),
        steps=(text,),
        token_ids=tuple(f"{text}\n".encode()),
        text=f"{text}\n",
        score=0.0,
        answer=None,
    )


def refiner(policy):
    return Refiner(policy, Judge(), Renderer(), RULE, step_end="\n", aggregation="last", seed=1, max_steps=4, max_step_tokens=8)


def test_the_best_of_a_level_is_refined_until_one_passes():
    """Of w: wa 0.3 and wb 0.5, which does not pass; then wba 0.4 and wbb 0.9, which does. Of v nothing passes; of z none ends.

    Tokens: w 2 * 3 + 2 * 4, v 2 * 3 + 2 * 4 + 2 * 5, z 2 * 3.
    """
    policy = ScriptedPolicy(propose, shuffle_seed=5)
    search = refiner(policy)
    found = search.search([failed("p", "w"), failed("q", "v"), failed("z", "y")])
    assert [None if each is None else (each.text, each.score, each.answer) for each in found] == [("wbb\n", 0.9, "b"), None, None]
    assert search.generated_tokens == 14 + 24 + 6
    prompts = [bytes(request.prefix_ids).decode() for request in policy.requests]
    assert prompts == ["p|w|not w", "q|v|not v", "z|y|not y", "p|wb|not wb", "q|va|not va", "q|vaa|not vaa"]
    assert bytes(found[0].prompt_ids).decode() == "p|wb|not wb"
    assert len({request.seed for request in policy.requests}) == 6


def test_a_tree_does_not_depend_on_the_others():
    """The same seeds and the same refinement alone."""
    together, alone = ScriptedPolicy(propose), ScriptedPolicy(propose)
    found = refiner(together).search([failed("q", "v"), failed("p", "w")])
    assert refiner(alone).search([failed("p", "w")]) == found[1:]
    assert [request.seed for request in alone.requests] == [each.seed for each in together.requests if each.prefix_ids[0] == ord("p")]


def test_failed_solutions_are_those_that_ended_with_a_low_score():
    """Ends 1 (0.2), 2 (0.5), 3 (0.6) and 4 without a score: the first two fail, the worse one first; 5 was cut and 6 repeats 2."""
    graded = tree((-1, None, None), (0, None, 0.0), (0, None, 1.0), (0, None, 1.0), (0, None, 0.0), (0, None, 0.0), (0, None, 1.0))
    scores = [None, 0.2, 0.5, 0.6, None, 0.1, 0.5]
    assert len(graded.scores) == len(scores)
    graded.scores[:] = scores
    graded.stop_reasons[:] = ["step", "end", "end", "end", "end", "length", "end"]
    graded.token_ids[6][:] = graded.token_ids[2]
    options = {"accept": 0.5, "aggregation": "last", "step_end": "\n"}
    assert [attempt.score for attempt in failed_attempts(graded, most=5, **options)] == [0.2, 0.5]
    assert [attempt.score for attempt in failed_attempts(graded, most=1, **options)] == [0.2]


def test_what_is_filled_in_is_never_taken_for_a_place():
    """A solution that holds the name of a place stays as it is."""
    question = refinement_question(RULE, Problem(id="p", question="q"), solution="{critique}\n", critique="no ")
    assert (question.id, question.question) == ("p", "q|{critique}|no")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny configuration."""
    return write_tiny_config(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("prm.loss=bce", "needs prm.loss 'verdicts', got 'bce'"),
        ("prm.when=after-policy", "needs prm.when 'before-search', got 'after-policy'"),
        ("preference.enabled=false", "needs preference.enabled True, got False"),
        ("search.tool=code", "needs search.tool None, got 'code'"),
        ("search.refinement.prompt=mend {solution}", "prompt must contain '{question}'"),
        ("prm.spec=trl", "'verdicts' trains a judge: got prm.spec 'trl', of the family 'two-class'"),
    ],
)
def test_settings_that_no_judge_can_refine_by_are_refused(setting, message, tiny):
    """One sentence before the work."""
    settings = ["prm.spec=judge", "prm.loss=verdicts", "prm.when=before-search", "search.refinement.depth=2"]
    with pytest.raises(ConfigError, match=re.escape(message)):
        config = load_config(tiny, [*settings, setting])
        check_judge(config)
        check_refinement(config)
