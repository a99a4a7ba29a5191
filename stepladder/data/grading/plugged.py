"""Verifiers of tasks: a function, which runs in processes that can be killed, or a factory of verifiers, which runs in this one."""

import inspect
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stepladder.data.grading.answers import answer_key
from stepladder.data.grading.rules import AnswerRule
from stepladder.data.grading.workers import CRASHED, TIMEOUT, Message, WorkerCommand, WorkerPool
from stepladder.errors import BackendError, ConfigError, DataFormatError, StepladderError
from stepladder.plugs import load_plug, raised
from stepladder.remembered import forget_oldest
from stepladder.types import LabelledProblem, Verdict

ARGUMENTS = ("question", "answer", "solution", "reference")
"""Arguments that the function of a verifier may take, by name."""
_LOG = logging.getLogger(__name__)
_SETTING, _PROBLEMS = "problems.verifier", "problems"
_WORKER = Path(__file__).with_name("task_worker.py")
_MAX_REMEMBERED = 65_536
_TROUBLE = ("raised ", TIMEOUT, CRASHED)
"""Reasons of answers on which the function itself gave no verdict, and beginnings of such reasons."""
_MANY = 32
"""Answers after which a function that raised one of these for each of them is broken; other exceptions may be the answers' fault."""
_BROKEN = tuple(f"raised {name}" for name in ("NameError", "UnboundLocalError", "AttributeError", "ImportError", "ModuleNotFoundError"))
_UNREADABLE = Verdict(correct=False, reason="unreadable")


def load_verifier(name: str, options: dict[str, Any]) -> Callable[..., Any]:
    """Import a verifier, and check that it takes the problem and the options; nothing is graded.

    Args:
        name: A function of some of ``ARGUMENTS``, or a factory of the labelled problems; ``stepladder.plugs`` has the forms of names.
        options: Its further arguments.

    Raises:
        ConfigError: If there is no such function, or it does not take these arguments.
    """
    plug = load_plug(name, setting=_SETTING)
    reserved = sorted(set(options) & set(ARGUMENTS))
    if reserved:
        raise ConfigError(
            f"problems.verifier_options: must not be {', '.join(ARGUMENTS)}, which come from the problem: got {reserved[0]!r}"
        )
    taken = taken_arguments(plug)
    try:
        signature = inspect.signature(plug)
    except (TypeError, ValueError):
        return plug  # A builtin checks its own arguments.
    try:
        signature.bind(**dict.fromkeys(taken or (_PROBLEMS,)), **options)
    except TypeError as error:
        if options:
            raise ConfigError(
                f"problems.verifier_options: must be what {name!r} takes beside the problem: got {options!r}: {error} -- correct them"
            ) from None
        raise ConfigError(
            f"{_SETTING}: must take some of {', '.join(ARGUMENTS)}, or a factory {_PROBLEMS}, and nothing else without a default: "
            f"got {name!r}: {error} -- rename its arguments"
        ) from None
    return plug


def taken_arguments(plug: Callable[..., Any]) -> tuple[str, ...]:
    """Return those of ``ARGUMENTS`` that a function takes; none for a factory."""
    try:
        parameters = inspect.signature(plug).parameters
    except (TypeError, ValueError):
        return ()
    return tuple(name for name in ARGUMENTS if name in parameters)


def needs_reference(name: str, options: dict[str, Any]) -> bool:
    """Say whether a verifier is a function that takes the reference answer. Raises as ``load_verifier``."""
    return "reference" in taken_arguments(load_verifier(name, options))


