"""The layout of a run directory, and the rule that makes starting again continue.

    RUN/
      run.json                       schema version, resolved configuration, package versions, git revision; written first
      metrics.jsonl                  one object per finished round
      events.jsonl                   when each stage began and ended, and on which machine; the only place for wall-clock times
      live.json                      what is done now; removed at the end
      start/                         files of the embedded task, if the run uses it
      imported/NAME/KIND/            shards of imported data sets, which every round learns from; written before round 1
      rounds/000/ ... 00N/
        models/policy, models/prm    Hugging Face directories; an ensemble is a directory of member-00, member-01, ...
        trees|traces|pairs|graded|values/shard-0000.parquet
        settings.json                settings of its own, from [[rounds]] and [rules]
        problems.parquet             what was spent on every training problem, and its pass rate
        labels.json                  rows kept and dropped, by reason
        evaluation/<split>/<method>/shard-0000.parquet and .json
        round.json                   the round's figures; written last, so a round with it is finished

Every file is written to a temporary name and renamed, so a file that exists is whole. Nothing is ever rewritten but metrics.jsonl, which is
made anew from the round.json files.
"""

import fnmatch
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

from stepladder import __version__
from stepladder.errors import CheckpointError, ConfigError
from stepladder.files import atomic_write_text, read_json, read_json_object, reading
from stepladder.loops.config.load import load_config
from stepladder.loops.config.paths import map_paths
from stepladder.loops.config.run import Config
from stepladder.loops.config.schedule import given_prm, scores_itself
from stepladder.loops.runs.inputs import check_inputs, input_digests
from stepladder.loops.runs.json_records import record_of
from stepladder.loops.runs.metrics import RunMetrics
from stepladder.loops.runs.results import RoundRow
from stepladder.loops.runs.run_places import LOCK_FILE, find_run
from stepladder.loops.runs.stage_times import EVENTS_FILE
from stepladder.loops.runs.store_copy import complete_models
from stepladder.loops.runs.trained_models import check_trained, was_trained
from stepladder.types import TreeRecord

Split = Literal["train", "held_out", "test"]
"""The problems of a run."""

