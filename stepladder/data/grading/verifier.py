"""The grader: it holds the reference answers, outside the search.

This process decides everything that needs no algebra. The rest goes to worker processes, which can be killed.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from stepladder.data.grading.answers import answer_key, exact_match, math_match, number_match, unreadable_reason
from stepladder.data.grading.rules import STRICT, AnswerRule, MathOptions
from stepladder.data.grading.workers import WorkerCommand, WorkerPool
from stepladder.errors import ConfigError, DataFormatError
from stepladder.remembered import forget_oldest
from stepladder.types import LabelledProblem, Verdict

_WORKER = Path(__file__).with_name("math_worker.py")
_MAX_REMEMBERED = 65_536

Pair = tuple[str, str]
"""(answer, reference)."""

_EXACT = Verdict(correct=True, reason="exact match")
_EQUIVALENT = Verdict(correct=True, reason="equivalent")
_DIFFERS = Verdict(correct=False, reason="differs")
_UNREADABLE = Verdict(correct=False, reason="unreadable")
_NO_REFERENCE = Verdict(correct=False, reason="unreadable reference")


class PairGrader:
    """Compares answers with references under the rules ``exact``, ``number`` and ``math``; close it, or use it in a ``with`` statement."""

    def __init__(self, rule: AnswerRule | str, *, options: MathOptions = STRICT, num_workers: int = 1, deadline_s: float = 5.0) -> None:
        """Prepare to grade. Worker processes start with the first answer that needs one.

        Args:
            rule: When an answer counts as right.
            options: Of rule ``math``.
            num_workers: Processes for rule ``math``, >= 1; the other rules need none.
            deadline_s: CPU seconds after which an answer counts as wrong, with reason ``timeout``, > 0.

        Raises:
            ConfigError: If the rule is unknown, or a number is out of range.
        """
        if rule not in list(AnswerRule):
            raise ConfigError(f"rule: must be one of {', '.join(AnswerRule)}: got {rule!r} -- choose one of these")
        if num_workers < 1 or not deadline_s > 0:
            raise ConfigError(f"grading: needs num_workers >= 1 and deadline_s > 0: got {num_workers!r} and {deadline_s!r} -- raise them")
        self.rule, self.options = AnswerRule(rule), options
        self._pool = WorkerPool(WorkerCommand(script=_WORKER), num_workers, deadline_s=deadline_s)
        self._remembered: dict[Pair, Verdict] = {}

    def grade(self, pairs: Sequence[tuple[str | None, str]]) -> list[Verdict]:
        """Grade (final answer or None, reference answer) pairs, in order.

        Reasons: ``exact match``, ``equivalent``, ``differs``, ``unreadable``, ``unreadable reference``, ``undecided`` where the algebra
        found neither, ``timeout``, and ``crashed`` when an answer took its worker process down.

        Raises:
            BackendError: If a worker process does not start.
        """
        verdicts = [_UNREADABLE if answer is None else self._at_once(answer, reference) for answer, reference in pairs]
        open_pairs = [(answer, reference) for (answer, reference), verdict in zip(pairs, verdicts, strict=True) if answer and not verdict]
        self._remember([pair for pair in dict.fromkeys(open_pairs) if pair not in self._remembered])
        # Read in a second pass, and before anything is forgotten: an answer given twice was sent once.
        done = [verdict or self._remembered[answer or "", reference] for (answer, reference), verdict in zip(pairs, verdicts, strict=True)]
        forget_oldest(self._remembered, _MAX_REMEMBERED)
        return done

    def close(self) -> None:
        """End the worker processes; grading again starts new ones."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _at_once(self, answer: str, reference: str) -> Verdict | None:
        """Return the verdict if no algebra is needed, else None."""
        if self.rule is not AnswerRule.MATH:
            return self._by_text_or_number(answer, reference)
        if unreadable_reason(reference, self.rule):
            return _NO_REFERENCE
        if unreadable_reason(answer, self.rule):
            return _UNREADABLE
        if exact_match(answer, reference):
            return _EXACT
        same = math_match(answer, reference, self.options)
        return None if same is None else _EQUIVALENT if same else _DIFFERS

    def _by_text_or_number(self, answer: str, reference: str) -> Verdict:
        if exact_match(answer, reference):
            return _EXACT
        if self.rule is AnswerRule.EXACT:
            return _DIFFERS if answer.strip() else _UNREADABLE
        same = number_match(answer, reference)
        return _UNREADABLE if same is None else _EQUIVALENT if same else _DIFFERS

    def _remember(self, pairs: list[Pair]) -> None:
        if pairs:
            options = asdict(self.options)
            replies = self._pool.ask([{"answer": answer, "reference": reference, "options": options} for answer, reference in pairs])
            self._remembered.update(zip(pairs, [Verdict(**reply) for reply in replies], strict=True))


class AnswerVerifier:
    """A ``Verifier`` that holds the reference answers of problems; close it, or use it in a ``with`` statement."""

    def __init__(
        self,
        problems: Sequence[LabelledProblem],
        rule: AnswerRule | str,
        *,
        options: MathOptions = STRICT,
        num_workers: int = 1,
        deadline_s: float = 5.0,
    ) -> None:
        """Store the reference answers of some problems; the other arguments are those of ``PairGrader``.

        Raises:
            DataFormatError: If a reference answer is empty, or no number under rule ``number``.
            ConfigError: If the rule is unknown, or a number is out of range.
        """
        self._grader = PairGrader(rule, options=options, num_workers=num_workers, deadline_s=deadline_s)
        self._references = {labelled.problem.id: labelled.answer for labelled in problems}
        for problem_id, reference in self._references.items():
            _check_reference(problem_id, reference, self._grader.rule)

    def grade(self, answers: Sequence[tuple[str, str | None]]) -> list[Verdict]:
        """Grade (problem id, final answer or None) pairs, in order, for the reasons of ``PairGrader.grade``.

        Raises:
            DataFormatError: If a problem id is unknown.
            BackendError: If a worker process does not start.
        """
        return self._grader.grade([(answer, self._reference(problem_id)) for problem_id, answer in answers])

    def answer_key(self, answer: str) -> str:
        """Return the canonical form of an answer, under which votes are counted: answers with the same key are equal."""
        return answer_key(answer, self._grader.rule, self._grader.options)

    def close(self) -> None:
        """End the worker processes; grading again starts new ones."""
        self._grader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _reference(self, problem_id: str) -> str:
        try:
            return self._references[problem_id]
        except KeyError:
            raise DataFormatError(
                f"grading: problem id must be one that the verifier holds: got {problem_id!r} -- give it the problems that are searched"
            ) from None


def _check_reference(problem_id: str, reference: str, rule: AnswerRule) -> None:
    if not reference.strip():
        raise DataFormatError(f"problem {problem_id!r}: must have a reference answer to be graded: got {reference!r} -- drop the problem")
    if rule is AnswerRule.NUMBER and unreadable_reason(reference, rule):
        raise DataFormatError(
            f"problem {problem_id!r}: reference answer must be a number under rule 'number': got {reference!r} "
            "-- set answer_pattern to read the number out of it, or use rule 'math'"
        )
