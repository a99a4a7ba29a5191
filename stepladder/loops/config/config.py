"""The configuration of a run: TOML on disk, checked models in memory.

Precedence is class defaults < file < ``--set section.key=value``. Everything is checked here, once, before any model is loaded; the rest of
the library takes plain arguments. Paths in a file are relative to that file.
"""

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stepladder.errors import ConfigError, right_name

PATH_KEYS = (
    ("problems", "train"),
    ("problems", "held_out"),
    ("problems", "test"),
    ("policy", "model"),
    ("prm", "model"),
    ("prm", "reference"),
    ("warmup", "solutions"),
    ("training", "accelerate_config"),
)
"""Settings that name files or directories; resolved against the configuration file and kept out of the configuration hash."""

_SPEED_ONLY = (
    ("run", "workers"),
    ("run", "rounds"),
    ("policy", "max_batch"),
    *(("policy", "vllm", name) for name in ("memory_share", "prm_memory_share", "tensor_parallel", "data_parallel", "block_size")),
    ("policy", "openai"),
    ("training",),
)
"""Settings that may change when a run is continued: they do not change what a given round produces."""


class Section(BaseModel):
    """Base of every section: unknown keys are errors and a loaded section never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RunConfig(Section):
    """The run as a whole."""

    seed: int = Field(default=0, ge=0)
    """Seed from which every other seed is derived."""
    rounds: int = Field(default=4, ge=0)
    """Rounds after the warm-up."""
    shard_size: int = Field(default=64, ge=1)
    """Problems per shard: the unit of work and of loss."""
    workers: int = Field(default=0, ge=0)
    """Processes that search and train; 0 is one per CPU core, or one where a GPU is used."""
    threads: int = Field(default=1, ge=1)
    """CPU threads per worker. Small models are slower with more."""


class ProblemsConfig(Section):
    """Where problems come from and how answers are graded."""

    train: str
    """JSONL or Parquet file, or a Hugging Face data set id, of the problems to search."""
    held_out: str | None = None
    """File of held-out problems for the gate; None sets ``held_out_size`` training problems aside."""
    held_out_size: int = Field(default=200, ge=1)
    """Training problems set aside for the gate when there is no ``held_out`` file; chosen by a hash of their ids."""
    test: str
    """File of test problems; never used for a decision."""
    id_field: str = "id"
    """Field that holds the problem id; an empty string makes ids from file name and line number."""
    question_field: str = "question"
    """Field that holds the question."""
    answer_field: str = "answer"
    """Field that holds the reference answer."""
    answer_pattern: str | None = None
    """Regular expression with one group that reads the final answer out of the answer field (GSM8K: ``#### (.*)``)."""
    subset: str | None = None
    """Configuration name of a Hugging Face data set (GSM8K: ``main``); None for files."""
    train_split: str = "train"
    """Split of a Hugging Face data set for ``train``."""
    test_split: str = "test"
    """Split of a Hugging Face data set for ``test``."""
    train_limit: int | None = Field(default=None, ge=1)
    """Use at most this many training problems."""
    held_out_limit: int | None = Field(default=None, ge=1)
    """Use at most this many held-out problems."""
    test_limit: int | None = Field(default=None, ge=1)
    """Use at most this many test problems."""
    rule: Literal["exact", "number", "math"] = "math"
    """Grading rule: same text, same number, or mathematically equivalent (math-verify)."""
    deadline_s: float = Field(default=5.0, gt=0)
    """Seconds after which grading one answer is killed and the answer counts as wrong."""


class FormatConfig(Section):
    """How prompts, steps and final answers are written."""

    prompt_template: str = "{question}\n"
    """Prompt text; ``{question}`` is replaced."""
    step_end: str = "\n"
    """Text that closes a step."""
    answer_pattern: str = r"\\boxed\{(.*)\}"
    """Regular expression with one group that reads the final answer out of a step; such a step ends the solution."""
    chat: bool = False
    """Render the prompt with the tokenizer's chat template."""
    system: str | None = None
    """System message for the chat template."""

    @model_validator(mode="after")
    def _check_template(self) -> Self:
        if "{question}" not in self.prompt_template:
            raise ValueError(f"prompt_template must contain '{{question}}': got {self.prompt_template!r}")
        if not self.step_end:
            raise ValueError("step_end must not be empty: without a boundary there are no steps")
        return self


class VLLMConfig(Section):
    """Engines of vLLM inside the worker processes: of the policy (``policy.backend``) and of the PRM (``prm.backend``)."""

    memory_share: float = Field(default=0.45, gt=0, le=1)
    """Share of each GPU's memory for the policy's engine. Raise it to 0.9 where no PRM shares the GPU; it has no meaning on a CPU."""
    prm_memory_share: float = Field(default=0.35, gt=0, le=1)
    """Share of each GPU's memory for the PRM's engine."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that hold one copy of a model together."""
    data_parallel: int = Field(default=1, ge=1)
    """Workers that search side by side in ``evolve``, each with engines of its own on ``tensor_parallel`` GPUs of its own."""
    block_size: int | None = Field(default=None, ge=1)
    """Tokens of a cache block; None is 32 on a CPU and vLLM's choice on a GPU."""
    max_context: int | None = Field(default=None, ge=2)
    """Tokens of question and solution together; None is the model's limit. Lower it when the cache does not fit."""
    options: dict[str, bool | int | float | str] = {}
    """Further arguments of ``vllm.EngineArgs``, such as ``quantization = "fp8"``."""


class OpenAIConfig(Section):
    """A server that speaks OpenAI's completions protocol and serves the policy's model."""

    url: str = "http://127.0.0.1:8000/v1"
    """Where the protocol begins."""
    model: str | None = None
    """Name of the model on the server; None takes the only one it serves."""
    api_key_env: str | None = None
    """Environment variable that holds the key; None sends none."""
    concurrency: int = Field(default=64, ge=1)
    """Requests in flight at once."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Seconds for one try of a request, from the connection to the last byte of the reply."""
    retries: int = Field(default=6, ge=0)
    """Further tries of a request that failed in a way that may pass."""
    backoff_s: float = Field(default=0.5, ge=0)
    """Mean delay before the first of them; it doubles with each, up to 30 s. A server that sends ``Retry-After`` is given that time, up to
    60 s."""
    stop: Literal["server", "client"] = "server"
    """Who ends a step: a server that shows the token it stopped at (vLLM, SGLang), or stepladder, which wastes what comes behind it."""


class PolicyConfig(Section):
    """The language model that proposes steps."""

    model: str
    """Directory or hub id of a causal language model."""
    backend: Literal["transformers", "vllm", "openai"] = "transformers"
    """What samples: the embedded engine, vLLM in process, or a server (``solve`` only; the tokenizer is still read from ``model``)."""
    vllm: VLLMConfig = VLLMConfig()
    """Settings of vLLM."""
    openai: OpenAIConfig = OpenAIConfig()
    """Settings of the server."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:N``; also used for the PRM and for training."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights' type; ``auto`` is what the checkpoint says on a GPU and float32 on a CPU."""
    max_batch: int = Field(default=1024, ge=1)
    """Sequences decoded at once."""
    trust_remote_code: bool = False
    """Run code that ships with a hub model. Off unless you trust its author."""


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
    options: dict[str, bool | int | float | str] = {}
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
    options: dict[str, bool | int | float | str] = {}
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


class Config(Section):
    """A whole run."""

    run: RunConfig = RunConfig()
    problems: ProblemsConfig
    format: FormatConfig = FormatConfig()
    policy: PolicyConfig
    warmup: WarmupConfig = WarmupConfig()
    prm: PRMConfig = PRMConfig()
    search: SearchConfig = SearchConfig()
    labels: LabelsConfig = LabelsConfig()
    training: TrainingConfig = TrainingConfig()
    sft: TrainConfig = TrainConfig()
    preference: PreferenceConfig = PreferenceConfig()
    start_from: Literal["best", "base"] = "best"
    """Each round trains the best policy so far, or the warmed-up one on all data (rStar-Math)."""
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()

    def hash(self) -> str:
        """Return 16 hexadecimal digits that name what the run computes: every setting but paths and speed."""
        plain = _without(self.model_dump(mode="json"), PATH_KEYS + _SPEED_ONLY)
        return hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=8).hexdigest()

    def differences(self, other: "Config") -> list[str]:
        """Return ``key: ours != theirs`` for every setting that may not change within a run."""
        ours, theirs = (_flatten(_without(config.model_dump(mode="json"), _SPEED_ONLY)) for config in (self, other))
        return [f"{key}: {ours.get(key)!r} != {theirs.get(key)!r}" for key in sorted(ours | theirs) if ours.get(key) != theirs.get(key)]


