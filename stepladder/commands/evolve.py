"""Many rounds: warm-up, then search -> label -> train -> evaluate -> gate, until the configured number of rounds is done.

``evolve`` can be stopped at any moment and called again with the same arguments. It finds finished work on disk and does not repeat it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepladder.commands.opening import Opening
from stepladder.data.datasets.problems import load_seed_solutions
from stepladder.data.store import GRADED, PAIRS, TRACES, TREES, VALUES, ShardKind, read_columns, read_records
from stepladder.errors import CheckpointError, ConfigError, DataFormatError
from stepladder.files import remove_temporaries
from stepladder.loops.assembly.checks import check_adapters, check_model, check_policy_name, check_rounds
from stepladder.loops.assembly.engines import check_engines
from stepladder.loops.assembly.policies import build_renderer, imported_row_check, step_format, with_chat, with_date
from stepladder.loops.assembly.preflight import (
    Need,
    PromptLengths,
    measured_prompts,
    run_needs,
    solution_tokens,
    unknown_in_warmup,
    warnings_of,
)
from stepladder.loops.assembly.problem_sets import ProblemSets, read_sets
from stepladder.loops.assembly.problems import check_verifier, try_verifier
from stepladder.loops.assembly.unknown_text import UnknownText
from stepladder.loops.assembly.workers import open_workers
from stepladder.loops.config.load import load_config, with_overrides
from stepladder.loops.config.run import Config
from stepladder.loops.config.schedule import all_settings
from stepladder.loops.runs.directory import RunDir, check_run, load_run, open_run
from stepladder.loops.runs.inputs import InputGuard
from stepladder.loops.runs.live import remove_live
from stepladder.loops.runs.machine import machine
from stepladder.loops.runs.newest import RUNS
from stepladder.loops.runs.progress import ProgressDisplay, RunFrame
from stepladder.loops.runs.results import RoundRow
from stepladder.loops.runs.run_places import find_run, keeps_lock
from stepladder.loops.stages.context import RoundContext
from stepladder.loops.stages.round_rules import stops_early


def evolve(
    config: Config | Path | str,
    root: Path | str | None = None,
    *,
    overrides: Sequence[str] = (),
    display: ProgressDisplay | None = None,
    on_round: Callable[[RoundRow], None] | None = None,
    stop_after: int | None = None,
) -> RunDir:
    """Run the rounds that are missing in a run directory; the same call continues a stopped run.

    Worker processes import the calling script again, so a script must call this below ``if __name__ == "__main__":``.

    Args:
        config: The configuration, or the path of its file. For an existing run it must be the one it was started with.
        root: Run directory, created if it does not exist, or a URL in an object store; None is ``runs/NAME`` for the file ``NAME.toml``.
        overrides: ``section.key=value`` over the configuration.
        display: Shows progress; None writes to standard error.
        on_round: Called with the figures of every finished round, those found on disk included.
        stop_after: Last round of this call; a later call goes on. None is the last of the run.

    Raises:
        ConfigError, DataFormatError, CheckpointError: Before any work, if settings, problems or directory cannot be used, or another
            process works on the run.
        BackendError: If a model engine or a worker fails, or an object store does not answer.
    """
    if root is None and isinstance(config, Config):
        raise ConfigError("evolve: a configuration without a file needs a run directory: got none -- give root")
    resolved = with_overrides(config, overrides) if isinstance(config, Config) else load_config(Path(config), overrides)
    place = find_run(RUNS / Path(str(config)).stem if root is None else root, to_work=True)
    check_settings(resolved)
    sets = load_inputs(resolved)
    check_run(place.root, resolved)
    display, on_round = display or ProgressDisplay(), on_round or _ignore
    with place.held(display.say) as check:
        return run_rounds(resolved, place.root, sets=sets, display=display, on_round=on_round, stop_after=stop_after, check=check)


def _ignore(row: RoundRow) -> None:
    pass


def run_rounds(
    config: Config,
    root: Path,
    *,
    sets: ProblemSets | None = None,
    display: ProgressDisplay,
    on_round: Callable[[RoundRow], None],
    stop_after: int | None = None,
    expected_s: float | None = None,
    check: Callable[[], None] = keeps_lock,
) -> RunDir:
    """Do the work of ``evolve`` in a directory that the caller has locked.

    Args:
        config: The resolved configuration, which has passed ``check_settings``.
        root: The directory.
        sets: The result of ``load_inputs``; None loads them now.
        display: Shows progress.
        on_round: Called with the figures of every finished round.
        stop_after: Last round of this call.
        expected_s: Seconds that a whole run like this one usually takes; None if nobody knows.
        check: Called now and then; raises if the directory is no longer locked.
    """
    if sets is None:
        sets = load_inputs(config)
    config, notes = ready(config, sets, root)
    for note in notes:
        display.say(note)
    run = open_run(root, config)
    remove_temporaries(root)
    facts = sets.facts()
    facts.save(root)
    last = config.run.rounds if stop_after is None else min(stop_after, config.run.rounds)
    opening = Opening(config, root, num_done=len(run.rows()), last=last, expected_s=expected_s)
    for sentence in (*opening.lines({name: len(split) for name, split in sets.splits.items()}), *facts.sentences()):
        display.say(sentence)
    _check_imported(run, config)
    if not run.round(1).exists():
        _check_imported_rows(run, config)
    for row in run.rows():
        on_round(row)
    if _is_over(run, config, last, display):
        remove_live(root)
        return run
    # The stages load torch and transformers; refusals come before.
    from stepladder.loops.stages.round import run_round

    guard = InputGuard(config, run.inputs(), place=root)
    with _framed(display, opening.frame(run)), open_workers(config, root, say=display.say) as pool:
        run.log_event("start", rounds=config.run.rounds, workers=pool.num_workers, machine=machine())
        context = RoundContext(
            config=config, run=run, problems=sets.splits, pool=pool, display=display, guard=guard, last=last, check=check
        )
        while not _is_over(run, config, last, display):
            begin = time.monotonic()
            row = replace(run_round(context, len(run.rows())), seconds=round(time.monotonic() - begin, 1))
            run.finish_round(row)
            on_round(row)
    return run


def ready(config: Config, sets: ProblemSets, root: Path) -> tuple[Config, list[str]]:
    """Make the last choices of a run and the checks before its work; nothing is written.

    Args:
        config: The resolved configuration, which has passed ``check_settings``.
        sets: The result of ``load_inputs``.
        root: The run directory; it need not exist.

    Returns:
        The settings with which the run works, and sentences about choices and doubts.

    Raises:
        ConfigError, DataFormatError, CheckpointError: If the run cannot work.
    """
    earlier = load_run(root).config() if (root / "run.json").exists() else None
    config, note = with_chat(config, config.policy.model, earlier=earlier)
    config = with_date(config, config.policy.model, earlier=earlier)
    _check_start_models(config)
    return config, [*([] if note is None else [note]), *warnings_of(preflight(config, sets, root))]


@contextmanager
def _framed(display: ProgressDisplay, frame: RunFrame) -> Iterator[None]:
    """Show the place of every stage in the run while the block runs."""
    display.frame = frame
    try:
        yield
    finally:
        frame.close()
        display.frame = None


def _is_over(run: RunDir, config: Config, last: int, display: ProgressDisplay) -> bool:
    """Say whether a run has all its rounds, or ends early, which is shown."""
    rows = run.rows()
    if len(rows) > last:
        return True
    if (reason := stops_early(rows, config.rules.early_stop)) is not None:
        display.say(reason)
    return reason is not None


def check_settings(config: Config) -> None:
    """Check resolved settings as far as that is possible without the policy and the problems, which a command may still have to make.

    Raises:
        ConfigError, CheckpointError: If they cannot be used.
    """
    check_verifier(config.problems, config.format)
    check_rounds(config)
    check_policy_name(config.policy)
    step_format(config)


def load_inputs(config: Config) -> ProblemSets:
    """Check the policy, the solved examples and the verifier, and return the problems.

    Raises:
        ConfigError, DataFormatError, CheckpointError, BackendError: If one of them is missing or cannot be used.
    """
    check_model(config.policy)
    if config.warmup.solutions is not None:
        load_seed_solutions(config.warmup.solutions)
    sets = read_sets(config.problems, seed=config.run.seed)
    try_verifier(config.problems, sets.splits["test"][0])
    return sets


def preflight(config: Config, sets: ProblemSets, root: Path) -> list[PromptLengths | UnknownText | Need]:
    """Check that prompts fit the policy and its tokenizer can write prompts and solved examples, and that vLLM can serve its models.

    What the missing rounds take is compared with this machine.

    Args:
        config: The settings, with a choice of chat template.
        sets: The problems.
        root: The run directory; it need not exist.

    Raises:
        ConfigError: If no prompt of a split fits, no solved example can be written, or the policy has not the modules that get adapters.
        ConfigError, CheckpointError: If vLLM is to serve a model that it cannot serve here.
    """
    policy = config.policy.model
    finished = len(load_run(root).rows()) if (root / "run.json").exists() else 0
    problems = {name: [each.problem for each in split] for name, split in sets.splits.items()}
    prompts = measured_prompts(config, policy, problems, solution=solution_tokens(config))
    examples = [] if finished else unknown_in_warmup(config, policy)
    check_adapters(config)
    check_engines(config, [policy, *_start_models(config)])
    return [*prompts, *examples, *run_needs(config, policy, root, num_problems=max(map(len, sets.splits.values())), finished=finished)]


def _start_models(config: Config) -> list[str]:
    """Return the policies, other than the run's own, that rounds start from."""
    return sorted({each.start_model for each in all_settings(config) if each.start_model is not None})


