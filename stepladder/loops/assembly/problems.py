"""Problems and their grader, from the configuration."""

from collections.abc import Callable
from functools import lru_cache, partial

from stepladder.data.datasets.problems import check_disjoint, load_problems, split_problems
from stepladder.data.grading.answers import answer_key
from stepladder.data.grading.plugged import PluggedVerifier, load_factory
from stepladder.data.grading.rules import MathOptions
from stepladder.data.grading.verifier import AnswerVerifier
from stepladder.loops.config.problems import ProblemsConfig
from stepladder.types import LabelledProblem

OpenVerifier = AnswerVerifier | PluggedVerifier
"""A grader with keys of answers, to be closed."""
_MAX_REMEMBERED = 65_536


def check_verifier(config: ProblemsConfig) -> None:
    """Check that a verifier from outside can be imported, before any work starts.

    Raises:
        ConfigError: If it cannot.
    """
    if config.verifier is not None:
        load_factory(config.verifier, config.verifier_options)


def vote_keys(config: ProblemsConfig, verifier: OpenVerifier | None = None) -> Callable[[str], str]:
    """Return the function that gives the canonical form of answers for votes; it reads no reference answer.

    Args:
        config: The rule of grading.
        verifier: The grader, if there is one at hand: one from outside gives its own keys. Without it, one is made without problems.
    """
    if config.verifier is None:
        key_of = partial(answer_key, rule=config.rule, options=grading_options(config))
    else:
        key_of = (verifier or PluggedVerifier([], config.verifier, config.verifier_options)).answer_key
    # A search asks for the key of an answer each time that it reaches it.
    return lru_cache(maxsize=_MAX_REMEMBERED)(key_of)


def build_problems(config: ProblemsConfig, *, seed: int) -> dict[str, list[LabelledProblem]]:
    """Load the three splits, keyed ``train``, ``held_out`` and ``test``, and check that they are disjoint.

    Raises:
        DataFormatError: If a file breaks its format or a problem is in two splits.
    """
    train = load_split(config, config.train, limit=None if config.held_out is None else config.train_limit, split=config.train_split)
    test = load_split(config, config.test, limit=config.test_limit, split=config.test_split)
    if config.held_out is not None:
        held_out = load_split(config, config.held_out, limit=config.held_out_limit, split=config.train_split)
    else:
        train, held_out = split_problems(train, held_out=config.held_out_size, seed=seed)
        train, held_out = train[: config.train_limit], held_out[: config.held_out_limit]
    check_disjoint(train=train, held_out=held_out, test=test)
    return {"train": train, "held_out": held_out, "test": test}


def load_split(config: ProblemsConfig, source: str, *, limit: int | None, split: str) -> list[LabelledProblem]:
    """Load the labelled problems of one source with the configured fields.

    Raises:
        DataFormatError: If the source breaks its format.
    """
    return load_problems(
        source,
        id_field=config.id_field or None,
        question_field=config.question_field,
        answer_field=config.answer_field,
        answer_pattern=config.answer_pattern,
        level_field=config.level_field,
        rule=None if config.verifier else config.rule,
        # A verifier of your own may need no reference answer.
        allow_unlabelled=config.verifier is not None,
        drop_unreadable=config.unreadable == "drop",
        subset=config.subset,
        split=split,
        limit=limit,
    )


def build_verifier(config: ProblemsConfig, problems: list[LabelledProblem]) -> OpenVerifier:
    """Return the grader that holds the answers; close it when done.

    Raises:
        ConfigError: If a verifier from outside cannot be imported or made.
        DataFormatError: If a reference answer cannot be read.
    """
    if config.verifier is not None:
        return PluggedVerifier(problems, config.verifier, config.verifier_options)
    return AnswerVerifier(problems, config.rule, options=grading_options(config), deadline_s=config.deadline_s)


def grading_options(config: ProblemsConfig) -> MathOptions:
    """Return the options of rule ``math``."""
    return MathOptions.of(**config.grading.model_dump())
