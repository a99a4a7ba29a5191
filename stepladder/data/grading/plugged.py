"""Graders from other packages: a factory by its dotted path, and a wrapper around the verifier that it makes."""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import TracebackType
from typing import Any, cast

from stepladder.data.grading.answers import answer_key
from stepladder.data.grading.rules import AnswerRule
from stepladder.errors import ConfigError, DataFormatError
from stepladder.interfaces import Verifier
from stepladder.types import LabelledProblem, Verdict

Factory = Callable[..., Verifier]
"""Makes a verifier of labelled problems, a list, and of options by name."""


def load_factory(path: str, options: dict[str, Any]) -> Factory:
    """Import the factory of a verifier, and check that it takes the options; nothing is made.

    Args:
        path: ``package.module:name``; the package must be importable: installed, or on ``PYTHONPATH``.
        options: Its further arguments after the problems.

    Raises:
        ConfigError: If there is no such factory, or it does not take them.
    """
    module, _, name = path.partition(":")
    rule = "problems.verifier: must be the path package.module:factory of something that can be imported"
    if not module or not name:
        raise ConfigError(f"{rule}: got {path!r} -- put a colon between module and factory")
    try:
        factory: Any = getattr(import_module(module), name)
    except Exception as error:
        where = f"looked in {os.pathsep.join(sys.path[:3])} and others" if isinstance(error, ModuleNotFoundError) else "see its code"
        raise ConfigError(f"{rule}: got {path!r}: {type(error).__name__}: {error} -- install it, or set PYTHONPATH ({where})") from None
    if not callable(factory):
        raise ConfigError(f"{rule}: got {path!r}, which is a {type(factory).__name__} and cannot be called -- name the factory")
    try:
        inspect.signature(factory).bind([], **options)
    except TypeError as error:
        raise ConfigError(
            f"problems.verifier_options: must be what {path!r} takes after the problems: got {options!r}: {error} -- correct them"
        ) from None
    except ValueError:
        pass  # A factory without a signature checks its own arguments.
    return cast(Factory, factory)


class PluggedVerifier:
    """A factory's verifier, with additions for grading: checked verdicts, keys of answers, and closing."""

    def __init__(self, problems: Sequence[LabelledProblem], path: str, options: dict[str, Any]) -> None:
        """Make the verifier.

        Args:
            problems: The problems to grade.
            path: As for ``load_factory``.
            options: Given to the factory by name.

        Raises:
            ConfigError: If there is no such factory, or its verifier cannot grade.
        """
        self._path = path
        self._inner: Any = load_factory(path, options)(list(problems), **options)
        if not callable(getattr(self._inner, "grade", None)):
            raise ConfigError(f"problems.verifier: {path!r} must make something with a method grade: got a {type(self._inner).__name__}")

    def grade(self, answers: Sequence[tuple[str, str | None]]) -> list[Verdict]:
        """Grade (problem id, final answer or None) pairs, in order.

        Raises:
            DataFormatError: If the verifier does not return a verdict for each.
        """
        verdicts = list(self._inner.grade(answers))
        if len(verdicts) != len(answers) or not all(isinstance(verdict, Verdict) for verdict in verdicts):
            kinds = ", ".join(sorted({type(verdict).__name__ for verdict in verdicts})) or "nothing"
            raise DataFormatError(
                f"problems.verifier: {self._path!r} must return one Verdict for each of {len(answers)} answers: got {len(verdicts)} of "
                f"type {kinds} -- correct it"
            )
        return verdicts

    def answer_key(self, answer: str) -> str:
        """Return the canonical form of an answer for votes: the verifier's own, else the text without odd blanks."""
        own: Any = getattr(self._inner, "answer_key", None)
        return str(own(answer)) if callable(own) else answer_key(answer, AnswerRule.EXACT)

    def close(self) -> None:
        """Close the verifier, if it can be closed."""
        close = getattr(self._inner, "close", None)
        if callable(close):
            close()

    def __enter__(self) -> "PluggedVerifier":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
