"""The whole configuration of a run, its hash, and the settings that may change in a continued run."""

import hashlib
import json
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from stepladder.errors import check
from stepladder.loops.config.models import PolicyConfig
from stepladder.loops.config.problems import FormatConfig, ProblemsConfig
from stepladder.loops.config.rules import RulesConfig
from stepladder.loops.config.search import EvaluateConfig, GateConfig, LabelsConfig, SearchConfig
from stepladder.loops.config.section import Section
from stepladder.loops.config.training import GradientConfig, PreferenceConfig, PRMConfig, SFTConfig, TrainingConfig, WarmupConfig
from stepladder.plugs import without_folder

PATH_KEYS: tuple[tuple[str, ...], ...] = (
    ("problems", "train"),
    ("problems", "held_out"),
    ("problems", "test"),
    ("policy", "model"),
    ("prm", "model"),
    ("prm", "reference"),
    ("warmup", "solutions"),
    ("training", "accelerate_config"),
    ("start_model",),
)
"""Settings that name files or directories; resolved against the configuration file and kept out of the configuration hash."""
PLUG_KEYS = (
    ("problems", "verifier"),
    ("problems", "train"),
    ("problems", "held_out"),
    ("problems", "test"),
    ("format", "prompt"),
    ("format", "steps"),
    ("search", "tool"),
)
"""Settings that name functions of a task. Their files are resolved like paths, and the folders are kept out of the configuration hash."""


_SPEED_ONLY = (
    ("run", "workers"),
    ("run", "rounds"),
    ("run", "cluster"),
    ("run", "ray"),
    ("policy", "max_batch"),
    *(("policy", "vllm", name) for name in ("memory_share", "prm_memory_share", "tensor_parallel", "data_parallel", "block_size")),
    ("policy", "openai"),
    ("training",),
)
"""Settings that may change in a continued run, because they do not change the results of a round."""


class RayConfig(Section):
    """Workers on a Ray cluster. Nothing here changes results."""

    address: str = Field(default="", pattern=r"^(auto|[^\s/]+:\d+)?$")
    """``HOST:PORT`` of a running cluster, or ``auto`` for the one that this machine belongs to. Empty starts a cluster on the loopback
    address of this machine, which ends with the run."""
    cpus: float | None = Field(default=None, gt=0)
    """CPUs of each worker; None is ``run.threads``."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs of each worker; a share below 1 lets several workers use one. None is ``policy.vllm.tensor_parallel`` with vLLM; otherwise 1, or
    0 on a cluster without GPUs and with ``policy.device = "cpu"``."""
    retries: int = Field(default=2, ge=0)
    """How often a shard is done again after its worker or node died. After that the run fails."""

    @model_validator(mode="after")
    def _check_gpus(self) -> Self:
        check(
            self.gpus is None or self.gpus <= 1 or self.gpus == int(self.gpus),
            f"gpus: above 1 it must be a whole number: got {self.gpus}",
        )
        return self


class RunConfig(Section):
    """The run as a whole."""

    seed: int = Field(default=0, ge=0)
    """Seed from which every other seed is derived."""
    rounds: int = Field(default=4, ge=0)
    """Rounds after the warm-up."""
    shard_size: int = Field(default=64, ge=1)
    """Problems per shard: the unit of work and of loss."""
    workers: int = Field(default=0, ge=0)
    """Processes that search and train; 0 is one per CPU core, or one with a GPU. On a Ray cluster, 0 is as many as have room. With 0,
    ``solve`` and ``prm`` work in their own process."""
    cluster: Literal["local", "ray"] = "local"
    """Where the workers run: ``local`` is processes on this machine, ``ray`` is actors on a Ray cluster. See docs/scale.md."""
    ray: RayConfig = RayConfig()
    """Settings of ``cluster = "ray"``."""
    update_every: int | None = Field(default=None, ge=1)
    """Train the policy by policy gradients after so many problems of a shard, and search the next ones with the new weights, in one
    process; None searches all problems of a round first. See docs/training.md."""
    overlap: bool = False
    """Begin the search of the next round with the newest policy while the PRM of this one is trained and its models are measured. The
    search scores with the best PRM before this round; if the gate refuses the policy, it begins again. See docs/scale.md."""
    threads: int = Field(default=1, ge=1)
    """CPU threads per worker. Small models are slower with more."""


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
    sft: SFTConfig = SFTConfig()
    preference: PreferenceConfig = PreferenceConfig()
    gradient: GradientConfig = GradientConfig()
    start_from: Literal["best", "base", "last", "model"] = "best"
    """The policy that each round trains: the best one so far, the warmed-up one (rStar-Math), the one trained last, accepted or not, or
    ``start_model``. Searches always use the best one."""
    start_model: str | None = None
    """Directory or hub id of the policy for ``start_from = "model"``; its tokenizer must be that of ``policy.model``."""
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    rules: RulesConfig = RulesConfig()
    rounds: tuple[dict[str, Any], ...] = ()
    """Tables with settings of single rounds: ``round`` is a number, ``"2-3"`` or ``"3-"``; the other keys are sections. See
    docs/rounds.md."""

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        check(
            (self.start_from == "model") == (self.start_model is not None),
            f"start_from 'model' and start_model go together: got start_from {self.start_from!r} and start_model {self.start_model!r}",
        )
        return self

    def hash(self) -> str:
        """Return 16 hexadecimal digits that identify the run's results: a hash of every setting except paths and speed."""
        plain = without_keys(self.model_dump(mode="json"), PATH_KEYS + _SPEED_ONLY)
        plain["rounds"] = [without_keys(table, PATH_KEYS) for table in plain["rounds"]]
        for section, key in PLUG_KEYS:
            if isinstance(name := plain.get(section, {}).get(key), str):
                plain[section][key] = without_folder(name)
        return hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=8).hexdigest()

    def differences(self, other: "Config") -> list[str]:
        """Return ``key: ours != theirs`` for every setting that may not change within a run."""
        ours, theirs = (flatten_keys(without_keys(config.model_dump(mode="json"), _SPEED_ONLY)) for config in (self, other))
        # A run keeps what was chosen for it when it began.
        for key, open_value in (("format.chat", "auto"), ("format.date", None)):
            if ours.get(key) == open_value:
                theirs.pop(key, None)
                ours.pop(key, None)
        return [f"{key}: {ours.get(key)!r} != {theirs.get(key)!r}" for key in sorted(ours | theirs) if ours.get(key) != theirs.get(key)]


def without_keys(plain: dict[str, Any], keys: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
    """Return nested settings without those whose path begins with one of some keys."""
    kept: dict[str, Any] = {}
    for name, value in plain.items():
        inner = tuple(key[1:] for key in keys if key[0] == name)
        if () not in inner:
            kept[name] = without_keys(value, inner) if isinstance(value, dict) else value
    return kept


def flatten_keys(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level, keyed ``section.key``."""
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        flat |= flatten_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