RUN_SCHEMA_VERSION = 1
_RUN_DIR = "{run_dir}"
_NO_RUN = "restore it from a copy, or start another run"
_VERSIONED_PACKAGES = ("torch", "transformers", "numpy", "peft", "datasets", "mpmath")


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """The origin of a run that continues another."""

    run: str
    """Directory of the other run when the branch was made."""
    round: int
    """The last round that both have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunDir:
    """Paths within one run directory."""

    root: Path
    """The directory."""

    def round(self, number: int) -> Path:
        """Return the directory of a round."""
        return self.root / "rounds" / f"{number:03d}"

    def evaluation(self, number: int, split: str) -> Path:
        """Return the directory of a round's evaluations of ``held_out`` or ``test``, which has a folder for each way to answer."""
        return self.round(number) / "evaluation" / split

    def policy(self, number: int) -> Path:
        """Return the policy that a round trained."""
        return self.round(number) / "models" / "policy"

    def policy_source(self, version: int, config: Config) -> str:
        """Return the directory of a policy version's weights: its round's directory, or the base model for version 0 without a warm-up.

        Raises:
            CheckpointError: If the model has changed since its training, or is gone.
            BackendError: If its weights are in an object store that does not answer.
        """
        model = self.policy(version)
        if version == 0 and config.warmup.solutions is None and not model.exists():
            return config.policy.model
        return self._trained(model)

    def prm(self, number: int) -> Path:
        """Return the PRM that a round trained."""
        return self.round(number) / "models" / "prm"

    def prm_source(self, version: int, config: Config) -> str:
        """Return the directory of a PRM version: its round's, the given model for version 0, or that of the policy where it scores itself.

        Errors are those of ``policy_source``.
        """
        if scores_itself(config):
            return self.policy_source(version, config)
        if not version:
            return str(given_prm(config))
        return self._trained(self.prm(version))

    def _trained(self, model: Path) -> str:
        complete_models(self.root, model)
        check_trained(model)
        return str(model)

    def shard(self, number: int, kind: str, shard: int) -> Path:
        """Return the Parquet file of a shard; kind is trees, traces, pairs, graded, values, step-pairs, or rollout-values and the like."""
        return self.round(number) / kind / f"shard-{shard:04d}.parquet"

    def shards(self, kind: str, *, rounds: list[int] | None = None) -> list[Path]:
        """Return the finished shards of a kind, in order; of all rounds unless some are named."""
        folders = [self.round(number) for number in rounds] if rounds is not None else sorted((self.root / "rounds").glob("[0-9]*"))
        return [path for folder in folders for path in _matching(folder / kind, "shard-*.parquet")]

    def kept_shards(self, kind: str, rounds: Sequence[int]) -> list[Path]:
        """Return the shards of a kind of some rounds, in order.

        Raises:
            CheckpointError: If rows of a finished round are gone: what is made of the others would be something else.
            DataFormatError: If a shard is damaged.
        """
        for number in rounds:
            if (row := self.row(number)) is not None:
                self._check_kept(kind, row)
        return self.shards(kind, rounds=list(rounds))

    def _check_kept(self, kind: str, row: RoundRow) -> None:
        """Check that a finished round has all shards of a kind, and in them as many rows as its figures say."""
        # Most commands that open a run read no shard, and start sooner without pyarrow.
        from stepladder.data.store import count_rows

        whole, folder = self.round(row.round), self.round(row.round) / kind
        remedy = f"restore it, or remove {whole} and later rounds, and run evolve again"
        shards = _matching(folder, "shard-*.parquet")
        # A round writes every kind of rows for the same shards.
        written = {path.name for other in whole.iterdir() if other.is_dir() for path in _matching(other, "shard-*.parquet")}
        if folder.is_dir() and (gone := sorted(written - {path.name for path in shards})):
            raise CheckpointError(f"{folder / gone[0]}: must be there: round {row.round} wrote it and is finished -- {remedy}")
        expected = None if row.labels is None else row.labels.rows_by_folder.get(kind)
        if kind == "trees":
            expected = None if row.search is None else row.search.trees
        if expected is not None and (found := sum(map(count_rows, shards))) != expected:
            raise CheckpointError(f"{folder}: must hold the {expected} rows that round {row.round} wrote: got {found} -- {remedy}")

    def trees(self, *, round: int, split: Split = "train") -> Iterator[TreeRecord]:
        """Iterate over the stored trees of a round, shard by shard, so that one shard is in memory at a time.

        Example: ``for tree in load_run("runs/embedded").trees(round=1): print(tree.question, max(tree.visits))``.

        Args:
            round: The round, from 1 on for training problems. Of one that is not finished, the trees of finished shards.
            split: ``train`` is the search that the round learns from, ``held_out`` and ``test`` are the searches of its evaluation.

        Raises:
            CheckpointError: Before the first tree, if the round has no trees of these problems; the message names the rounds that have.
                Also if trees that a finished round searched are gone.
            ConfigError: If there is no such split.
            DataFormatError: If a shard is damaged; trees of earlier shards may have been given then.
        """
        if split not in get_args(Split):
            raise ConfigError(f"split: must be one of {', '.join(get_args(Split))}: got {split!r} -- choose one of these")
        paths = self.kept_shards("trees", [round]) if split == "train" else self._tree_shards(round, split)
        if not paths:
            numbers = [int(path.name) for path in sorted((self.root / "rounds").glob("[0-9]*"))]
            there = [str(number) for number in numbers if self._tree_shards(number, split)]
            having = f"rounds with them are {', '.join(there)} -- choose one" if there else "no round has any -- look at another split"
            raise CheckpointError(f"{self.root}: round {round!r} must have trees of {split} problems: it has none; {having}")
        # pyarrow is loaded by whoever reads trees.
        from stepladder.data.store import read_trees

        return (tree for path in paths for tree in read_trees(path))

    def _tree_shards(self, number: int, split: Split) -> list[Path]:
        if split == "train":
            return self.shards("trees", rounds=[number])
        return _matching(self.evaluation(number, split) / "search", "shard-*.parquet")

    def imported_folder(self, name: str) -> Path:
        """Return the directory of an imported data set, with one folder per kind."""
        return self.root / "imported" / name

    def imported(self, kind: str) -> list[Path]:
        """Return the imported shards of a kind, or of all kinds (``*``), in the order of their data sets' names."""
        folders = [folder for name in _matching(self.root / "imported", "*") for folder in _matching(name, kind)]
        return sorted(path for folder in folders for path in _matching(folder, "shard-*.parquet"))

    def check_new(self) -> None:
        """Check that a run can be started here.

        Raises:
            CheckpointError: If it is a file, or holds more than the files that may exist before a run.
        """
        if self.root.is_file():
            raise CheckpointError(f"{self.root}: must be a directory or not exist: it is a file -- choose another --run-dir")
        # A process that is killed while it begins a run leaves a part of its description.
        names = [path.name for path in _matching(self.root, "*") if not path.match(".run.json.*.tmp")]
        if any(name not in ("start", "imported", LOCK_FILE) for name in names):
            raise CheckpointError(f"{self.root}: must be empty or a stepladder run: it holds other files -- choose another --run-dir")

    def check_empty(self) -> None:
        """Check that nothing is here, not even files that may exist before a run.

        Raises:
            CheckpointError: If something is.
        """
        if self.root.is_file() or (self.root.exists() and any(path.name != LOCK_FILE for path in self.root.iterdir())):
            raise CheckpointError(f"{self.root}: must be empty or not exist: it holds files -- choose another --run-dir")

    def row(self, number: int) -> RoundRow | None:
        """Return a finished round's figures, or None.

        Raises:
            CheckpointError: If its file is damaged, or of another version.
        """
        path = self.round(number) / "round.json"
        if not path.exists():
            return None
        remedy = "remove the round's directory and later ones, and run evolve again"
        return RoundRow.from_dict(read_json(path, what="the figures of a round", remedy=remedy), path)

    def rows(self) -> list[RoundRow]:
        """Return the figures of the finished rounds, in order, up to the first unfinished one; errors as for ``row``."""
        rows: list[RoundRow] = []
        while (row := self.row(len(rows))) is not None:
            rows.append(row)
        return rows

    @property
    def metrics(self) -> RunMetrics:
        """The figures of the finished rounds, as records or as a data frame; errors as for ``row``."""
        return RunMetrics(self.rows())

    def round_settings(self, number: int) -> Path:
        """Return the JSON file of a round's own settings, which exists if a schedule or a rule changes any."""
        return self.round(number) / "settings.json"

    def newest(self, model: Callable[[int], Path], number: int) -> int | None:
        """Return the newest round before ``number`` that trained a model, accepted or not; None without any.

        Args:
            model: ``policy`` or ``prm``.
            number: The round.
        """
        return next((earlier for earlier in range(number - 1, -1, -1) if was_trained(model(earlier))), None)

    def finish_round(self, row: RoundRow) -> None:
        """Write a round's figures, which finishes it, and bring metrics.jsonl up to date."""
        atomic_write_text(self.round(row.round) / "round.json", json.dumps(row.to_dict(), indent=2) + "\n")
        self.write_metrics()

    def write_metrics(self) -> None:
        """Make metrics.jsonl from the finished rounds."""
        atomic_write_text(self.root / "metrics.jsonl", "".join(json.dumps(row.to_dict()) + "\n" for row in self.rows()))

    @property
    def events(self) -> Path:
        """The file that says when each stage began and ended."""
        return self.root / EVENTS_FILE

    def log_event(self, event: str, **fields: Any) -> None:
        """Append one line to events.jsonl."""
        with self.events.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 3), "event": event, **fields}) + "\n")

    def config(self) -> Config:
        """Return the configuration that the run was started with.

        Raises:
            CheckpointError: If the directory is no run, or one of another version.
        """
        path = self.root / "run.json"
        facts = self.facts()
        try:
            with reading(path, what="the description of a run", remedy=_NO_RUN):
                return load_config(None, [], base=_with_paths(facts["config"], _RUN_DIR, str(self.root.resolve())))
        except ConfigError as error:
            raise CheckpointError(f"{path}: must hold settings of this version: {error}; or start another run") from error

    def facts(self) -> dict[str, Any]:
        """Return what run.json holds.

        Raises:
            CheckpointError: If the directory is no run, or one of another version.
        """
        return _read_run_json(self.root)

    def branch(self) -> Branch | None:
        """Return the origin of a branch; None for a run that began by itself. Errors are those of ``facts``."""
        found = self.facts().get("branch")
        if found is None:
            return None
        return record_of(Branch, found, place=self.root / "run.json", what="the description of a run", remedy=_NO_RUN)

    def inputs(self) -> dict[str, str]:
        """Return the digests of the inputs when the run began, by the names of their settings; errors as for ``facts``."""
        found = self.facts().get("inputs", {})
        if not isinstance(found, dict):
            raise CheckpointError(f"{self.root / 'run.json'}: must hold the digests of inputs: got {found!r:.80} -- {_NO_RUN}")
        return found


