"""The answers that one problem's search has found: their counts, scores and verdicts, and whether they end the search."""

from collections import Counter
from collections.abc import Callable, Sequence

from stepladder.interfaces import Renderer, answer_of
from stepladder.mcts.answer_rules import PATH_RULES, AnswerTally, Choice, own_key
from stepladder.mcts.expansion import Expansion
from stepladder.mcts.qvalues import aggregate_scores
from stepladder.mcts.search_method import SearchMethod
from stepladder.mcts.settings.judgement import Valuation
from stepladder.mcts.tree import StepTable, Tree
from stepladder.types import StopReason

_END = StopReason.END


class PathScores:
    """Scores of the paths of one tree by a method's aggregation."""

    __slots__ = ("_ahead", "_rule", "_table")

    def __init__(self, table: StepTable, valuation: Valuation) -> None:
        """Read the scores of a table of steps."""
        self._table, self._rule, self._ahead = table, valuation.aggregation, valuation.ahead

    def of_node(self, index: int) -> float | None:
        """Return the score of the path to a node; None without any score."""
        score = self._table.scores[index]
        if self._rule == "last" and score is not None:
            return score
        return self.of_steps([self._table.scores[on_path] for on_path in self._table.path(index)])

    def of_steps(self, scores: Sequence[float | None]) -> float | None:
        """Return the score of a path whose steps have these scores."""
        so_far, ahead = aggregate_scores(scores, rule=self._rule), self._ahead
        if so_far is None or ahead == 0 or scores[-1] is None:
            return so_far
        return (so_far + ahead * scores[-1]) / (1 + ahead)


class FoundAnswers:
    """Reads, counts and weighs the answers of a search."""

    def __init__(
        self,
        method: SearchMethod,
        *,
        table: StepTable,
        scores: PathScores,
        renderer: Renderer,
        key_of: Callable[[str], str] = own_key,
    ) -> None:
        """Begin without answers."""
        self.key_of = key_of
        """Canonical form of an answer: answers with the same key are one answer in every count."""
        self.verdicts: dict[str | None, float] = {None: 0.0}
        """Outcome per answer, in label mode only. A solution without a readable answer is wrong."""
        self.best_score = -1.0
        """Best score of a solution with an answer."""
        self.masses = [1.0]
        """Product of the priors on the path to each node; kept for answers that are weighed by it only."""
        self.anytime: list[tuple[int, str | None]] = []
        """Tokens and leading answer after each wave."""
        self.is_weighed_by_mass = method.answer_rule == "path-vote" and not method.samples_solutions
        self._follows_path = method.answer_rule in PATH_RULES
        self._stopping = method.stopping
        self._table, self._scores, self._renderer = table, scores, renderer
        self._rule = method.answer_rule
        self._tally = AnswerTally(self._rule, key_of)

    def stop_reason(self) -> StopReason | None:
        """Return the reason for which the answers end the search, or None."""
        stop_value = self._stopping.stop_value
        if stop_value is not None and self.best_score >= stop_value:
            return StopReason.VALUE
        return StopReason.CONVERGED if self._has_settled() else None

    def _has_settled(self) -> bool:
        agreement = self._stopping.agreement
        if agreement is None or len(self.anytime) < agreement.stop_agreement:
            return False
        recent = Counter(self.key_of(answer) for _, answer in self.anytime[-agreement.stop_window :] if answer is not None)
        return bool(recent) and max(recent.values()) >= agreement.stop_agreement

    def read(self, expansion: Expansion) -> None:
        """Read the answers of an expansion's new nodes, which are numbered now."""
        if _END not in expansion.reasons:
            return
        table, texts = self._table, {}
        for index, reason in enumerate(expansion.reasons, start=expansion.first):
            if reason is not _END:
                continue
            parent = table.parents[index]
            # Siblings share all text but their own.
            if parent not in texts:
                texts[parent] = table.path_text(parent)
            answer = answer_of(self._renderer, (table.steps[index],), texts[parent])
            if answer is not None:
                table.answers[index] = answer

    def ungraded(self, wave: Sequence[Expansion], first: int) -> list[str]:
        """Return the answers of a wave's nodes, which are numbered from ``first`` on, and of its rollouts that have no verdict yet."""
        answers: list[str | None] = [self._table.answers.get(node) for node in range(first, len(self._table.steps))]
        for expansion in wave:
            for rollout in expansion.rollouts:
                answers += rollout.answers
        return [answer for answer in dict.fromkeys(answers) if answer is not None and answer not in self.verdicts]

    def note(self, expansion: Expansion) -> None:
        """Count the answers of new terminals, or of a revisited terminal, whose path gets no further mass."""
        if expansion.num_samples == 0:
            self._count(expansion.leaf, 1, again=True)
            return
        for index, count in expansion.repeats:
            self._count(index, count, again=True)
        for index, count in enumerate(expansion.counts, start=expansion.first):
            self._count(index, count, again=False)

    def _count(self, index: int, count: float, *, again: bool) -> None:
        """Count the answer at a node, if there is one."""
        table, answer = self._table, self._table.answers.get(index)
        if answer is None:
            return
        if self.is_weighed_by_mass:
            count = 0.0 if again else self.masses[index]
        score = self._scores.of_node(index)
        self.best_score = max(self.best_score, -1.0 if score is None else score)
        self._tally.add(index, answer, score, count=count, path=table.path(index) if self._follows_path else ())

    def end_wave(self, tree: Tree, row: int, generated_tokens: int, *, widened: bool) -> None:
        """Record the present answer of the search. ``widened`` says that nodes with children were sampled, which changes prior masses."""
        if widened and self.is_weighed_by_mass:
            self._weigh_again(tree.prior[row, : len(self._table.steps)].tolist())
        if self._follows_path:
            used = slice(len(self._table.steps))
            self._tally.follow(tree.visits[row, used].tolist(), tree.value[row, used].tolist())
        self.anytime.append((generated_tokens, self._tally.leader()))

    def _weigh_again(self, priors: Sequence[float]) -> None:
        """Weigh all answers by the prior masses of the present tree."""
        for node in range(1, len(priors)):
            self.masses[node] = priors[node] * self.masses[self._table.parents[node]]
        self._tally = AnswerTally(self._rule, self.key_of)
        for node, answer in self._table.answers.items():
            self._tally.add(node, answer, self._scores.of_node(node), count=self.masses[node])

    def choice(self) -> Choice:
        """Return the answer of the search."""
        return self._tally.choice()
