"""Sections ``sft``, ``preference``, ``gradient``, ``warmup``, ``prm`` and ``training``: the models, their losses, and how to train."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args, get_type_hints

from annotated_types import Ge, Gt, Lt
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from stepladder.data.labels.rstar_math import StepPairs
from stepladder.errors import check, right_name
from stepladder.lm.settings import StageSettings
from stepladder.loops.config.section import Section, Variant
from stepladder.policy.gradient_settings import GRPO, GradientLoss
from stepladder.policy.preference_settings import DPO, PreferenceLoss, UnpairedLoss
from stepladder.settings import Count, Natural, Positive, check_bounds


class TrainingConfig(Section):
    """Settings of all trainings."""

    num_processes: int = Field(default=1, ge=1)
    """Processes that train one model together, one per GPU: of this machine, or of the cluster with ``run.cluster = "ray"``. They share
    every update; results differ by rounding."""
    accelerate_config: str | None = None
    """Configuration file of accelerate, for a model that one GPU cannot hold with its optimiser (FSDP, DeepSpeed); None is a copy each."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = ()
    """Trackers that get every update's loss, learning rate and gradient norm."""

    @property
    def launched(self) -> bool:
        """Whether trainings are started by accelerate, in processes of their own."""
        return self.num_processes > 1 or self.accelerate_config is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTConfig(StageSettings):
    """Supervised fine-tuning of the policy on right solutions."""

    enabled: bool = True
    """Whether the policy learns from traces; without it, from preferences alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceConfig(StageSettings):
    """Step-level preference training of the policy."""

    enabled: bool = True
    """Whether to train on preferences after the SFT stage."""
    loss: Annotated[PreferenceLoss, Variant("dpo")] = DPO()  # noqa: RUF009
    """Loss of a pair of ``labels.pairs``; with ``kto`` and ``oreal``, of a single good or bad continuation (``labels.graded``); see
    docs/training.md."""
    reference: Literal["start", "base", "sampler"] = "start"
    """The model before this stage, the warmed-up base model, or the policy that sampled each row (off-policy: its stored
    log-probabilities)."""

    def __post_init__(self) -> None:
        StageSettings.__post_init__(self)
        check(
            self.loss.needs_reference or self.reference == "start",
            f"loss {self.loss.type!r} has no reference model: got reference {self.reference!r} -- leave it out",
        )
        check(
            self.reference != "sampler" or not getattr(self.loss, "needs_mismatched", False),
            "reference 'sampler' is not for loss 'kto', which also reads continuations that nobody sampled: use 'start'",
        )

    @property
    def unpaired(self) -> bool:
        """Whether the loss takes continuations one by one."""
        return isinstance(self.loss, get_args(UnpairedLoss))

    @property
    def reads_agreement(self) -> bool:
        """Whether the loss needs the agreement of two PRMs on the siblings of a pair."""
        return isinstance(self.loss, DPO) and self.loss.label_smoothing == "agreement"


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientConfig(StageSettings):
    """Policy-gradient training of the policy on the advantages of ``labels.advantages``."""

    enabled: bool = False
    """Whether to train by policy gradients, after SFT and preferences where these are on."""
    loss: Annotated[GradientLoss, Variant("grpo")] = GRPO()  # noqa: RUF009
    """The clipped loss: ``grpo``, ``dapo``, ``dr-grpo`` or ``gspo``, with its settings; see docs/training.md."""
    reference: Literal["start", "base"] = "start"
    """Reference of ``loss.kl_weight``: the model before this stage, or the warmed-up base model."""
    epochs: Annotated[float, Gt(0), Lt(math.inf)] = 1.0
    """Passes over the rows, > 0, rounded up to whole updates. After the first update the policy is no longer the one that sampled."""
    max_staleness: Natural = 7
    """With ``run.update_every``: updates of the policy after the search of a row beyond which it is not used any more, >= 0. Every row has
    its own (``staleness``)."""


class WarmupConfig(Section):
    """Round 0: supervised fine-tuning on a few solved problems."""

    solutions: str | None = None
    """JSONL file with id, question and solution, and ``finished`` = false where a solution is cut; None starts from the model as it is."""
    train: StageSettings = StageSettings()
    """How to train on them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeTarget:
    """Target of a step, from the trees."""

    type: Literal[
        "monte-carlo", "tree-value", "q", "score", "hard-max", "distance", "discounted", "bootstrapped", "outcome", "progress"
    ] = "monte-carlo"
    """Mean outcome of the leaves below a step, its backed-up value without and with its own reward, its score by the PRM that searched,
    whether any leaf below it is right, its progress on the shortest way to a right leaf, the discounted outcome on that way, the same
    with the PRM's scores where no way is known, the outcome of the whole solution, or progress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutTarget:
    """Target of a step, estimated by rollouts of the round's new policy, or of another prover, from every prefix."""

    type: Literal["rollouts", "rollouts-hard", "first-error"] = "rollouts"
    """Share of right rollouts, whether there is one, or which step is the first from which there is none."""
    prefix_rollouts: Count = 4
    """Rollouts from every prefix, >= 1."""
    prover: Literal["policy", "base"] = "policy"
    """Who rolls out: the round's policy, or the warmed-up one, for which a step is worth what a prover makes of it (PAV)."""

    def __post_init__(self) -> None:
        check_bounds(self, where="prm.target")

    def version(self, policy: int) -> int:
        """Return the version of the policy that rolls out, given the round's."""
        return 0 if self.prover == "base" else policy