def load_config(path: Path | None, overrides: list[str], *, base: dict[str, Any] | None = None) -> Config:
    """Read a TOML file over ``base``, apply ``section.key=value`` overrides, and check the result.

    Args:
        path: Configuration file; None starts from ``base`` alone.
        overrides: Each ``a.b=value``; the value is read as TOML, or as a string where that fails.
        base: Settings below the file's.

    Raises:
        ConfigError: If the file is missing or malformed, or a setting is unknown or impossible.
    """
    raw: dict[str, Any] = json.loads(json.dumps(base or {}))
    if path is not None:
        _merge(raw, _resolve_paths(_read_toml(path), path.parent))
    for override in overrides:
        _apply_override(raw, override)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(error, where=str(path) if path else "configuration")) from None


def with_overrides(config: Config, overrides: list[str]) -> Config:
    """Return a configuration with ``section.key=value`` overrides applied.

    Raises:
        ConfigError: If a setting is unknown or impossible.
    """
    return load_config(None, overrides, base=config.model_dump(mode="json")) if overrides else config


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file -- give the path of a TOML file, or none for the embedded task") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not a readable TOML file: {error}") from None


def _resolve_paths(raw: dict[str, Any], base: Path) -> dict[str, Any]:
    """Make the existing relative paths of a file absolute; a name that does not exist beside the file may be a hub id and stays."""
    for section, key in PATH_KEYS:
        value = raw.get(section, {}).get(key) if isinstance(raw.get(section), dict) else None
        if isinstance(value, str) and value and not Path(value).is_absolute() and (base / value).exists():
            raw[section][key] = str((base / value).resolve())
    return raw


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"--set {override!r}: must have the form section.key=value, for example --set search.simulations=64")
    target = raw
    for part in parts[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is a value, not a section")
    target[parts[-1]] = read_value(text)


def read_value(text: str) -> Any:
    """Return a value written as in TOML, or the text itself where it is none."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _merge(raw: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(raw.get(key), dict):
            _merge(raw[key], value)
        else:
            raw[key] = value


def _explain(error: ValidationError, *, where: str) -> str:
    """Say the first problem of a validation in one sentence, with the nearest valid name for an unknown key."""
    first = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    location = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown setting {location!r} -- {right_name(first['loc'][-1], valid_names(first['loc'][:-1]))}"
    if first["type"] == "missing":
        return f"{where}: setting {location!r} is required -- add it to the file or pass --set {location}=..."
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: setting {location!r}: {message[0].lower()}{message[1:]}: got {first['input']!r}"[:600]


def valid_names(location: tuple[int | str, ...]) -> list[str]:
    """Return the setting names of the section at ``location``."""
    model: Any = Config
    for part in location:
        field = model.model_fields.get(str(part)) if isinstance(model, type) and issubclass(model, BaseModel) else None
        model = field.annotation if field is not None else None
        options = getattr(model, "__args__", ())
        model = next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), model)
    return sorted(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _without(plain: dict[str, Any], keys: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in plain.items():
        inner = tuple(key[1:] for key in keys if key[0] == name)
        if () not in inner:
            kept[name] = _without(value, inner) if isinstance(value, dict) else value
    return kept


def _flatten(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
