"""Problems and their grader, from the configuration."""

from collections.abc import Callable
from functools import lru_cache

from stepladder.data.grading.plugged import PluggedVerifier, TaskVerifier, load_verifier, needs_reference, open_verifier, taken_arguments
from stepladder.data.grading.rules import MathOptions
from stepladder.data.grading.verifier import AnswerVerifier
from stepladder.errors import ConfigError
from stepladder.loops.config.problems import FormatConfig, ProblemsConfig
from stepladder.types import LabelledProblem

OpenVerifier = AnswerVerifier | TaskVerifier | PluggedVerifier
"""A grader with keys of answers, to be closed."""
_MAX_REMEMBERED = 65_536


def check_verifier(config: ProblemsConfig, stated: FormatConfig | None = None) -> None:
    """Check that a task's verifier can be imported and is given what it takes, before any work starts.

    Raises:
        ConfigError: If not.
    """
    if config.verifier is None:
        return
    taken = taken_arguments(load_verifier(config.verifier, config.verifier_options))
    if stated is not None and "solution" in taken and stated.answer != "solution":
        raise ConfigError(
            f"problems.verifier: {config.verifier!r} takes the whole solution, so that must be the answer: got format.answer = "
            f'{stated.answer!r} -- set format.answer = "solution", or let it take the argument answer'
        )


def try_verifier(config: ProblemsConfig, labelled: LabelledProblem) -> None:
    """Let a task's verifier grade an answer, so that one that gives no verdict is refused before any work.

    A factory may load a model, so it is not made.

    Args:
        config: Names the verifier.
        labelled: Any problem.

    Raises:
        DataFormatError, BackendError: If it gives none, or its process does not start.
    """
    if config.verifier is None:
        return
    verifier = build_verifier(config, [labelled]) if taken_arguments(load_verifier(config.verifier, config.verifier_options)) else None
    if isinstance(verifier, TaskVerifier):
        verifier.try_once()


def vote_keys(verifier: OpenVerifier) -> Callable[[str], str]:
    """Return the function that gives the canonical form of answers for votes: a grader's, which reads no reference answer."""
    # A search asks for the key of an answer each time that it reaches it.
    return lru_cache(maxsize=_MAX_REMEMBERED)(verifier.answer_key)


def build_verifier(config: ProblemsConfig, problems: list[LabelledProblem]) -> OpenVerifier:
    """Return the grader that holds the answers; close it when done.

    Raises:
        ConfigError: If a verifier from outside cannot be imported or made.
        DataFormatError: If a reference answer cannot be read.
    """
    if config.verifier is not None:
        return open_verifier(problems, config.verifier, config.verifier_options, passing=config.passing, deadline_s=config.deadline_s)
    return AnswerVerifier(problems, config.rule, options=grading_options(config), deadline_s=config.deadline_s)


def has_references(config: ProblemsConfig) -> bool:
    """Say whether problems must have reference answers. A verifier that takes none can do without.

    Raises:
        ConfigError: If the verifier cannot be imported.
    """
    if not config.answer_field:
        return False
    return config.verifier is None or needs_reference(config.verifier, config.verifier_options)


def grading_options(config: ProblemsConfig) -> MathOptions:
    """Return the options of rule ``math``."""
    return MathOptions.of(**config.grading.model_dump())
