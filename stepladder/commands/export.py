"""Exports of a run's finished rounds, to a directory or to the Hugging Face hub, and imports of such exports into a run."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepladder import __version__
from stepladder.data.exports.card import CARD_MARK, CardFacts
from stepladder.data.exports.dataset import ExportJob, ExportSummary, export_dataset, find_format, import_dataset, restored_kind
from stepladder.data.exports.formats import EXPORT_FORMATS, ExportFormat
from stepladder.data.exports.rows import ExportSource
from stepladder.data.labels.advantages import AdvantageForm
from stepladder.data.labels.values import ValueTarget
from stepladder.data.store import VALUES
from stepladder.errors import BackendError, CheckpointError, ConfigError, DataFormatError, StepladderError
from stepladder.files import reading
from stepladder.hub import absent, cached_where_unreachable
from stepladder.loops.assembly.policies import imported_row_check
from stepladder.loops.assembly.problem_sets import build_problems
from stepladder.loops.config.run import Config, flatten_keys
from stepladder.loops.runs.directory import RunDir, load_run
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.results import RowCounts
from stepladder.loops.runs.store_copy import name_of
from stepladder.loops.runs.workers import Progress
from stepladder.loops.stages.kinds import prm_kind
from stepladder.loops.stages.label import read_counts

_HUB = "hub"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """Options of ``stepladder export``."""

    format: str
    """Name of a format."""
    rounds: str | None = None
    """Rounds as ``2`` or ``1-3``; None for all finished ones."""
    splits: Sequence[str] = ()
    """Each ``NAME=SHARE``."""
    advantage: str = "parent"
    """Form of the advantages."""
    target: str = "monte-carlo"
    """Definition of a node's value."""
    data_source: str | None = None
    """Name of the problems' source in rows for other trainers; None takes the hub id, or the stem of the problem file."""
    licence: str | None = None
    """SPDX identifier of the licence of the source problems."""
    overwrite: bool = False
    """Replace an earlier export."""
    public: bool = False
    """Make a new data set on the hub public."""


def export_rounds(run_path: str | Path, to: str, options: ExportOptions, *, display: ProgressDisplay) -> str:
    """Write the rows of finished rounds as a data set and return the line to print.

    Args:
        run_path: Run directory, or its URL.
        to: Directory, or ``hub:OWNER/NAME``, or ``hub`` for a data set named after run and format in one's own account.
        options: Options of the export.
        display: Shows progress.

    Raises:
        ConfigError: If format, rounds or another option is not known.
        DataFormatError: If there is nothing to export.
        CheckpointError: If the directory is no run, or the target is not empty.
        BackendError: If the hub refuses or cannot be reached.
    """
    run, chosen = load_run(run_path), find_format(options.format)
    config = run.config()
    rounds, kind = _chosen_rounds(run, options.rounds, latest=chosen.per_problem), _rows_of(chosen, config)
    shards = run.kept_shards(kind, rounds)
    if not shards:
        raise DataFormatError(
            f"{run.root}: {options.format} is made of {kind} rows: got none in rounds {', '.join(map(str, rounds))}, where nothing learned "
            "from any -- choose another --format"
        )
    _check_trees(shards)
    job = _job(run, config, rounds, chosen, kind, options)
    stage = f"export: {options.format}"

    def write(folder: Path) -> ExportSummary:
        with display.stages({stage: len(shards)}) as report:
            return export_dataset(
                shards, job, folder, on_shard=lambda num_tokens: report(Progress(stage=stage, items=1, tokens=num_tokens))
            )

    target, _, repository = to.partition(":")
    if target == _HUB:
        place, summary = _publish(repository or f"{run.root.resolve().name}-{options.format}", options, write)
    else:
        place, summary = to, write(Path(to))
    dropped = sum(summary.dropped.values())
    left_out = f", {dropped} candidate{'' if dropped == 1 else 's'} left out (see its README.md)" if summary.dropped else ""
    of_rounds = f"round{'s' if len(rounds) > 1 else ''} {', '.join(map(str, rounds))}"
    return f"{place}: {summary.num_rows} rows of {options.format} from {of_rounds}{left_out}"


def _check_trees(shards: Sequence[Path]) -> None:
    """Check that the trees behind some rows are there: they hold the questions."""
    for path in shards:
        tree = path.parents[1] / "trees" / path.name
        if not tree.exists():
            raise DataFormatError(f"{tree}: must be there: it holds the questions of {path} -- restore it, or export other rounds")


def explain_formats() -> str:
    """Return one line per format."""
    width = max(map(len, EXPORT_FORMATS))
    return "\n".join(
        f"{name:<{width}}  {known.title}{'' if known.restore is None else ' (can be imported)'}" for name, known in EXPORT_FORMATS.items()
    )


