"""Search from Python: models are loaded once and answer any number of questions.

from stepladder import Solver

solver = Solver("runs/embedded")
solver("25143678").answer
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, overload

from stepladder.commands.solve_settings import choose_models
from stepladder.errors import BackendError, ConfigError
from stepladder.lm.loaded_models import LoadedModels
from stepladder.loops.assembly.search import choose_search
from stepladder.loops.assembly.search_session import SearchSession
from stepladder.loops.runs.newest import newest_run
from stepladder.loops.runs.object_store import is_url
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.workers import Progress
from stepladder.mcts.graph import to_networkx
from stepladder.mcts.settings.setting_checks import check_count
from stepladder.report.notebook import tree_html
from stepladder.tree_paths import path_to
from stepladder.types import SearchResult, StopReason, TreeRecord

if TYPE_CHECKING:
    import networkx


ShowProgress = bool | Callable[[int, int], None]
"""Whether to show the progress, or a function of the numbers of finished and of all questions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SolutionStep:
    """One step of a solution."""

    text: str
    """The step."""
    score: float | None
    """Score by the PRM, in [0, 1]; None without one."""
    value: float | None
    """Mean backed-up return of its node; None if it was never visited."""
    visits: int
    """Simulations that passed through it."""


@dataclass(frozen=True, slots=True)
class SolutionTree:
    """A searched tree, which a notebook draws."""

    record: TreeRecord
    """Every node with its figures."""
    answer: str | None = None
    """The answer of the search; the path to it is marked."""

    def __len__(self) -> int:
        """Return the number of nodes, the root included."""
        return len(self.record.parents)

    def to_networkx(self) -> "networkx.DiGraph":
        """Return the tree as a directed graph from the root down, as ``stepladder.mcts.graph.to_networkx`` does."""
        return to_networkx(self.record)

    def _repr_html_(self) -> str:
        return tree_html(self.record, answer=self.answer)

    def __repr__(self) -> str:
        return f"SolutionTree({len(self)} nodes, answer {self.answer!r})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """The result of a search for one question."""

    question: str
    """The question, verbatim."""
    answer: str | None
    """The final answer; None if no solution states one."""
    steps: tuple[SolutionStep, ...]
    """The solution that represents the answer, step by step; empty without an answer."""
    votes: dict[str, float]
    """Weight of every distinct answer under the method's answer rule, descending."""
    stop_reason: StopReason
    """Why the search ended."""
    result: SearchResult
    """Everything else that the search found."""

    @classmethod
    def of(cls, result: SearchResult) -> "Solution":
        """Return the result of a search in this form."""
        tree = result.tree
        return cls(
            question=tree.question,
            answer=result.answer,
            steps=tuple(
                SolutionStep(text=tree.texts[node], score=tree.scores[node], value=tree.values[node], visits=tree.visits[node])
                for node in path_to(tree, result.answer_node or 0)
            ),
            votes=result.votes,
            stop_reason=result.stop_reason,
            result=result,
        )

    @property
    def text(self) -> str:
        """The solution as one text."""
        return "".join(step.text for step in self.steps)

    @property
    def confidence(self) -> float | None:
        """Share of the votes that the answer has, in [0, 1]; None if nothing has weight."""
        return self.result.confidence

    @property
    def generated_tokens(self) -> int:
        """Tokens that the search sampled."""
        return self.result.tree.generated_tokens

    @property
    def tree(self) -> SolutionTree:
        """The searched tree."""
        return SolutionTree(self.result.tree, self.answer)

    def _repr_html_(self) -> str:
        return self.tree._repr_html_()

    def __repr__(self) -> str:
        return f"Solution(answer={self.answer!r}, {len(self.steps)} steps, {self.generated_tokens} tokens)"


