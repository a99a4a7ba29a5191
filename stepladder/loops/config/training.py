"""Sections ``sft``, ``preference``, ``warmup``, ``prm`` and ``training``: what is trained, on which loss, and how."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stepladder.loops.config.section import Section


class LoraConfig(Section):
    """Low-rank adapters instead of full fine-tuning; merged when the model is saved."""

    r: int = Field(default=16, ge=1)
    """Rank."""
    alpha: int = Field(default=32, ge=1)
    """Scale numerator: updates are scaled by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter input."""
    four_bit: bool = False
    """Hold the frozen weights in 4 bits (QLoRA); needs the package bitsandbytes."""


class TrainConfig(Section):
    """One training stage."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate; decays linearly to 0."""
    epochs: float = Field(default=2.0, gt=0)
    """Passes over the rows."""
    max_updates: int | None = Field(default=None, ge=1)
    """Cap on optimiser updates; None is no cap."""
    batch_size: int = Field(default=64, ge=1)
    """Rows per update."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Rows per forward pass of a process; None is its whole share of the batch. Lower it when memory runs out."""
    packed: bool = True
    """Merge the rows of a problem into trees, so that every shared token is forwarded once; gradients are those of separate rows."""
    row_tokens: int = Field(default=1024, ge=1)
    """Largest tree with ``packed``; larger ones are cut."""
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Share of the updates over which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient clipping."""
    bf16: bool = False
    """Train in bfloat16 autocast."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    checkpoint_every: int = Field(default=0, ge=0)
    """Updates between checkpoints from which a killed training continues; 0 starts it over."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints kept while training; with ``held_out`` the best one is kept besides."""
    held_out: float = Field(default=0.0, ge=0, lt=1)
    """Share of the problems not trained on: the weights of the checkpoint with the lowest loss on them are saved. 0 saves the last ones."""
    lora: LoraConfig | None = None
    """Train adapters only."""

    @model_validator(mode="after")
    def _check_held_out(self) -> Self:
        if self.held_out and not self.checkpoint_every:
            raise ValueError("held_out chooses among checkpoints and needs checkpoint_every > 0")
        return self


class TrainingConfig(Section):
    """How trainings run, whatever they train."""

    num_processes: int = Field(default=1, ge=1)
    """Processes that train one model together, one per GPU of this machine. They share every update; results differ by rounding."""
    accelerate_config: str | None = None
    """Configuration file of accelerate, for a model that one GPU cannot hold with its optimiser (FSDP, DeepSpeed); None is a copy each."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = ()
    """Trackers that are told every update's loss, learning rate and gradient norm."""

    @property
    def launched(self) -> bool:
        """Whether trainings are started by accelerate, in processes of their own."""
        return self.num_processes > 1 or self.accelerate_config is not None


