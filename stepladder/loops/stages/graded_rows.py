"""The rows of a search in solve mode that evaluations and comparisons write; answers are graded from outside."""

from collections.abc import Callable
from hashlib import blake2b

from stepladder.data.metrics.answers import PoolSample, known_within
from stepladder.interfaces import Verifier
from stepladder.loops.assembly.problems import OpenVerifier
from stepladder.loops.config.run import Config
from stepladder.loops.runs.evaluation_rows import PoolRow, SolvedRow
from stepladder.mcts.answer_rules import AnswerTally, own_key
from stepladder.mcts.qvalues import aggregate_scores
from stepladder.mcts.search_method import SearchMethod
from stepladder.tree_paths import path_to
from stepladder.types import SearchResult, StopReason, TreeRecord, Verdict


def answer_within(result: SearchResult, method: SearchMethod, max_tokens: int | None, key_of: Callable[[str], str] = own_key) -> str | None:
    """Return a search's answer within a number of generated tokens; None if it had none yet.

    The draws of a sampling method are ordered, however they were requested: those that fit give the answer.
    """
    tree = result.tree
    if max_tokens is None or tree.generated_tokens <= max_tokens:
        return result.answer
    if not method.draws_independently:
        return known_within(result.anytime, max_tokens)
    tally, spent = AnswerTally(method.answer_rule, key_of), 0
    for path in draws_of(tree):
        spent += sum(len(tree.token_ids[step]) for step in path)
        if spent > max_tokens:
            break
        answer = tree.answers[path[-1]]
        if answer is not None:
            tally.add(path[-1], answer, aggregate_scores([tree.scores[step] for step in path], rule=method.valuation.aggregation))
    return tally.leader()


def solved_row(result: SearchResult, verifier: Verifier, *, with_course: bool) -> SolvedRow:
    """Return the graded row of a greedy solution or a search.

    Args:
        result: The result of the search.
        verifier: Holds the answers.
        with_course: Grade the answers after each wave, too.
    """
    answers = [result.answer, *(answer for _, answer in result.anytime)]
    verdicts = verifier.grade([(result.problem_id, answer) for answer in answers])
    course = tuple((tokens, verdict.correct) for (tokens, _), verdict in zip(result.anytime, verdicts[1:], strict=True))
    return SolvedRow(
        problem_id=result.problem_id,
        answer=result.answer,
        correct=verdicts[0].correct,
        credit=verdicts[0].credit,
        tokens=result.tree.generated_tokens,
        anytime=course if with_course else None,
    )


def pool_row(result: SearchResult, verifier: OpenVerifier, config: Config) -> PoolRow:
    """Return the graded row of independent samples, in the order in which they were drawn."""
    tree, draws = result.tree, draws_of(result.tree)
    verdicts = verifier.grade([(result.problem_id, tree.answers[path[-1]]) for path in draws])
    samples = tuple(_sample(tree, path, verdict, verifier, config) for path, verdict in zip(draws, verdicts, strict=True))
    return PoolRow(problem_id=result.problem_id, samples=samples)


def draws_of(tree: TreeRecord) -> list[list[int]]:
    """Return the nodes of every solution of a sampled tree, root left out, in the order in which they were drawn.

    Every draw has a last node of its own, and nodes are numbered in the order of the draws.
    """
    return [path_to(tree, node) for node, reason in enumerate(tree.stop_reasons) if reason != StopReason.STEP]


def _sample(tree: TreeRecord, path: list[int], verdict: Verdict, verifier: OpenVerifier, config: Config) -> PoolSample:
    answer = tree.answers[path[-1]]
    return PoolSample(
        num_tokens=sum(len(tree.token_ids[step]) for step in path),
        answer_key=None if answer is None else verifier.answer_key(answer),
        score=aggregate_scores([tree.scores[step] for step in path], rule=config.evaluate.aggregation),
        correct=verdict.correct,
        credit=verdict.credit,
        solution=text_digest("".join(tree.texts[step] for step in path)),
        logp=sum(logp for step in path for logp in tree.logps[step]),
    )


def text_digest(text: str) -> str:
    """Return 16 hexadecimal digits that tell texts apart."""
    return blake2b(text.encode(), digest_size=8).hexdigest()