def import_rows(place: str, run_path: Path, *, config: Config | None = None) -> str:
    """Add the rows of an exported data set to a run that has not begun its first round, and return the line to print.

    Args:
        place: Directory, or ``hub:OWNER/NAME``.
        run_path: Run directory; it need not exist.
        config: Settings of a run that does not exist yet, against whose policy the rows are checked. Without them, ``evolve`` checks the
            rows before any work. A run that exists has its own.

    Raises:
        BackendError: If the hub cannot be reached.
        DataFormatError: If the directory is not an importable export, or a row's text does not match its ids.
        CheckpointError: If the run has begun or already has a data set of that name, or the directory is neither new nor a run.
    """
    directory = _fetched(place)
    run, name = RunDir(root=run_path), place.rpartition("/")[2] if place.startswith(f"{_HUB}:") else directory.resolve().name
    if run.round(1).exists():
        raise CheckpointError(f"{run_path}: rows must be imported before round 1 begins: it has begun -- import into another --run-dir")
    if run_path.exists() and not (run_path / "run.json").exists():
        run.check_new()
    kind = restored_kind(directory)
    if run.imported_folder(name).exists():
        raise CheckpointError(
            f"{run.imported_folder(name)}: must not exist: a data set of this name was imported before -- rename the new one"
        )
    if (run_path / "run.json").exists():
        config = run.config()
    check = None if config is None else imported_row_check(config, config.policy.model)
    try:
        _, count = import_dataset(directory, run.imported_folder(name) / kind.name, check=check or (lambda record, place: None))
    except StepladderError:
        # Rows that were refused leave no folder that would keep their name taken.
        for folder in (run.imported_folder(name), run.imported_folder(name).parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise
    later = "" if check else ", and checks their texts before it begins (with --config they are checked now)"
    learner = f"evolve --run-dir {name_of(run_path)}"
    return f"{run.imported_folder(name)}: {count} rows of {kind.name}; {learner} learns from them in every round{later}"


def _chosen_rounds(run: RunDir, rounds: str | None, *, latest: bool) -> list[int]:
    finished = [row.round for row in run.rows() if row.round > 0]
    chosen = finished if rounds is None else _parse_rounds(rounds, finished)
    if not chosen:
        raise ConfigError(f"{run.root}: no finished round to export -- let evolve finish round 1")
    return chosen[-1:] if latest else chosen


def _parse_rounds(text: str, finished: list[int]) -> list[int]:
    first, dash, last = text.partition("-")
    try:
        wanted = list(range(int(first), int(last if dash else first) + 1))
    except ValueError:
        wanted = []
    if not wanted or not set(wanted) <= set(finished):
        raise ConfigError(
            f"--round: must name finished rounds ({', '.join(map(str, finished)) or 'there are none'}), as 2 or 1-3: got {text!r}"
        )
    return wanted


def _rows_of(chosen: ExportFormat, config: Config) -> str:
    """Return the run's name for the rows of a format; value rows are those that the PRM learns from, if it learns from any."""
    learned = prm_kind(config)
    return learned.name if chosen.kind is learned.stored is VALUES else chosen.kind.name


def _job(run: RunDir, config: Config, rounds: list[int], chosen: ExportFormat, kind: str, options: ExportOptions) -> ExportJob:
    rollouts = run.kept_shards("rollouts", rounds) if kind.endswith("-values") else []
    trees = rollouts or run.kept_shards("trees", rounds)
    problems = _shown_source(config.problems.train)
    source = ExportSource(
        answers=_answers(config) if chosen.needs_answers else {},
        prompt_template=config.format.prompt_template,
        step_end=config.format.step_end,
        system=config.format.system,
        target=_member(ValueTarget, options.target, "--target"),
        advantage=_member(AdvantageForm, options.advantage, "--advantage"),
        name=options.data_source or problems,
        ability="reasoning" if config.problems.rule == "exact" or config.problems.verifier else "math",
    )
    facts = CardFacts(
        settings=_settings(config),
        selected=_selected(run, rounds, kind),
        licence=options.licence or _stated_licence(config.problems.train),
        problems=problems,
    )
    return ExportJob(
        format=options.format, source=source, trees=trees, facts=facts, splits=_splits(options.splits), overwrite=options.overwrite
    )


def _member(members: Any, value: str, option: str) -> Any:
    if value not in list(members):
        raise ConfigError(f"{option}: must be one of {', '.join(members)}: got {value!r} -- choose one of these")
    return members(value)


def _splits(texts: Sequence[str]) -> dict[str, float]:
    splits: dict[str, float] = {}
    for text in texts:
        name, _, share = text.partition("=")
        try:
            splits[name] = float(share)
        except ValueError:
            raise ConfigError(f"--split {text!r}: must have the form NAME=SHARE, for example --split test=0.1") from None
    return splits


def _answers(config: Config) -> dict[str, str]:
    problems = build_problems(config.problems, seed=config.run.seed)["train"]
    return {labelled.problem.id: labelled.answer for labelled in problems}


def _selected(run: RunDir, rounds: list[int], kind: str) -> Mapping[str, Any] | None:
    """Return the counts of a kind of row that labelling kept and dropped, summed over rounds; None if labelling does not make the kind."""
    paths = [run.round(number) / "labels.json" for number in rounds]
    found = [read_counts(path).by_kind.get(kind) for path in paths if path.exists()]
    counted = [counts for counts in found if counts is not None]
    if len(counted) < len(rounds):
        return None
    counts = RowCounts.sum(counted)
    return {"kept": counts.kept, "dropped_by_reason": dict(sorted(counts.dropped_by_reason.items()))}


def _settings(config: Config) -> dict[str, str]:
    prm, problems = config.prm, config.problems
    grader = f"verifier `{problems.verifier}`" if problems.verifier else f"rule `{problems.rule}`"
    return {
        "exported by": f"stepladder {__version__}",
        "problems": f"`{_shown_source(config.problems.train)}`, graded by {grader}",
        "policy of version 0 is made from": f"`{_shown_source(config.policy.model)}`",
        "process reward model": f"target `{prm.target.type}`, loss `{prm.loss.type}`" if prm.enabled else "none",
        "search": f"`{config.search.method}`, {config.search.simulations} simulations",
        **{f"search option `{name}`": f"`{value}`" for name, value in config.search.options.items()},
        **{f"label setting `{name}`": f"`{value}`" for name, value in flatten_keys(config.labels.model_dump(mode="json")).items()},
        "prompt template": f"`{json.dumps(config.format.prompt_template, ensure_ascii=False)}`",
        "chat template": "yes: the policy saw the prompt inside its tokenizer's chat template" if config.format.chat else "no",
    }


def _stated_licence(source: str) -> str | None:
    """Return the licence that a local data set's own card states."""
    from huggingface_hub import metadata_load

    card = Path(source) / "README.md"
    if not card.is_file():
        return None
    with reading(card, what="a data card, whose first lines are YAML", remedy="correct it, or give --license", raises=DataFormatError):
        licence: Any = (metadata_load(card) or {}).get("license")
    return licence if isinstance(licence, str) else None


def _shown_source(name: str) -> str:
    """Return a hub id unchanged, or the last part of a path, because a local directory means nothing to others."""
    return Path(name).stem if Path(name).is_absolute() else name


def _publish(name: str, options: ExportOptions, write: Callable[[Path], ExportSummary]) -> tuple[str, ExportSummary]:
    """Write an export to a temporary directory and upload it. The hub's content is checked before any work."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    api = HfApi()
    with _hub_explained(name), tempfile.TemporaryDirectory(prefix="stepladder-export-") as folder:
        validate_repo_id(name)
        repository = name if "/" in name else f"{api.whoami()['name']}/{name}"
        exists = api.repo_exists(repository, repo_type="dataset")
        if exists:
            _check_replaceable(api, repository, overwrite=options.overwrite)
        summary = write(Path(folder) / "dataset")
        if not exists:
            api.create_repo(repository, repo_type="dataset", private=not options.public)
        # Extra files of an earlier export would be read as rows of this one.
        api.upload_folder(
            repo_id=repository,
            folder_path=Path(folder) / "dataset",
            repo_type="dataset",
            commit_message=f"stepladder export --format {options.format}",
            delete_patterns=["data/*"],
        )
    return f"https://huggingface.co/datasets/{repository}", summary


def _fetched(place: str) -> Path:
    """Return the directory of a data set; fetch it first if it is on the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import validate_repo_id

    target, _, repository = place.partition(":")
    if target != _HUB:
        return Path(place)
    with _hub_explained(repository):
        # A name that cannot be one is no question for the network.
        validate_repo_id(repository)
    with _hub_explained(repository), cached_where_unreachable():
        return Path(snapshot_download(repository, repo_type="dataset"))


def _check_replaceable(api: Any, repository: str, *, overwrite: bool) -> None:
    ours = False
    if api.file_exists(repository, "README.md", repo_type="dataset"):
        card = Path(api.hf_hub_download(repository, "README.md", repo_type="dataset"))
        ours = CARD_MARK in card.read_text(encoding="utf-8", errors="replace")
    if ours and overwrite:
        return
    what = "an earlier export" if ours else "a data set that is not an export of stepladder"
    remedy = "choose another name or pass --overwrite" if ours else "choose another name"
    raise CheckpointError(f"hub:{repository}: must not exist: the hub holds {what} of that name -- {remedy}")


@contextmanager
def _hub_explained(name: str) -> Iterator[None]:
    import httpx2
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, LocalTokenNotFoundError

    try:
        yield
    except LocalEntryNotFoundError as error:
        raise BackendError(absent(f"hub:{name}", "data set")) from error
    except LocalTokenNotFoundError:
        raise BackendError(f"hub:{name}: the hub must know who asks: no token was found -- run hf auth login, or set HF_TOKEN") from None
    except HFValidationError as error:
        raise ConfigError(f"hub:{name}: must be hub:OWNER/NAME: {str(error).splitlines()[0].rstrip('.')} -- correct the name") from None
    except httpx2.HTTPError as error:
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BackendError(f"hub:{name}: the hub must answer: {first_line} -- check name, token and network") from error