class TaskVerifier:
    """A ``Verifier`` that calls a function in processes that can be killed; close it, or use it in a ``with`` statement.

    Equal answers to one problem are graded once.
    """

    def __init__(
        self,
        problems: Sequence[LabelledProblem],
        name: str,
        options: dict[str, Any],
        *,
        passing: float = 1.0,
        num_workers: int = 1,
        deadline_s: float = 5.0,
    ) -> None:
        """Prepare to grade; the first answer starts a process.

        Args:
            problems: The problems to grade.
            name: Of the function, as for ``load_verifier``. It returns whether the answer is right, a number in [0, 1], a ``Verdict``, or a
                pair of one of the first two and the reason.
            options: Its further arguments.
            passing: The smallest number that counts as right, in (0, 1].
            num_workers: Processes, >= 1.
            deadline_s: CPU seconds for one answer, > 0; an answer that takes longer is wrong with reason ``timeout``.

        Raises:
            ConfigError: As ``load_verifier``.
        """
        function = load_verifier(name, options)
        self._name, self._takes = name, taken_arguments(function)
        self._has_key = callable(getattr(function, "answer_key", None))
        settings = {"takes": self._takes, "options": options, "passing": passing}
        command = WorkerCommand(script=_WORKER, arguments=(name, json.dumps(settings)), check=f"import {name.partition(':')[0]}")
        self._pool = WorkerPool(command, num_workers, deadline_s=deadline_s)
        self._problems = {labelled.problem.id: labelled for labelled in problems}
        self._remembered: dict[tuple[str, str], Verdict] = {}
        self._keys: dict[str, str] = {}
        self._num_graded, self._trouble = 0, Counter[str]()

    def grade(self, answers: Sequence[tuple[str, str | None]]) -> list[Verdict]:
        """Grade (problem id, final answer or None) pairs, in order.

        Raises:
            DataFormatError: If a problem id is unknown, or the function returns something else than a verdict.
            BackendError: If a process does not start, or the function raises an exception for every answer.
        """
        pairs = [(problem_id, answer) for problem_id, answer in answers if answer is not None]
        fresh = [pair for pair in dict.fromkeys(pairs) if pair not in self._remembered]
        if fresh:
            replies = self._pool.ask([self._request(problem_id, answer) for problem_id, answer in fresh])
            verdicts = list(map(self._verdict, replies))
            self._remembered.update(zip(fresh, verdicts, strict=True))
            self._num_graded += len(verdicts)
            self._trouble.update(verdict.reason for verdict in verdicts if verdict.reason.startswith(_TROUBLE))
            self._check_raised()
        done = [_UNREADABLE if answer is None else self._remembered[problem_id, answer] for problem_id, answer in answers]
        forget_oldest(self._remembered, _MAX_REMEMBERED)
        return done

    def answer_key(self, answer: str) -> str:
        """Return the canonical form of an answer for votes: by the function's attribute ``answer_key``, else with normal blanks."""
        if answer not in self._keys:
            forget_oldest(self._keys, _MAX_REMEMBERED)
            own = self._pool.ask([{"key": answer}])[0].get("key") if self._has_key else None
            self._keys[answer] = answer_key(answer, AnswerRule.EXACT) if own is None else str(own)
        return self._keys[answer]

    def try_once(self) -> None:
        """Call the function with the first problem and its own answer, so that one that gives no verdict is refused before any work.

        What it raises does not count: it may raise an exception for a wrong answer, and this one may be wrong.

        Raises:
            DataFormatError: If the function returns something else than a verdict.
            BackendError: If its process does not start.
        """
        problem_id, labelled = next(iter(self._problems.items()))
        try:
            self._verdict(self._pool.ask([self._request(problem_id, labelled.answer or labelled.problem.question)])[0])
        finally:
            self._pool.close()

    def close(self) -> None:
        """End the processes; grading again starts new ones. Answers that got no verdict of the function are counted in a warning."""
        self._pool.close()
        if self._trouble:
            counts = ", ".join(f"{reason} ({count})" for reason, count in self._trouble.most_common(3))
            _LOG.warning(
                "%s: %r gave no verdict on %d of %d answers: %s", _SETTING, self._name, self._trouble.total(), self._num_graded, counts
            )
            self._num_graded, self._trouble = 0, Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _request(self, problem_id: str, answer: str) -> Message:
        try:
            labelled = self._problems[problem_id]
        except KeyError:
            raise DataFormatError(
                f"grading: problem id must be one that the verifier holds: got {problem_id!r} -- give it the problems that are searched"
            ) from None
        known = {"question": labelled.problem.question, "answer": answer, "solution": answer, "reference": labelled.answer}
        return {name: known[name] for name in self._takes}

    def _verdict(self, reply: Message) -> Verdict:
        if "fault" in reply:
            raise DataFormatError(
                f"{_SETTING}: {self._name!r} must return True or False, a number in [0, 1], a Verdict, or (one of these, reason): "
                f"{reply['fault']} -- correct it"
            )
        return Verdict(**reply)

    def _check_raised(self) -> None:
        """Stop when a function has raised an exception for each of many answers: it is broken, and the answers are not."""
        verdicts = self._remembered.values()
        reasons = Counter(verdict.reason for verdict in verdicts if verdict.reason.startswith(_BROKEN))
        if len(verdicts) >= _MANY and reasons.total() == len(verdicts):
            raise BackendError(
                f"{_SETTING}: {self._name!r} must grade answers: it raised an exception for each of the first {len(verdicts)}, most often "
                f"{reasons.most_common(1)[0][0].removeprefix('raised ')} -- correct it"
            )