class Solver:
    """Models in memory that answer questions by search.

    Example: ``Solver("runs/embedded")("25143678").answer``; for a model directory ``Solver("my-model", prm="my-prm", method="beam")``.

    A question's answer depends on the question, the settings and the seed alone: asking several at once changes nothing but the time. It is
    the answer of ``stepladder solve`` with the same settings.

    Calls of several threads wait for each other. Ask several questions in one call to search them at once.
    """

    def __init__(
        self,
        models: str | Path | None = None,
        *,
        prm: str | Path | Sequence[str | Path] = (),
        method: str | None = None,
        simulations: int | None = None,
        tokens: int | None = None,
        seconds: float | None = None,
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
        overrides: Sequence[str] = (),
    ) -> None:
        """Load the models.

        Args:
            models: Directory of a run, or its URL in an object store, whose best models are taken; or directory or hub id of a policy.
                None is the newest run in ``runs``.
            prm: Directory or hub id of a PRM, or several, which are an ensemble; ``"none"`` searches without one, with ``"self"`` the
                policy judges its own steps. Empty takes the run's.
            method: Search method; None takes that of the run's evaluation, as the next five do.
            simulations: Cap on simulations per question.
            tokens: Cap on generated tokens per question.
            seconds: Cap on seconds per question.
            options: Settings of the method by name, such as ``{"num_children": 8}``.
            seed: Seed of the searches, >= 0.
            overrides: ``section.key=value`` over the run's configuration.

        Raises:
            ConfigError: If a setting is unknown or impossible.
            CheckpointError: If there is no such run, or a model cannot be loaded.
            BackendError: If a server does not answer.
        """
        members = [prm] if isinstance(prm, str | Path) else list(prm)
        source = newest_run() if models is None else models
        is_run = models is None or is_url(source) or (Path(source) / "run.json").exists()
        config, policy, prms = choose_models(
            run=source if is_run else None,
            policy=None if is_run else str(models),
            prm=[str(member) for member in members],
            overrides=overrides,
        )
        self._choice: dict[str, Any] = {"method": method, "simulations": simulations, "tokens": tokens, "seconds": seconds}
        self._choice |= {"options": dict(options or {})}
        self._seed, self._config, self._policy, self._prms = seed, config, policy, prms
        check_count("Solver: seed", seed, least=0)
        choose_search(config, **self._choice)
        self._last: Solution | None = None
        self._models = LoadedModels()
        self._is_closed = False
        # The models hold the state of one call.
        self._one_call = RLock()
        self._session: SearchSession | None = self._open()

    @overload
    def __call__(self, question: str, **changes: Any) -> Solution: ...
    @overload
    def __call__(self, question: Iterable[str], *, progress: ShowProgress = False, **changes: Any) -> list[Solution]: ...
    def __call__(self, question: str | Iterable[str], *, progress: ShowProgress = False, **changes: Any) -> Solution | list[Solution]:
        """Search one question, or several at once.

        Args:
            question: The question, or some questions.
            progress: Show the progress on standard error; or a function that is called after every question with the numbers of finished
                and of all questions.
            changes: ``method``, ``simulations``, ``tokens``, ``seconds``, ``options`` or ``seed`` of this call, instead of the solver's.
                With another method the solver's ``options`` do not apply, and with a cap its other caps.

        Returns:
            One solution, or a list in the order of the questions.

        Raises:
            ConfigError: If a question is empty or no text, or a setting is unknown or impossible.
            BackendError: If a model fails, or no sample of a single question could be taken.
        """
        # Both would be read as the names of their columns.
        if isinstance(question, Mapping) or hasattr(question, "columns"):
            raise ConfigError(f"question: must be a text or several: got a {type(question).__name__} -- give the column of the questions")
        questions = list(question) if isinstance(question, Iterable) and not isinstance(question, str) else [question]
        for each in questions:
            if not isinstance(each, str):
                raise ConfigError(f"question: must be text: got {each!r} of type {type(each).__name__} -- give a str, or several")
            if not each.strip():
                raise ConfigError(f"question: must have text: got {each!r} -- ask something")
        with self._one_call:
            solutions = self._search(questions, changes, progress=progress)
            if solutions:
                self._last = solutions[-1]
        if not isinstance(question, str):
            return solutions
        failures = solutions[0].result.failures
        if failures.all_failed:
            raise BackendError(f"question: must be asked: {failures.sentence()}")
        return solutions[0]

    @property
    def tree(self) -> SolutionTree | None:
        """The tree of the last question; None before the first."""
        return None if self._last is None else self._last.tree

    def close(self) -> None:
        """Free the models; the solver cannot be used after that."""
        with self._one_call:
            self._is_closed = True
            self._forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Solver({self._policy!r}, method={self._choice['method'] or self._config.evaluate.method!r})"

    def _search(self, questions: list[str], changes: dict[str, Any], *, progress: ShowProgress) -> list[Solution]:
        if self._is_closed:
            raise ConfigError("Solver: must be open: it was closed -- make another one")
        session = self._session = self._session or self._open()
        seed, choice = self._with_changes(changes)
        method, budget = choose_search(self._config, **choice, num_problems=max(len(questions), 1))
        waiting, asked = list(enumerate(questions))[::-1], dict[int, int]()
        found: list[Solution | None] = [None] * len(questions)
        try:
            with _reporting(progress, len(questions)) as report:
                while waiting or asked:
                    while waiting and session.has_room:
                        place, text = waiting.pop()
                        asked[session.begin(text, method=method, budget=budget, seed=seed)] = place
                    for ticket, result in session.turn():
                        found[asked.pop(ticket)] = Solution.of(result)
                        report(result.tree.generated_tokens)
        except BackendError:
            # What is left of a failed backend cannot be used; the next question loads the models again.
            self._forget()
            raise
        except BaseException:
            # An interrupt leaves no search behind that would run beside the next question.
            try:
                for ticket in asked:
                    session.end(ticket, StopReason.ERROR)
            # It may come in the middle of an update, after which a search cannot be ended; the next question loads the models again.
            except Exception:
                self._forget()
            raise
        return [solution for solution in found if solution is not None]

    def _open(self) -> SearchSession:
        try:
            return SearchSession(self._config, self._models, policy=self._policy, prm=self._prms)
        except BaseException:
            self._models.release()
            raise

    def _forget(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None
        self._models.release()

    def _with_changes(self, changes: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return seed and choice of a call."""
        choice, given = dict(self._choice), dict(changes)
        seed = given.pop("seed", self._seed)
        unknown = sorted(set(given) - set(choice))
        if unknown:
            raise ConfigError(f"Solver: a call takes {', '.join([*choice, 'seed'])}: got {unknown[0]!r}")
        check_count("Solver: seed", seed, least=0)
        if given.get("method", choice["method"]) != choice["method"]:
            choice["options"] = {}
        caps = ("simulations", "tokens", "seconds")
        if any(name in given for name in caps):
            choice |= dict.fromkeys(caps)
        return seed, choice | given


@contextmanager
def _reporting(progress: ShowProgress, total: int) -> Iterator[Callable[[int], None]]:
    """Yield the function that takes the tokens of every finished question."""
    if not progress:
        yield lambda tokens: None
    elif callable(progress):
        done = 0

        def report(tokens: int) -> None:
            nonlocal done
            done += 1
            progress(done, total)

        yield report
    else:
        with ProgressDisplay().stages({"questions": total}) as update:
            yield lambda tokens: update(Progress(stage="questions", items=1, tokens=tokens))