class PreferenceConfig(TrainConfig):
    """Step-level preference training of the policy."""

    enabled: bool = True
    """Whether to train on sibling pairs after the SFT stage."""
    loss: Literal["dpo", "ipo", "inpo", "sppo", "refuel", "apo-zero", "simpo", "orpo", "cpl", "kto", "oreal"] = "dpo"
    """Loss of a pair, or with ``kto`` and ``oreal`` of a good or bad continuation by itself (``labels.graded``). ``refuel`` and ``sppo``
    learn how much better the chosen step is; ``simpo``, ``orpo``, ``cpl`` need no reference."""
    reference: Literal["start", "base", "sampler"] = "start"
    """The model before this stage, the warmed-up base model, or the policy that sampled each row (off-policy: its stored
    log-probabilities)."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference model, or scale of the log-probabilities where there is none."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | Literal["visits", "agreement", "uncertainty"] = 0.0
    """Conservative DPO: assumed share of flipped pairs, or of each pair what the visits of its steps say, how far this round's PRM and the
    one before agree on the siblings (CREAM), or how much the leaves leave open (UPO)."""
    reference_share: float = Field(default=1 / 3, ge=0, le=1)
    """Weight of the reference with ``inpo``; the rest is that of the policy that sampled the pairs."""
    good_weight: float = Field(default=1.0, ge=0)
    """Weight of good continuations with ``kto`` and ``oreal``."""
    bad_weight: float = Field(default=1.0, ge=0)
    """Weight of bad continuations with ``kto`` and ``oreal``."""
    target_margin: float = Field(default=0.0, ge=0)
    """Margin that ``simpo`` aims at."""
    cpl_bias: float = Field(default=1.0, gt=0, le=1)
    """Factor on the rejected step's log-probability with ``cpl``."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen step's mean negative log-likelihood beside the preference loss."""

    @model_validator(mode="after")
    def _check_smoothing(self) -> Self:
        if self.label_smoothing and self.loss != "dpo":
            raise ValueError(f"label_smoothing is conservative DPO and needs loss 'dpo': got {self.loss!r}")
        if self.unpaired and self.sft_weight:
            raise ValueError(f"sft_weight needs a loss of pairs: got {self.loss!r}; raise good_weight instead")
        if self.loss == "kto" and self.reference == "sampler":
            raise ValueError("reference 'sampler' is not for loss 'kto', which also reads continuations that nobody sampled: use 'start'")
        return self

    @property
    def unpaired(self) -> bool:
        """Whether the loss takes continuations one by one."""
        return self.loss in ("kto", "oreal")


class WarmupConfig(Section):
    """Round 0: supervised fine-tuning on a few solved problems."""

    solutions: str | None = None
    """JSONL file with id, question and solution; None starts from the model as it is."""
    train: TrainConfig = TrainConfig()
    """How to train on them."""


class PRMConfig(Section):
    """The process reward model."""

    enabled: bool = True
    """Without it the search is guided by outcomes alone and answers are chosen by majority."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """What scores steps: the embedded engine, or vLLM in process with the settings under ``policy.vllm``."""
    model: str | None = None
    """Directory or hub id of a PRM to start from, or to keep; None starts from the policy with a new head."""
    start: Literal["policy", "last", "fixed"] = "policy"
    """Each round trains from the round's new policy with a new head, or from the last PRM; ``fixed`` trains none: ``model``, of any family,
    guides all rounds."""
    spec: str | None = None
    """How PRMs are read whose directories do not say it: a name of ``prm specs``, or a ``.json`` file."""
    reference: str | None = None
    """Reference of an implicit PRM that names none."""
    ensemble: int = Field(default=1, ge=1)
    """PRMs trained each round, from other seeds, which guide the search together as ``search.scores`` says."""
    bootstrap: bool = True
    """Whether each PRM of an ensemble learns from problems drawn with replacement."""
    rollouts: int = Field(default=0, ge=0)
    """Full solutions per training problem that the round's new policy samples for the PRM to learn from, instead of the trees: those
    show the steps of the policy before, and what they teach misjudges the new one's where it changed much. 0 learns from the trees."""
    mixed_only: bool = False
    """Learn only from problems with right and wrong solutions: where nothing was solved, right steps look wrong."""
    data: Literal["accumulate", "replace"] = "replace"
    """Learn from all rounds so far, or from this round only: what an early policy did wrong says little about a good one's mistakes."""
    target: Literal[
        "monte-carlo",
        "tree-value",
        "hard-max",
        "distance",
        "outcome",
        "progress",
        "rollouts",
        "rollouts-hard",
        "first-error",
        "step-pairs",
    ] = "monte-carlo"
    """What a step learns: mean outcome of the leaves below it, its backed-up value, whether any leaf below it is right, how far along the
    shortest way to a right leaf it is, the outcome of the whole solution, or progress. With ``rollouts``, ``rollouts-hard`` and
    ``first-error`` the round's new policy is asked from every prefix; ``step-pairs`` are rStar-Math's pairs."""
    prefix_rollouts: int = Field(default=4, ge=1)
    """Rollouts from every prefix, with a target that is estimated from them."""
    loss: Literal["bce", "mse", "hl-gauss", "two-hot", "pairwise", "pairwise+mse", "listwise", "implicit-ce", "implicit-dpo"] = "bce"
    """Loss on the targets; see docs/prm.md."""
    head: Literal["value", "two-class"] = "value"
    """A new head: one output, or one for bad and one for good steps."""
    bins: int = Field(default=32, ge=2)
    """Outputs of a value head with ``hl-gauss`` and ``two-hot``."""
    beta: float = Field(default=0.05, gt=0)
    """Factor on the log-ratio of an implicit PRM."""
    supervise: Literal["step-end", "every-token"] = "step-end"
    """Tokens of a step that learn its target: the last one, where scores are read, or all, from which a small model learns faster."""
    train: TrainConfig = TrainConfig()
    """How to train it."""

    @model_validator(mode="after")
    def _check_choices(self) -> Self:
        implicit, comparing = self.loss.startswith("implicit"), self.loss in ("pairwise", "pairwise+mse", "listwise")
        rules = {
            f"start 'fixed' needs a model to keep: got model {self.model!r}": self.start != "fixed" or self.model,
            f"start 'fixed' trains nothing: got an ensemble of {self.ensemble}": self.start != "fixed" or self.ensemble == 1,
            f"target 'step-pairs' needs the loss 'pairwise' or 'pairwise+mse': got {self.loss!r}": self.target != "step-pairs"
            or (comparing and self.loss != "listwise"),
            f"loss {self.loss!r} learns from whole solutions: got target {self.target!r}, expected 'outcome'": not implicit
            or self.target == "outcome",
            f"loss {self.loss!r} measures against the policy it starts from: got start {self.start!r}, expected 'policy'": not implicit
            or (self.start == "policy" and self.model is None),
            f"loss {self.loss!r} reads steps where they end: got supervise {self.supervise!r}, expected 'step-end'": not (
                implicit or comparing
            )
            or self.supervise == "step-end",
            f"loss {self.loss!r} needs a value head: got head {self.head!r}": self.loss not in ("hl-gauss", "two-hot")
            or self.head == "value",
        }
        for message, holds in rules.items():
            if not holds:
                raise ValueError(message)
        return self
