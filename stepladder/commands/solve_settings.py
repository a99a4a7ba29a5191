"""What a search for answers needs: models of a run or of directories, a method, caps and a seed, as a user names them."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stepladder.commands.evolve import best_models, round_models
from stepladder.commands.solve_progress import answer_settings
from stepladder.errors import CheckpointError, ConfigError
from stepladder.files import reading
from stepladder.loops.assembly.checks import check_backends, check_model
from stepladder.loops.assembly.policies import with_chat
from stepladder.loops.assembly.preflight import Need, PromptLengths, search_need, warnings_of
from stepladder.loops.assembly.scorers import check_probes
from stepladder.loops.assembly.search import choose_search
from stepladder.loops.assembly.unknown_text import UnknownText
from stepladder.loops.config.load import read_value, with_overrides
from stepladder.loops.config.models import PolicyConfig
from stepladder.loops.config.problems import FormatConfig, ProblemsConfig
from stepladder.loops.config.run import Config
from stepladder.loops.runs.directory import load_run
from stepladder.loops.runs.newest import newest_run
from stepladder.mcts.search_method import SearchMethod
from stepladder.terminal import echo
from stepladder.types import Budget


@dataclass(frozen=True, kw_only=True, slots=True)
class SolveSettings:
    """Everything a search for answers needs."""

    config: Config
    """Format, limits and device; a run's own configuration, or defaults for bare model directories."""
    policy: str
    """Directory or hub id of the policy."""
    prm: tuple[str, ...]
    """Directories or hub ids of the PRMs; several are an ensemble; empty searches without one."""
    method: SearchMethod
    """Search method."""
    budget: Budget
    """Spending caps per question."""
    seed: int
    """Seed of the search."""
    discriminator: str | None = None
    """Directory of a second model, whose consistency chooses the answer; None uses the method's answer rule."""

    @classmethod
    def resolve(
        cls,
        *,
        run: str | Path | None,
        policy: str | None,
        prm: Sequence[str],
        method: str | None,
        tokens: int | None,
        simulations: int | None,
        options: list[str],
        seed: int,
        overrides: Sequence[str] = (),
        seconds: float | None = None,
        discriminator: str | None = None,
        num_problems: int = 1,
    ) -> "SolveSettings":
        """Find the models and check the settings.

        ``choose_models`` describes the choice of models and ``overrides``, ``choose_search`` that of method and caps, and ``num_problems``.

        Raises:
            ConfigError: If settings contradict each other, or the method or an option is unknown.
            CheckpointError: If there is no such run or it has no finished round.
        """
        config, policy, chosen_prm = choose_models(run=run, policy=policy, prm=prm, overrides=overrides)
        chosen, budget = choose_search(
            config,
            method=method,
            tokens=tokens,
            simulations=simulations,
            seconds=seconds,
            options=dict(read_option(text) for text in options),
            num_problems=num_problems,
        )
        return cls(
            config=config,
            policy=policy,
            prm=chosen_prm,
            method=chosen,
            budget=budget,
            seed=seed,
            discriminator=discriminator,
        )

    def facts(self) -> dict[str, Any]:
        """Return everything that decides an answer, as ``answer_settings`` does. This reads the model directories."""
        return answer_settings(
            self.config,
            policy=self.policy,
            prm=self.prm,
            method=self.method,
            budget=self.budget,
            seed=self.seed,
            discriminator=self.discriminator,
        )


def choose_models(
    *, run: str | Path | None, policy: str | None, prm: Sequence[str], overrides: Sequence[str] = (), number: int | None = None
) -> tuple[Config, str, tuple[str, ...]]:
    """Find the models of a search, and return configuration, policy and PRMs: none, one, or an ensemble.

    Args:
        run: Run with the models; None is the newest run in ``runs``, unless a policy is named.
        policy: Directory or hub id of a policy, instead of a run's.
        prm: PRMs instead of the run's; ``none`` is no PRM, and ``self`` the policy, which then judges its own steps by ``prm.spec``, or as
            the spec ``judge`` says. Empty takes the run's.
        overrides: ``section.key=value`` over the run's configuration.
        number: Round with the models; None takes the best models.

    Raises:
        ConfigError: If settings contradict each other or are unknown.
        CheckpointError: If there is no such run or round, or none is finished.
    """
    _check_choices(run=run, policy=policy, prm=prm, number=number)
    if policy is not None:
        check_model(PolicyConfig(model=policy))
        config, run_prm = bare_config(policy), None
    else:
        config, policy, run_prm = _run_models(run or newest_run(), number)
    config = with_overrides(config, list(overrides))
    check_backends(config, trains=False)
    config, note = with_chat(config, policy)
    if note is not None:
        echo(note, err=True)
    chosen = prm or ((run_prm,) if run_prm is not None else ())
    scorers = [policy if name == "self" else name for name in chosen if name != "none"]
    check_probes(config, scorers)
    need = search_need(config, policy, scorers, workers=1, num_problems=1)
    show_warnings([] if need is None else [need])
    if "self" in prm and config.prm.spec is None:
        config = with_overrides(config, ["prm.spec=judge"])
    return config, policy, tuple(scorers)


def _check_choices(*, run: str | Path | None, policy: str | None, prm: Sequence[str], number: int | None) -> None:
    """Refuse choices of models that contradict each other."""
    if run is not None and policy is not None:
        raise ConfigError("--run and --policy: both name a policy: got both -- give one")
    if number is not None and policy is not None:
        raise ConfigError("--round and --policy: a round has a policy of its own: got both -- give one")
    if "none" in prm and len(prm) > 1:
        raise ConfigError(f"--prm: none stands for no PRM: got {', '.join(prm)} -- leave the others out")


def _run_models(run_path: str | Path, number: int | None) -> tuple[Config, str, str | None]:
    try:
        run = load_run(run_path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; or name a model with --policy DIR") from None
    policy, prm = best_models(run) if number is None else round_models(run, number)
    return run.config(), policy, prm


def show_warnings(checked: Iterable[PromptLengths | UnknownText | Need]) -> None:
    """Print the warnings among checks to standard error."""
    for warning in warnings_of(checked):
        echo(warning, err=True)


def read_option(text: str) -> tuple[str, Any]:
    """Return name and value of a method's setting written as ``key=value``.

    Raises:
        ConfigError: If it is not written so.
    """
    key, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f"setting {text!r} of a method: must have the form key=value, for example num_children=8")
    return key, read_value(value)


def bare_config(policy: str) -> Config:
    """Settings for a model directory without a run; its saved step format is used if there is one."""
    from stepladder.lm.loading import has_format
    from stepladder.policy.prompts import StepFormat

    saved = asdict(StepFormat.load(policy)) if has_format(policy) else {}
    with reading(policy, what="a model with a step format that settings may have", remedy="save the format again"):
        stated = FormatConfig(**saved)
    return Config(problems=ProblemsConfig(train="", test=""), policy=PolicyConfig(model=policy), format=stated)
