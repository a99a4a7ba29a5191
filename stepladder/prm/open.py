"""Opened process reward models, with two views: a scorer of search steps, and a scorer of written solutions.

``open_prm`` is the only place that turns a source into a model. An opened model loads its weights when one of its two views is taken, so
mismatches are refused before that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import nn

from stepladder.errors import DataFormatError
from stepladder.interfaces import Policy, Ranges, ScoreRequest, StepScorer, collect_all
from stepladder.lm.prefix_cache import AttachedHead
from stepladder.lm.vllm_engine import VLLMEngine
from stepladder.lm.vllm_start import Task
from stepladder.prm.compose import ensemble_score
from stepladder.prm.families import FAMILIES
from stepladder.prm.reader import Scores, Solution
from stepladder.prm.requests import SplitPrefix
from stepladder.prm.sources import PRMSource
from stepladder.prm.specs import PRMSpec
from stepladder.prm.text_scorer import SolutionReader, TextStepScorer
from stepladder.prm.word_judge import VerdictPrompts
from stepladder.types import Problem

T = TypeVar("T")
Encode = Callable[[str], tuple[int, ...]]
"""Returns the tokens of a text."""


class TokenRenderer(Protocol):
    """Turns questions and steps into the tokens that a policy would have."""

    @property
    def hash(self) -> str:
        """Identifies template, tokenizer and step format."""
        ...

    @property
    def step_end(self) -> str:
        """The text that ends a step."""
        ...

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        """Return the prompt of a problem."""
        ...

    def encode_steps(self, text: str, *, place: str) -> list[tuple[int, ...]]:
        """Return written steps, cut like sampled ones; ``place`` names their source."""
        ...


class SearchPrompts(Protocol):
    """Finds question and earlier steps in the score requests of a search."""

    @property
    def renderer_hash(self) -> str:
        """Hash of the renderer that made the prompts."""
        ...

    def length(self, prefix_ids: tuple[int, ...]) -> int | None:
        """Return the number of prompt tokens of a prefix; None if it begins with no known problem."""
        ...

    def split(self, prefix_ids: tuple[int, ...], observations: Ranges) -> SplitPrefix | None:
        """Return a prefix, in which some ranges are observations, as text; None if it begins with no known problem."""
        ...

    def decode(self, step_ids: Sequence[int]) -> str:
        """Return the text of a step as ``split`` gives it."""
        ...


class ModelAccess(Protocol):
    """The services of the process that opens a PRM; ``loops.assembly.prms`` implements them for every command."""

    def weights(self, made_from: object, load: Callable[[], T], *, is_reference: bool = False) -> T:
        """Return loaded weights. If the process already holds weights with an equal ``made_from``, it returns them.

        Args:
            made_from: Everything that decides what ``load`` returns.
            load: Loads them.
            is_reference: Whether they are those of the reference of an implicit model.
        """
        ...

    def engine(self, model: str, *, task: Task, num_engines: int = 1, is_reference: bool = False) -> VLLMEngine:
        """Return a vLLM engine.

        Args:
            model: Model directory or hub id.
            task: As for ``VLLMEngine``.
            num_engines: Engines that the PRM needs at once; they share its memory.
            is_reference: Whether the engine serves the reference of an implicit model.
        """
        ...

    def attach(self, source: PRMSource, spec: PRMSpec, head: nn.Module) -> AttachedHead:
        """Read a head off the hidden states of the policy that a probe's spec names.

        If that policy samples in this process, its body and its cache are shared, and steps are read in the passes that sample them.

        Raises:
            CheckpointError: If the policy cannot be loaded, or the head was trained on another one.
        """
        ...

    def renderer(self, source: PRMSource) -> TokenRenderer:
        """Return the renderer that a model of a policy's tokens was saved with."""
        ...

    def judge_policy(self, source: PRMSource, spec: PRMSpec) -> tuple[Policy, Encode, Encode]:
        """Return the policy that writes a judge's verdicts, and functions that return the tokens of a prompt, and of a text after it."""
        ...

    def judge_prompts(self, source: PRMSource, spec: PRMSpec) -> VerdictPrompts:
        """Return the prompts of a judge that says one word."""
        ...


class SolutionScorer(Protocol):
    """Scores written solutions: a ``StepReader``, a ``Judge``, ``TokenSolutionScorer`` or ``EnsembleSolutionScorer``."""

    def score(self, solutions: Sequence[Solution]) -> list[Scores]:
        """Return one score in [0, 1] or None per step of every solution.

        Raises:
            DataFormatError: If a solution does not fit the model's spec.
        """
        ...


