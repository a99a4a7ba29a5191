"""Sections ``search``, ``labels``, ``evaluate`` and ``gate``: how to search, what becomes of the trees, what is measured."""

from typing import Any, Literal

from pydantic import Field

from stepladder.loops.config.section import Section


class ScoresConfig(Section):
    """What a search makes of the scores of its PRM, or of several."""

    ensemble: Literal["mean", "min", "mean-variance"] = "mean"
    """One score of several PRMs': their mean, the worst, or the mean less ``penalty`` times the variance."""
    penalty: float = Field(default=0.5, ge=0)
    """Weight of the variance with ``mean-variance``."""
    entropy_penalty: float = Field(default=0.0, ge=0)
    """What a head of bins that is wholly unsure loses; 0 takes its mean alone."""
    bound: Literal["none", "clip", "par"] = "none"
    """``clip``: no score above ``bound_at``; ``par``: sigmoid(score - ``bound_at``)."""
    bound_at: float = Field(default=0.5, ge=0, le=1)
    """Where scores are bounded."""
    check: Literal["none", "arithmetic", "code"] = "none"
    """``arithmetic``: a step that states a false equation of plain numbers scores at most ``check_cap``; ``code``: so does one whose Python
    does not run behind that of the steps before it."""
    check_cap: float = Field(default=0.0, ge=0, le=1)
    """Highest score of a step that fails its check."""
    allow_unsandboxed: bool = False
    """Run the policy's code with your own rights where the system cannot shut it in."""


class SearchConfig(Section):
    """How to search."""

    method: str = "mcts"
    """Name of a search method."""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Settings of the method that differ from its defaults."""
    simulations: int = Field(default=32, ge=1)
    """Simulations per problem."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Generated tokens per problem; None is no cap."""
    max_depth: int = Field(default=16, ge=1)
    """Steps from the question to the deepest node."""
    max_step_tokens: int = Field(default=256, ge=1)
    """Tokens of one step."""
    max_trees: int = Field(default=256, ge=1)
    """Problems searched at once in one worker."""
    scores: ScoresConfig = ScoresConfig()
    """What becomes of the PRM's scores."""


class LabelsConfig(Section):
    """How trees become training data."""

    traces_per_problem: int = Field(default=2, ge=1)
    """Correct solutions kept per problem for SFT, best mean value first."""
    min_trace_value: float = Field(default=0.0, ge=0, le=1)
    """Smallest value that every step of such a solution must have."""
    revisions: int = Field(default=0, ge=0)
    """Revision traces per problem for SFT: a mistake as context, then the right way on."""
    revision_of: Literal["step", "solution"] = "step"
    """What is revised: the way to a first wrong step (Agent-R), or a whole wrong solution (RISE)."""
    revision_text: str = ""
    """Steps between the mistake and the right way on, which say that something was wrong; closed by ``format.step_end``."""
    pairs: Literal["evidence", "rstar-math", "mcts-dpo", "agent-q", "value-margin", "minimal-contrast", "anchored"] = "evidence"
    """Rule that chooses preference pairs."""
    min_margin: float | None = Field(default=None, ge=0, le=1)
    """Smallest value difference of a preference pair, or change of value of a graded step; None is what the rule's source has."""
    min_edit_distance: int | None = Field(default=None, ge=0)
    """Fewest characters in which the texts of a pair differ (``rstar-math``); None is 20."""
    critic_weight: float | None = Field(default=None, ge=0, le=1)
    """Share of the PRM's score in the value of a step (``agent-q``); None is 0.5."""
    pairs_per_node: int = Field(default=2, ge=1)
    """Preference pairs per node."""
    pairs_per_problem: int = Field(default=8, ge=1)
    """Preference pairs, or graded steps of each kind, per problem."""
    rejected_must_fail: bool = True
    """Keep a pair only if nothing below the rejected step is right (``evidence``, ``minimal-contrast``)."""
    graded: Literal["steps", "solutions"] = "steps"
    """What losses without pairs learn from: steps that change the value, or right and wrong solutions."""
    data: Literal["accumulate", "replace", "window", "on-policy"] = "accumulate"
    """Train on all rounds so far, on this round only, on the last ``window`` rounds, or on what the trees of the last ``window`` policy
    versions give together: a round that the gate turned down starts no new version."""
    window: int = Field(default=2, ge=1)
    """Rounds, or policy versions, kept with ``data = "window"`` or ``"on-policy"``."""

    @property
    def margin(self) -> dict[str, Any]:
        """``min_margin`` as an argument of a rule that has its own; nothing where none is set."""
        return {} if self.min_margin is None else {"min_margin": self.min_margin}


class EvaluateConfig(Section):
    """What is measured after each round."""

    method: str = "mcts"
    """Search method of the search accuracy."""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Settings of the method that differ from its defaults."""
    simulations: int = Field(default=16, ge=1)
    """Simulations per problem."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Generated tokens per problem."""
    samples: int = Field(default=16, ge=1)
    """Independent full solutions per problem for majority, best-of-n and the PRM's AUC."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of those samples."""
    aggregation: Literal["last", "min", "mean", "product", "geometric-mean", "max", "min-form", "log-sigmoid"] = "last"
    """How the scores of a sample's steps become one score."""
    scores: ScoresConfig = ScoresConfig()
    """What becomes of the PRM's scores, in ``solve`` as well."""


class GateConfig(Section):
    """When a round's models replace the best ones."""

    max_drop: float = Field(default=0.0, ge=0, le=1)
    """How far held-out accuracy (policy) or within-problem AUC (PRM) may fall for a model still to be accepted."""
