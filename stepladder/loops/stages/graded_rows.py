"""The rows of a search in solve mode that evaluations and comparisons write; answers are graded from outside."""

from collections.abc import Callable
from hashlib import blake2b

from stepladder.data.metrics.answers import PoolSample, known_within
from stepladder.data.step_checks.arithmetic import arithmetic_holds
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
        with_course: It is a search: grade the answers after each wave and all answers of the tree, too. Without, keep the text.
    """
    tree = result.tree
    course = [answer for _, answer in result.anytime] if with_course else []
    found = list(dict.fromkeys(answer for answer in tree.answers if answer is not None)) if with_course else []
    verdicts = verifier.grade([(result.problem_id, answer) for answer in (result.answer, *course, *found)])
    correct = [verdict.correct for verdict in verdicts]
    after_waves, of_tree = correct[1 : 1 + len(course)], correct[1 + len(course) :]
    return SolvedRow(
        problem_id=result.problem_id,
        answer=result.answer,
        correct=correct[0],
        credit=verdicts[0].credit,
        tokens=tree.generated_tokens,
        anytime=tuple((tokens, right) for (tokens, _), right in zip(result.anytime, after_waves, strict=True)) if with_course else None,
        right_answers=tuple(answer for answer, right in zip(found, of_tree, strict=True) if right) if with_course else None,
        text=None if with_course else _greedy_text(result),
    )


def _greedy_text(result: SearchResult) -> str:
    """Return the longest solution of a tree that has one branch."""
    tree = result.tree
    return "".join(tree.texts[node] for node in path_to(tree, len(tree.parents) - 1))


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
        sound=arithmetic_holds("".join(tree.texts[step] for step in path)),
    )


def text_digest(text: str) -> str:
    """Return 16 hexadecimal digits that tell texts apart."""
    return blake2b(text.encode(), digest_size=8).hexdigest()
