"""Settings that other settings switch off: each differs from its default, and has no effect."""

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from stepladder.loops.config.problems import ProblemsConfig
from stepladder.loops.config.run import Config, flatten_keys
from stepladder.loops.config.schedule import distinct_rounds, round_config
from stepladder.loops.config.training import BinLoss, ImplicitLoss, VerdictLoss

_NEEDED = {"problems": {"train": "", "test": ""}, "policy": {"model": ""}}
"""Settings without a default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnusedSettings:
    """Settings without effect, and why."""

    keys: tuple[str, ...]
    """Names of the settings."""
    because: str
    """The reason, a clause."""

    def __str__(self) -> str:
        verb = "has" if len(self.keys) == 1 else "have"
        return f"{', '.join(self.keys)} {verb} no effect on the run: {self.because}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rule:
    """A choice that leaves settings unread."""

    holds: Callable[[Config], bool]
    """Whether the choice is made."""
    keys: Sequence[str]
    """Settings that nothing reads then, or sections of them, which end with a dot."""
    but: Sequence[str] = ()
    """Settings of these sections that are still read."""
    because: str
    """The reason, a clause."""


_PRM_TRAINING = (
    "prm.body",
    "prm.joint_weight",
    "prm.read",
    "prm.bootstrap",
    "prm.rollouts",
    "prm.data",
    "prm.loss.",
    "prm.supervise",
    "prm.train.",
)
_VALUE_ROWS = ("prm.target.", "prm.mixed_only")
_RULES = (
    _Rule(
        holds=lambda config: config.run.cluster == "local",
        keys=("run.ray.",),
        because="run.cluster is 'local'",
    ),
    _Rule(
        holds=lambda config: not config.prm.enabled,
        keys=("prm.", "search.scores.", "evaluate.aggregation"),
        but=("prm.enabled", *_VALUE_ROWS),
        because="prm.enabled is false",
    ),
    _Rule(
        holds=lambda config: config.prm.enabled and not config.prm.trains,
        keys=_PRM_TRAINING,
        because="prm.start is 'fixed', 'self' or 'self-base', so no PRM is trained",
    ),
    _Rule(
        holds=lambda config: not config.prm.trains,
        keys=_VALUE_ROWS,
        because="no PRM is trained; only rows of values for export change",
    ),
    _Rule(
        holds=lambda config: config.prm.trains and config.prm.model is None and not isinstance(config.prm.loss, VerdictLoss),
        keys=("prm.spec", "prm.reference"),
        because="without prm.model every PRM is one that the run trains, with a spec of its own",
    ),
    _Rule(
        holds=lambda config: config.prm.trains and config.prm.body == "joint",
        keys=("prm.train.", "prm.supervise"),
        because="prm.body is 'joint', so the SFT stage trains the head",
    ),
    _Rule(
        holds=lambda config: config.prm.trains and config.prm.body != "joint",
        keys=("prm.joint_weight",),
        because="prm.body is not 'joint'",
    ),
    _Rule(
        holds=lambda config: config.prm.trains and config.prm.ensemble == 1,
        keys=("prm.bootstrap", "search.scores.ensemble."),
        because="prm.ensemble is 1",
    ),
    _Rule(
        holds=lambda config: config.prm.trains and config.prm.model is not None and not isinstance(config.prm.loss, ImplicitLoss),
        keys=("prm.loss.head", "prm.loss.bins"),
        because="prm.model has a head already",
    ),
    _Rule(
        holds=lambda config: config.prm.trains and config.prm.model is None and not isinstance(config.prm.loss, BinLoss),
        keys=("search.scores.entropy_penalty",),
        because="prm.loss gives the PRM no head of bins",
    ),
    _Rule(
        holds=lambda config: not (config.prm.trains and config.prm.rollouts),
        keys=("labels.rollouts",),
        because="there are no prm.rollouts",
    ),
    _Rule(
        holds=lambda config: not config.preference.enabled,
        keys=("preference.",),
        but=("preference.enabled",),
        because="preference.enabled is false",
    ),
    _Rule(
        holds=lambda config: not config.preference.enabled or config.preference.unpaired,
        keys=("labels.pairs.",),
        because="the policy is not trained on pairs; only pairs for export change",
    ),
    _Rule(
        holds=lambda config: config.preference.enabled and config.search.refinement is not None,
        keys=("labels.pairs.",),
        because="the policy is trained on refined solutions (search.refinement); only pairs for export change",
    ),
    _Rule(
        holds=lambda config: not config.preference.unpaired,
        keys=("labels.graded.",),
        because="preference.loss takes pairs, and reads labels.pairs",
    ),
    _Rule(
        holds=lambda config: not config.gradient.enabled,
        keys=("gradient.", "labels.advantages."),
        but=("gradient.enabled",),
        because="gradient.enabled is false",
    ),
    _Rule(
        holds=lambda config: config.gradient.enabled and not config.gradient.loss.kl_weight,
        keys=("gradient.reference",),
        because="gradient.loss.kl_weight is 0",
    ),
    _Rule(
        holds=lambda config: config.gradient.enabled and config.run.update_every is None,
        keys=("gradient.max_staleness",),
        because="without run.update_every all rows are made before the training",
    ),
    _Rule(
        holds=lambda config: config.labels.revisions == 0,
        keys=("labels.revision_of", "labels.revision_text"),
        because="labels.revisions is 0",
    ),
    _Rule(
        holds=lambda config: config.warmup.solutions is None,
        keys=("warmup.train.",),
        because="there are no warmup.solutions",
    ),
    _Rule(
        holds=lambda config: config.problems.held_out is not None,
        keys=("problems.held_out_size",),
        because="problems.held_out names the problems of the gate",
    ),
    _Rule(
        holds=lambda config: config.problems.rule != "math" and config.problems.verifier is None,
        keys=("problems.grading.", "problems.deadline_s"),
        because="problems.rule is not 'math'",
    ),
    _Rule(
        holds=lambda config: not config.sft.enabled,
        keys=("sft.", "labels.replay"),
        but=("sft.enabled",),
        because="sft.enabled is false",
    ),
    _Rule(
        holds=lambda config: config.gate.rule != "drop",
        keys=("gate.max_drop",),
        because="gate.rule is not 'drop'",
    ),
    _Rule(
        holds=lambda config: config.gate.rule == "drop",
        keys=("gate.confidence",),
        because="gate.rule is 'drop'",
    ),
    _Rule(
        holds=lambda config: config.problems.verifier is not None,
        keys=("problems.unreadable",),
        because="problems.verifier grades in place of the rule",
    ),
    _Rule(
        holds=lambda config: not _reads_hub(config.problems),
        keys=("problems.subset", "problems.train_split", "problems.test_split"),
        because="all problems are in files",
    ),
    _Rule(
        holds=lambda config: not config.format.chat,
        keys=("format.date",),
        because="format.chat is false",
    ),
    _Rule(
        holds=lambda config: "vllm" not in (config.policy.backend, config.prm.backend if config.prm.enabled else ""),
        keys=("policy.vllm.",),
        because="no backend is 'vllm'",
    ),
    _Rule(
        holds=lambda config: config.policy.backend != "openai",
        keys=("policy.openai.",),
        because="policy.backend is not 'openai'",
    ),
)
"""In this order; each setting is named with the first that holds."""


def unused_settings(config: Config) -> list[UnusedSettings]:
    """Return the settings of a run that differ from their defaults and have no effect in any round, by reason."""
    in_rounds = [_unused(round_config(config, number)) for number in distinct_rounds(config)]
    unread = [{key for each in found for key in each.keys} for found in in_rounds]
    left = [replace(each, keys=tuple(key for key in each.keys if all(key in keys for keys in unread))) for each in _unused(config)]
    return [each for each in left if each.keys]


def _unused(config: Config) -> list[UnusedSettings]:
    changed, found, known = _changed(config), [], set[str]()
    for rule in _RULES:
        if not rule.holds(config):
            continue
        keys = tuple(key for key in changed if key not in known and _is_among(key, rule.keys) and not _is_among(key, rule.but))
        if keys:
            known.update(keys)
            found.append(UnusedSettings(keys=keys, because=rule.because))
    return found


def _changed(config: Config) -> list[str]:
    """Return the names of the settings that differ from their defaults; of a variant, from those of its type."""
    given, needed = flatten_keys(config.model_dump(mode="json")), flatten_keys(_NEEDED)
    defaults = flatten_keys(Config.model_validate(_NEEDED).model_dump(mode="json"))
    of_types = flatten_keys(_defaults(config)) | {key: defaults[key] for key in defaults if key.endswith(".type")}
    return [key for key, value in given.items() if key not in needed and of_types.get(key) != value]


def _defaults(section: Any, default: Any = None) -> dict[str, Any]:
    """Return the defaults of the settings that a section has, as plain values, without those that have no default.

    They are taken one by one: variants of some types are valid only with other settings, so that no configuration has all defaults.

    Args:
        section: The section, whose variants choose the settings.
        default: The section that stands there by default; None takes the defaults of the section's class.
    """
    found: dict[str, Any] = {}
    for name, usual in _own_defaults(section).items():
        value = getattr(section, name)
        usual = usual if default is None else getattr(default, name)
        is_variant = _is_section(value) and "type" in _own_defaults(value)
        if is_variant or (_is_section(value) and usual is not None):
            # A section that is absent by default has no defaults, unless it is a variant.
            found[name] = _defaults(value, usual if type(usual) is type(value) and not is_variant else None)
        elif usual is not PydanticUndefined:
            found[name] = to_jsonable_python(usual)
    return found


def _is_section(value: Any) -> bool:
    return isinstance(value, BaseModel) or is_dataclass(value)


def _own_defaults(section: Any) -> dict[str, Any]:
    """Return the default of every setting of a section's class, which is a model or a data class; ``PydanticUndefined`` for none."""
    if isinstance(section, BaseModel):
        return {name: field.get_default(call_default_factory=True) for name, field in type(section).model_fields.items()}
    made = {field.name: field.default_factory() for field in fields(section) if field.default_factory is not MISSING}
    return {field.name: PydanticUndefined if field.default is MISSING else field.default for field in fields(section)} | made


def _is_among(key: str, names: Sequence[str]) -> bool:
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in names)


def _reads_hub(config: ProblemsConfig) -> bool:
    """Say whether a source of problems is a data set of the hub."""
    return not all(source is None or Path(source).is_file() for source in (config.train, config.held_out, config.test))