def open_run(root: Path, config: Config) -> RunDir:
    """Create a run directory, or open an existing one to continue it.

    Raises:
        CheckpointError: If the directory holds something else, a run of another version, or a run with other settings.
    """
    run = RunDir(root=root)
    check_run(root, config)
    if (root / "run.json").exists():
        run.write_metrics()
        return run
    root.mkdir(parents=True, exist_ok=True)
    write_run_json(root, config, place=root, inputs=input_digests(config, root))
    # A process that is killed between the two leaves a run, where a folder alone would be something else.
    (root / "rounds").mkdir(exist_ok=True)
    return run


def write_run_json(directory: Path, config: Config, *, place: Path, inputs: dict[str, str], branch: Branch | None = None) -> None:
    """Write the description of a new run.

    Args:
        directory: Where to write it.
        config: The resolved configuration.
        place: Directory of the run, if it is not that one yet.
        inputs: Digests of its inputs.
        branch: The run that it leaves; None for one that began by itself.
    """
    facts = {
        "schema_version": RUN_SCHEMA_VERSION,
        **asdict(software()),
        "config_hash": config.hash(),
        "config": _with_paths(config.model_dump(mode="json"), str(place.resolve()), _RUN_DIR),
        "inputs": inputs,
        **({} if branch is None else {"branch": asdict(branch)}),
    }
    atomic_write_text(directory / "run.json", json.dumps(facts, indent=2) + "\n")