class PluggedVerifier:
    """A factory's verifier, with additions for grading: checked verdicts, keys of answers, and closing. It runs in this process."""

    def __init__(self, problems: Sequence[LabelledProblem], name: str, options: dict[str, Any]) -> None:
        """Make the verifier.

        Args:
            problems: The problems to grade; the argument ``problems`` of the factory.
            name: Of the factory, as for ``load_verifier``.
            options: Given to the factory by name.

        Raises:
            ConfigError: If there is no such factory, or its verifier cannot grade.
            BackendError: If the factory raises an exception.
        """
        self._name = name
        self._inner: Any = self._call("make a verifier", load_verifier(name, options), list(problems), **options)
        if not callable(getattr(self._inner, "grade", None)):
            raise ConfigError(f"{_SETTING}: {name!r} must make something with a method grade: got {type(self._inner).__name__}")

    def grade(self, answers: Sequence[tuple[str, str | None]]) -> list[Verdict]:
        """Grade (problem id, final answer or None) pairs, in order.

        Raises:
            DataFormatError: If the verifier does not return a verdict for each.
            BackendError: If it raises an exception.
        """
        verdicts = list(self._call("grade answers", self._inner.grade, answers))
        if len(verdicts) != len(answers) or not all(isinstance(verdict, Verdict) for verdict in verdicts):
            kinds = ", ".join(sorted({type(verdict).__name__ for verdict in verdicts})) or "nothing"
            raise DataFormatError(
                f"{_SETTING}: {self._name!r} must return one Verdict for each of {len(answers)} answers: got {len(verdicts)} of "
                f"type {kinds} -- correct it"
            )
        return verdicts

    def answer_key(self, answer: str) -> str:
        """Return the canonical form of an answer for votes: the verifier's own, else the text without odd blanks."""
        own: Any = getattr(self._inner, "answer_key", None)
        return str(self._call("give a key", own, answer)) if callable(own) else answer_key(answer, AnswerRule.EXACT)

    def close(self) -> None:
        """Close the verifier, if it can be closed."""
        close = getattr(self._inner, "close", None)
        if callable(close):
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _call(self, task: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except StepladderError:
            raise
        # Somebody's code, which may raise anything.
        except Exception as error:
            raise BackendError(f"{_SETTING}: {self._name!r} must {task}: it raised {raised(error)} -- correct it") from error


def open_verifier(
    problems: Sequence[LabelledProblem], name: str, options: dict[str, Any], *, passing: float = 1.0, deadline_s: float = 5.0
) -> TaskVerifier | PluggedVerifier:
    """Return the verifier of a function or a factory, whichever the name means; arguments and errors are theirs."""
    if taken_arguments(load_verifier(name, options)):
        return TaskVerifier(problems, name, options, passing=passing, deadline_s=deadline_s)
    return PluggedVerifier(problems, name, options)