PRMTarget = TreeTarget | RolloutTarget | StepPairs
"""What a PRM learns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadLoss:
    """Loss on one score of every step."""

    type: Literal["bce", "mse", "pairwise", "pairwise+mse", "listwise"] = "bce"
    """Cross-entropy or squared error of each step, or comparison of the steps after one beginning (``listwise``: of one problem)."""
    head: Literal["value", "two-class"] = "value"
    """Outputs of a new head: one, or one for bad and one for good steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BinLoss:
    """Cross-entropy on the bins of a value head."""

    type: Literal["hl-gauss", "two-hot"] = "hl-gauss"
    """How a target is spread over the bins."""
    bins: Annotated[int, Ge(2)] = 32
    """Outputs of a new head, >= 2."""

    def __post_init__(self) -> None:
        check_bounds(self, where="prm.loss")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImplicitLoss:
    """Loss on the log-ratio of a language model to the policy that it starts from; it has no head."""

    type: Literal["implicit-ce", "implicit-dpo"] = "implicit-ce"
    """Cross-entropy of each solution, or DPO: on pairs of solutions, or with the target ``step-pairs`` on pairs of steps."""
    beta: Positive = 0.05
    """Factor on the log-ratio, > 0."""

    def __post_init__(self) -> None:
        check_bounds(self, where="prm.loss")


@dataclass(frozen=True, kw_only=True, slots=True)
class VerdictLoss:
    """Likelihood of a judge's verdicts that agree with the targets of steps, above or below one half; it has no head.

    The judge is read as ``prm.spec`` says. One that says its word at once learns the right word for every step.
    """

    type: Literal["verdicts"] = "verdicts"
    """The name."""
    per_side: Count = 2
    """Right steps of a problem that are judged, and as many wrong ones, >= 1."""
    samples: Count = 4
    """Verdicts written on each of them, >= 1; the first that agrees is learned."""
    teacher: str | None = None
    """Directory or hub id of the model that writes them, which has the judge's tokenizer; None is the one that is trained."""

    def __post_init__(self) -> None:
        check_bounds(self, where="prm.loss")


HeadRead = Literal["step-end", "before-end"]
"""Token of a step at which a head on the policy's body is read: its last one, or the one before."""
PRMLoss = HeadLoss | BinLoss | ImplicitLoss | VerdictLoss
"""How a PRM learns it."""


def prm_loss(name: str) -> PRMLoss:
    """Return a loss by its name, with its default settings.

    Raises:
        ConfigError: If there is none.
    """
    names = {choice: kind for kind in get_args(PRMLoss) for choice in get_args(get_type_hints(kind)["type"])}
    check(name in names, f"loss must be one of {', '.join(names)}: got {name!r} -- {right_name(name, names)}")
    return names[name](type=name)