def check_run(root: Path, config: Config) -> None:
    """Check that a run can be started or continued in a directory; nothing is written.

    Raises:
        CheckpointError: If the directory holds something else, a run of another version, or a run with other settings or inputs.
    """
    run = RunDir(root=root)
    if (root / "run.json").exists():
        _check_same(run, config)
        check_inputs(config, run.inputs(), place=root)
    else:
        run.check_new()


def load_run(root: Path | str) -> RunDir:
    """Open an existing run for reading.

    Example: ``load_run("runs/embedded").metrics.to_pandas()`` for the figures of its rounds, ``.trees(round=1)`` for its trees.

    Args:
        root: Its directory, or its URL in an object store; that of the copy on this machine is then opened.

    Raises:
        CheckpointError: If the directory is no run, or one of another version.
        ConfigError, BackendError: If a URL cannot be used, or its store does not answer.
    """
    place = find_run(root).root
    _read_run_json(place)
    return RunDir(root=place)


@dataclass(frozen=True, kw_only=True, slots=True)
class Software:
    """Versions of the software."""

    stepladder: str
    """Version of stepladder."""
    python: str
    """Version of Python."""
    packages: dict[str, str]
    """Versions of the packages that matter, of those that are installed."""
    git_revision: str | None
    """Revision of the checkout that stepladder runs from; None for an installed package."""


def software() -> Software:
    """Return the versions of the software of this process."""
    return Software(
        stepladder=__version__,
        python=platform.python_version(),
        packages=_package_versions(),
        git_revision=_git_revision(),
    )


def _matching(folder: Path, pattern: str) -> list[Path]:
    """Return what lies in a directory, in order; nothing if there is none. ``Path.glob`` would skip one that may not be read."""
    with reading(folder, what="a directory of this run that may be read", remedy="change its rights"):
        names = os.listdir(folder) if folder.is_dir() else []
    return [folder / name for name in sorted(fnmatch.filter(names, pattern))]


def _with_paths(plain: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """Exchange the start of the paths that lie inside the run directory, so that a run can be moved."""
    return map_paths(plain, lambda value: new + value[len(old) :] if value.startswith(old) else value)


def _check_same(run: RunDir, config: Config) -> None:
    differences = config.differences(run.config())
    if differences:
        raise CheckpointError(
            f"{run.root}: a run continues only with the settings it was started with: {'; '.join(differences[:3])}"
            f"{' and more' if len(differences) > 3 else ''} -- use these settings or another --run-dir"
        )


def _read_run_json(root: Path) -> dict[str, Any]:
    path = root / "run.json"
    if not root.is_dir():
        found = "it is a file" if root.exists() else "there is no such directory"
        raise CheckpointError(f"{root}: must be a run: {found} -- give the directory that evolve wrote")
    with reading(path, what="the description of a run", remedy=_NO_RUN):
        is_there = path.exists()
    if not is_there:
        raise CheckpointError(f"{root}: not a stepladder run: run.json is missing -- give the directory that evolve wrote")
    facts = read_json_object(path, what="the description of a run", remedy=_NO_RUN)
    if facts.get("schema_version") != RUN_SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: schema_version must be {RUN_SCHEMA_VERSION}: got {facts.get('schema_version')!r} "
            f"-- use stepladder {facts.get('stepladder')!r} for this run or start another"
        )
    return facts


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in _VERSIONED_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _git_revision() -> str | None:
    """Revision of the checkout that stepladder runs from; None for an installed package."""
    command = ["git", "-C", os.fspath(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