class OpenedPRM(Protocol):
    """A process reward model with its two views; take one of them."""

    @property
    def spec(self) -> PRMSpec:
        """How it is read."""
        ...

    def step_scorer(self, prompts: SearchPrompts) -> StepScorer:
        """Return what scores the steps of a search.

        Raises:
            DataFormatError: If the model was trained on prompts of another renderer.
        """
        ...

    def solution_scorer(self) -> SolutionScorer:
        """Return what scores written solutions."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPRM:
    """A model that reads text. The tokens of a search are decoded for it."""

    spec: PRMSpec
    """How it is read."""
    load: Callable[[], SolutionReader]
    """Loads it."""

    def step_scorer(self, prompts: SearchPrompts) -> StepScorer:
        """Return what scores the steps of a search."""
        return TextStepScorer(self.load(), split=prompts.split, decode=prompts.decode)

    def solution_scorer(self) -> SolutionScorer:
        """Return what scores written solutions."""
        return self.load()


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenPRM:
    """A model that reads a policy's own tokens. Written solutions are encoded for it."""

    spec: PRMSpec
    """How it is read."""
    model: str
    """Its source, for messages."""
    load: Callable[[Callable[[tuple[int, ...]], int | None]], StepScorer]
    """Loads it, given a function that returns the number of prompt tokens of a prefix."""
    renderer: Callable[[], TokenRenderer]
    """Loads the renderer that it was saved with."""

    def step_scorer(self, prompts: SearchPrompts) -> StepScorer:
        """Return what scores the steps of a search.

        Raises:
            DataFormatError: If the model was trained on prompts of another renderer.
        """
        if prompts.renderer_hash != self.spec.renderer_hash:
            raise DataFormatError(
                f"{self.model}: the PRM must have been trained on the prompts and steps of this policy: got renderer "
                f"{prompts.renderer_hash!r}, expected {self.spec.renderer_hash!r} -- use the PRM of the same run, or one that reads text"
            )
        return self.load(prompts.length)

    def solution_scorer(self) -> SolutionScorer:
        """Return what scores written solutions.

        Raises:
            DataFormatError: If the tokenizer or step format in the model's directory are not those of its training.
        """
        renderer = self.renderer()
        if renderer.hash != self.spec.renderer_hash:
            raise DataFormatError(
                f"{self.model}: tokenizer and step format must be those that the PRM was trained with: got renderer {renderer.hash!r}, "
                f"expected {self.spec.renderer_hash!r} -- keep the files of the model directory as they were saved"
            )
        # Whole solutions are scored, so that a request's prefix is the prompt alone.
        return TokenSolutionScorer(self.load(len), renderer)


class TokenSolutionScorer:
    """Scores written solutions with a model that reads the policy's own tokens."""

    def __init__(self, scorer: StepScorer, renderer: TokenRenderer) -> None:
        """Combine a scorer with the renderer that its model was trained with."""
        self._scorer, self._renderer = scorer, renderer

    def score(self, solutions: Sequence[Solution]) -> list[Scores]:
        """Return one score in [0, 1] or None per step of every solution.

        Raises:
            DataFormatError: If a step holds a step boundary of the model's format.
        """
        requests = [self._request(ticket, solution) for ticket, solution in enumerate(solutions)]
        return [result.scores[0] for result in collect_all(self._scorer, requests)]

    def _request(self, ticket: int, solution: Solution) -> ScoreRequest:
        end = self._renderer.step_end
        text = "".join(step if step.endswith(end) else step + end for step in solution.steps)
        steps = self._renderer.encode_steps(text, place=solution.place)
        if len(steps) != len(solution.steps):
            raise DataFormatError(
                f"{solution.place}: a step must not hold the model's step boundary {end!r} inside, nor be empty: got {len(steps)} pieces "
                f"of {len(solution.steps)} steps -- split the steps there"
            )
        prefix = self._renderer.prompt_ids(Problem(id=solution.place, question=solution.question))
        return ScoreRequest(ticket=ticket, prefix_ids=prefix, branches=(tuple(steps),))


class EnsembleSolutionScorer:
    """Scores written solutions with several models: the mean of their scores; None if one has no score."""

    def __init__(self, members: Sequence[SolutionScorer]) -> None:
        """Combine scorers, at least one."""
        self._members = members

    def score(self, solutions: Sequence[Solution]) -> list[Scores]:
        """Return one score in [0, 1] or None per step of every solution."""
        by_member = [member.score(solutions) for member in self._members]
        return [tuple(map(ensemble_score, zip(*scores, strict=True))) for scores in zip(*by_member, strict=True)]


def open_prm(source: PRMSource, access: ModelAccess) -> OpenedPRM:
    """Open one model; nothing is loaded before a view is taken.

    Args:
        source: The model, which is no ensemble.
        access: Gives weights and engines.

    Raises:
        ConfigError: If the model has no spec, or an implicit model has no reference.
        CheckpointError: If its spec is malformed.
    """
    spec = source.resolve()
    return FAMILIES[spec.family].open_with()(source, spec, access)