class PRMConfig(Section):
    """The process reward model."""

    enabled: bool = True
    """Without it, only outcomes guide the search, and majority chooses the answers. In a single round, earlier PRMs are kept."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """Scorer of steps: the embedded engine, or vLLM in process with the settings under ``policy.vllm``."""
    model: str | None = None
    """Directory or hub id of a PRM to start from, or to keep; None starts from the policy with a new head."""
    start: Literal["policy", "base", "best", "last", "fixed", "self", "self-base"] = "policy"
    """Model that each round's PRM is trained from: the round's new policy or the warmed-up one, with a new head; or the best PRM so far, or
    the one trained last, accepted or not. Where there is no PRM yet, and for ``policy`` and ``base``, ``model`` goes first if it is given.
    ``fixed`` trains none: ``model``, of any family, guides the search. Nor do ``self``, where each policy scores its own steps, and
    ``self-base``, where the warmed-up one does: as a judge, or by its log-probabilities, as ``spec`` says."""
    body: Literal["own", "policy", "joint"] = "own"
    """Model whose hidden states the trained PRM reads: a body of its own, which is trained whole, or the policy's. With ``policy`` nothing
    of the policy is changed and only a head is trained (a probe). With ``joint`` the SFT stage trains policy and head together, by one loss
    (AlphaMath's two heads). A search then scores steps in the passes that sample them, without a second model. Both need
    ``policy.backend = "transformers"``."""
    joint_weight: Positive = 0.1
    """With the body ``joint``: weight of the loss on values beside the likelihood of the solutions, > 0."""
    read: HeadRead | None = None
    """Token at which a head on the policy's body is read: the last one of a step, which costs a pass for the last token of every sample, or
    the one before it, whose pass samples the end anyway. None is ``before-end``. A body of its own reads at ``step-end``."""
    spec: str | None = None
    """How to read PRMs whose directories do not contain their spec: a name of ``prm specs``, or a ``.json`` file."""
    spec_options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Fields of ``spec`` with other values, such as ``center`` and ``width`` of ``surprisal``."""
    reference: str | None = None
    """Reference of an implicit PRM that names none."""
    ensemble: int = Field(default=1, ge=1)
    """Number of PRMs trained each round, with different seeds. ``search.scores`` sets how they guide the search together."""
    bootstrap: bool = True
    """Whether each PRM of an ensemble learns from problems drawn with replacement."""
    rollouts: int = Field(default=0, ge=0)
    """Full solutions per training problem that the round's new policy samples for the PRM to learn from, instead of the trees. Trees show
    the steps of the policy before, and misjudge those of a policy that has changed much. 0 learns from the trees."""
    rollout_temperature: Positive = 1.0
    """Temperature of ``rollouts``, > 0."""
    when: Literal["after-policy", "before-search"] = "after-policy"
    """When a round trains the PRM: at its end, on solutions of the new policy; or at its beginning, on ``rollouts`` of the policy that then
    searches with it. Then the first round has a PRM, too, and the policy learns from the same solutions in the same round."""
    replay: float = Field(default=0.0, ge=0, lt=1)
    """Share of the PRM's rows that are solved examples of ``warmup.solutions``, in [0, 1), as for ``labels.replay``. Their steps have the
    values of ``target``; a finished example that does not end with an answer is wrong, and an unfinished one is left out."""
    mixed_only: bool = False
    """Learn only from problems with right and wrong solutions, because right steps look wrong in unsolved problems."""
    right_share: float = Field(default=0.0, ge=0, lt=1)
    """With the target ``outcome``: repeat right solutions until they are this share of the rows, in [0, 1); 0 repeats none. A loss on
    single solutions learns little where hardly any is right."""
    data: Literal["accumulate", "replace"] = "replace"
    """Learn from all rounds so far, or only from this round. Errors of an early policy say little about those of a good one. With
    ``rollouts`` that are sampled ``before-search``, earlier rounds have trees as well, from which it learns, too."""
    target: Annotated[PRMTarget, Variant("monte-carlo")] = TreeTarget()
    """Target of a step; see docs/prm.md."""
    loss: Annotated[PRMLoss, Variant("bce")] = HeadLoss()
    """Loss on the targets; see docs/prm.md."""
    supervise: Literal["step-end", "every-token"] = "step-end"
    """Tokens of a step that learn its target: the last one, at which scores are read, or all, with which a small model learns faster."""
    train: StageSettings = StageSettings()
    """How to train it."""

    @model_serializer(mode="wrap")
    def _leave_out_unused(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Without options of a spec, settings are written, and so hashed, as before there were any.
        return {name: value for name, value in write(self).items() if name != "spec_options" or value}

    @property
    def is_policy(self) -> bool:
        """Whether a policy scores steps, and no model of its own."""
        return self.start in ("self", "self-base")

    @property
    def trains(self) -> bool:
        """Whether rounds train a PRM of their own."""
        return self.enabled and not self._is_kept

    @property
    def samples_first(self) -> bool:
        """Whether rounds begin with graded samples, from which the PRM learns before the search."""
        return self.trains and self.when == "before-search"

    @property
    def _is_kept(self) -> bool:
        """Whether what scores steps is given, and nothing trains it."""
        return self.start == "fixed" or self.is_policy

    def version(self, policy: int) -> int | None:
        """Return the version of a PRM that is not trained, given that of the policy that it guides; None if rounds train theirs.

        A policy that scores has the version of that policy; a given model is version 0.
        """
        if not self.enabled or self.trains:
            return None
        return policy if self.start == "self" else 0

    @model_validator(mode="after")
    def _check_choices(self) -> Self:
        loss, target = self.loss.type, self.target.type
        implicit, compares = isinstance(self.loss, ImplicitLoss), loss in ("pairwise", "pairwise+mse", "listwise")
        check(self.start != "fixed" or self.model, f"start 'fixed' needs a model to keep: got model {self.model!r}")
        check(
            not self.is_policy or (self.spec and self.model is None),
            f"start {self.start!r} reads the policy as spec says, and takes no model: got spec {self.spec!r} and model {self.model!r}",
        )
        check(self.spec or not self.spec_options, f"spec_options change a spec: got {self.spec_options!r} and no spec -- name it")
        check(
            self.when == "after-policy" or not self.trains or self.rollouts,
            "when 'before-search' trains on graded samples: got rollouts 0 -- set prm.rollouts",
        )
        check(not self._is_kept or self.ensemble == 1, f"start {self.start!r} trains nothing: got an ensemble of {self.ensemble}")
        check(
            target != "step-pairs" or loss in ("pairwise", "pairwise+mse", "implicit-dpo"),
            f"target 'step-pairs' needs the loss 'pairwise', 'pairwise+mse' or 'implicit-dpo': got {loss!r}",
        )
        check(
            not implicit or target == "outcome" or (loss, target) == ("implicit-dpo", "step-pairs"),
            f"loss {loss!r} learns from whole solutions: got target {target!r}, expected 'outcome'",
        )
        check(
            not implicit or (self.start in ("policy", "base") and self.model is None),
            f"loss {loss!r} measures against the policy it starts from: got start {self.start!r}, expected 'policy' or 'base'",
        )
        check(
            not self.right_share or (target == "outcome" and not compares and loss != "implicit-dpo"),
            f"right_share balances single solutions with the target 'outcome': got target {target!r} and loss {loss!r} -- leave it out",
        )
        self._check_body()
        self._check_verdicts()
        check(
            self.supervise == "step-end" or not (implicit or compares),
            f"loss {loss!r} reads steps where they end: got supervise {self.supervise!r}, expected 'step-end'",
        )
        return self

    def _check_verdicts(self) -> None:
        """Refuse settings that a judge does not learn by."""
        if not (isinstance(self.loss, VerdictLoss) and self.trains):
            return
        needs = {"supervise": (self.supervise, "step-end"), "right_share": (self.right_share, 0), "replay": (self.replay, 0)}
        for name, (found, expected) in needs.items():
            check(found == expected, f"loss 'verdicts' balances its own rows: needs {name} {expected!r}, got {found!r}")
        check(self.spec is not None, "loss 'verdicts' trains a judge: needs its spec, got none -- set prm.spec = 'judge', or see prm specs")

    def _check_body(self) -> None:
        """Refuse settings that a head on the policy's body does not have, and those that nothing else has."""
        if self.body == "own":
            check(
                self.read in (None, "step-end"), f"body 'own' reads at the end of steps: got read {self.read!r} -- set prm.body = 'policy'"
            )
            return
        if self.body == "joint":
            self._check_joint()
        check(
            not self._is_kept,
            f"body {self.body!r} trains a head: got start {self.start!r}, which trains nothing -- choose another start",
        )
        check(self.model is None, f"body {self.body!r} trains a head on the policy: got model {self.model!r} -- leave it out")
        check(
            not isinstance(self.loss, ImplicitLoss | VerdictLoss) and getattr(self.loss, "head", "value") == "value",
            f"body {self.body!r} has a value head: got loss {self.loss.type!r} for something else -- choose a loss on values",
        )
        check(self.train.lora is None, f"body {self.body!r} trains a head alone: got train.lora -- leave it out")
        check(self.backend == "transformers", f"body {self.body!r} needs the policy's hidden states: got backend {self.backend!r}")

    def _check_joint(self) -> None:
        """Refuse settings of a training of its own, which the head does not have."""
        needs = {
            "rollouts": (self.rollouts, 0),
            "when": (self.when, "after-policy"),
            "ensemble": (self.ensemble, 1),
            "replay": (self.replay, 0),
            "right_share": (self.right_share, 0),
            "start": (self.start, "policy"),
        }
        for name, (found, expected) in needs.items():
            check(found == expected, f"body 'joint' learns from the trees with the policy: needs {name} {expected!r}, got {found!r}")
        check(isinstance(self.target, TreeTarget), f"body 'joint' learns values of trees: got target {self.target.type!r}")
        check(self.loss.type not in ("pairwise", "pairwise+mse", "listwise"), f"body 'joint' learns values: got loss {self.loss.type!r}")