def _check_start_models(config: Config) -> None:
    """Refuse a policy to start from that has another tokenizer now, not after a search."""
    for model in _start_models(config):
        if build_renderer(config, model).hash != build_renderer(config, config.policy.model).hash:
            raise ConfigError(
                f"start_model: must have the tokenizer of policy.model, because rows hold its tokens: that of {model!r} differs -- start "
                "from a model of the same family"
            )


def _check_imported(run: RunDir, config: Config) -> None:
    """Refuse imported rows of another renderer now, not after a search: training would refuse them then."""
    paths = run.imported("*")
    if not paths:
        return
    expected = build_renderer(config, config.policy.model).hash
    for path in paths:
        foreign = set(read_columns(path, ["renderer_hash"])["renderer_hash"].to_pylist()) - {expected}
        if foreign:
            raise DataFormatError(
                f"{path}: every row must come from renderer {expected!r}: got {', '.join(sorted(map(repr, foreign)))} "
                "-- import rows that were made with the same prompt format and tokenizer"
            )


def _check_imported_rows(run: RunDir, config: Config) -> None:
    """Refuse imported rows whose text does not match their ids, or with ids that the policy does not have."""
    paths = run.imported("*")
    if not paths:
        return
    check = imported_row_check(config, config.policy.model)
    kinds: dict[str, ShardKind[Any]] = {kind.name: kind for kind in (TREES, TRACES, PAIRS, GRADED, VALUES)}
    for path in paths:
        for number, record in enumerate(read_records(path, kinds[path.parent.name]), 1):
            check(record, f"{path}:{number}")


def best_models(run: RunDir) -> tuple[str, str | None]:
    """Return the best policy and PRM of a run, which ``solve`` uses.

    Raises:
        CheckpointError: If no round is finished yet.
    """
    rows = run.rows()
    if not rows:
        raise CheckpointError(f"{run.root}: no round is finished yet -- let evolve finish at least the warm-up")
    policy, prm = rows[-1].best_policy, rows[-1].best_prm
    return run.policy_source(policy, run.config()), None if prm is None else run.prm_source(prm, run.config())


def round_models(run: RunDir, number: int) -> tuple[str, str | None]:
    """Return the policy and the PRM that a finished round measured, adopted or not.

    Raises:
        CheckpointError: If the round is not finished.
    """
    row = run.row(number)
    if row is None:
        raise CheckpointError(f"{run.root}: round {number} must be finished: {len(run.rows())} rounds are, from 0 on -- choose one of them")
    policy, prm = row.policy_version, row.scorer_version
    return run.policy_source(policy, run.config()), None if prm is None else run.prm_source(prm, run.config())
