"""Exports of whole runs, to directories and to the hub, and what a run does with imported rows."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.commands.evolve import evolve
from stepladder.commands.export import ExportOptions, explain_formats, export_rounds, import_rows
from stepladder.data.exports.dataset import ExportJob, export_dataset
from stepladder.data.exports.rows import ExportSource
from stepladder.data.labels.pair_rules import EvidencePairs
from stepladder.data.labels.traces import select_traces
from stepladder.data.labels.value_rows import value_rows
from stepladder.data.store import (
    count_rows,
    read_pairs,
    read_traces,
    read_trees,
    read_values,
    write_pairs,
    write_traces,
    write_trees,
    write_values,
)
from stepladder.errors import BackendError, CheckpointError, ConfigError, DataFormatError
from stepladder.loops.assembly.policies import build_renderer
from stepladder.loops.config.load import load_config
from stepladder.loops.config.run import Config
from stepladder.loops.runs.directory import RunDir, open_run
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.results import LabelCounts, RowCounts
from stepladder.loops.runs.workers import Task
from stepladder.loops.stages.context import BestModels, RoundContext
from stepladder.loops.stages.label import label_imported
from stepladder.loops.stages.train_policy import train_policy
from stepladder.loops.stages.train_prm import train_prm
from stepladder.types import PreferencePair, Problem, Provenance, TreeRecord
from tests.folders import contents
from tests.inline import InlinePool
from tests.report_run import SUMMARY, row, tree
from tests.runs import write_problems, write_tiny_config

IDS = [f"train-{index}" for index in range(6)]


def provenance(number: int) -> Provenance:
    """Return the provenance of a round's trees."""
    return Provenance(
        round=number,
        policy_version=number - 1,
        scorer_version=None if number == 1 else number - 1,
        seed=7,
        config_hash="0" * 16,
        renderer_hash="r" * 16,
    )


def trees_of(number: int) -> list[TreeRecord]:
    """Return the trees of a round, with right and wrong leaves and steps that differ in their tokens."""
    trees = [tree(name, question=f"{name}: which?", origin=provenance(number), labelled=True) for name in IDS]
    return [replace(made, token_ids=[[], *([5, 6, 7 + node] for node in range(1, len(made.parents)))]) for made in trees]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run of two finished rounds of two shards each, labelled as a round labels."""
    for split in ("train", "held_out", "test"):
        write_problems(tmp_path / f"{split}.jsonl", prefix=split, count=6, seed=1)
    sources = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "held_out", "test")}
    config = Config.model_validate({"problems": {**sources, "rule": "exact"}, "policy": {"model": "owner/base"}, "run": {"seed": 7}})
    run = open_run(tmp_path / "run", config)
    run.finish_round(row(0, policy=0.5, search=0.5, majority=0.5))
    for number in (1, 2):
        for shard, records in enumerate((trees_of(number)[:4], trees_of(number)[4:])):
            write_trees(run.shard(number, "trees", shard), records)
            write_pairs(run.shard(number, "pairs", shard), EvidencePairs(min_margin=0.0).select(records).rows)
            write_traces(run.shard(number, "traces", shard), select_traces(records).rows)
            write_values(run.shard(number, "values", shard), value_rows(records).rows)
        counts = {"kept": 10 * number, "dropped_by_reason": {"below margin": number, f"only in {number}": 1}}
        (run.round(number) / "labels.json").write_text(json.dumps(dict.fromkeys(("pairs", "traces", "values"), counts)))
        written = {kind: RowCounts(kept=sum(map(count_rows, run.shards(kind, rounds=[number])))) for kind in ("traces", "pairs", "values")}
        run.finish_round(replace(row(number, policy=0.5, search=0.5, majority=0.5), labels=LabelCounts(**written)))
    return run


def display() -> ProgressDisplay:
    """Return a display that writes to memory."""
    return ProgressDisplay(Console(file=io.StringIO(), width=200))


def export(run: RunDir, to: Path | str, **options: Any) -> str:
    """Export a run and return the line that the command prints."""
    return export_rounds(run.root, str(to), ExportOptions(**options), display=display())


def test_rounds_are_chosen_and_shown(run: RunDir, tmp_path: Path) -> None:
    """All finished rounds by default, one or a range on request; progress counts shards; the card adds the rounds' counts up."""
    shown = display()
    line = export_rounds(run.root, str(tmp_path / "all"), ExportOptions(format="preference"), display=shown)
    count = sum(len(read_pairs(path)) for path in run.shards("pairs"))
    assert line == f"{tmp_path / 'all'}: {count} rows of preference from rounds 1, 2"
    assert "export: preference: 4/4" in shown.console.file.getvalue()
    card = (tmp_path / "all" / "README.md").read_text()
    for text in (
        "| kept by the run's labelling (pairs) | 30 |",
        "| dropped by the run's labelling: below margin | 3 |",
        "| dropped by the run's labelling: only in 2 | 1 |",
        "| policy of version 0 is made from | `owner/base` |",
        "| problems | `train`, graded by rule `exact` |",
        "| searched trees | 12 |",
    ):
        assert text in card
    assert str(tmp_path) not in card
    assert export(run, tmp_path / "one", format="sft", rounds="2").endswith("from round 2")
    assert "| `round` | `2` |" in (tmp_path / "one" / "README.md").read_text()
    for text in ("0", "3", "2-1", "x", "1-"):
        with pytest.raises(ConfigError, match=r"--round: must name finished rounds \(1, 2\), as 2 or 1-3"):
            export(run, tmp_path / "bad", format="sft", rounds=text)


def test_licence_is_said_or_read(run: RunDir, tmp_path: Path) -> None:
    """What the user says goes first, then what the card of a local data set of problems says."""
    config = run.config()
    folder = tmp_path / "sums"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Sums\n")
    (run.root / "run.json").write_text((run.root / "run.json").read_text().replace(config.problems.train, str(folder)))
    export(run, tmp_path / "read", format="sft")
    assert "Licence of the source problems (sums): `cc-by-4.0`." in (tmp_path / "read" / "README.md").read_text()
    export(run, tmp_path / "said", format="sft", licence="mit")
    assert "Licence of the source problems (sums): `mit`." in (tmp_path / "said" / "README.md").read_text()
    (folder / "README.md").write_text("---\nlicense: [\n---\n# Sums\n")
    with pytest.raises(DataFormatError, match=r"sums/README\.md: must be a data card, .* -- correct it, or give --license"):
        export(run, tmp_path / "damaged", format="sft")


def test_left_out_candidates_are_said(run: RunDir, tmp_path: Path) -> None:
    """What an export leaves out stands in the line that it prints and in the card, by reason."""
    for path in run.shards("trees"):
        write_trees(path, [replace(record, stop_reasons=["length"] * len(record.parents)) for record in read_trees(path)])
    with pytest.raises(DataFormatError, match="candidates were left out"):
        export(run, tmp_path / "none", format="kto")
    line = export(run, tmp_path / "value", format="value", target="tree-value")
    assert "left out" not in line
    records = [replace(record, values=[None, *record.values[1:]]) for record in trees_of(1)]
    write_trees(run.shard(1, "trees", 0), records)
    assert "6 candidates left out (see its README.md)" in export(run, tmp_path / "some", format="value", target="tree-value")
    assert "| left out by the export: no target | 6 |" in (tmp_path / "some" / "README.md").read_text()


def test_problems_come_with_their_answers_once(run: RunDir, tmp_path: Path) -> None:
    """`prompts` holds every problem of the last round once, with the training file's answer; without the file it says so."""
    import datasets

    assert export(run, tmp_path / "out", format="prompts").endswith("6 rows of prompts from round 2")
    data = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    answers = {row["id"]: row["answer"] for row in map(json.loads, (tmp_path / "train.jsonl").read_text().splitlines())}
    assert {row["problem_id"]: row["reward_model"]["ground_truth"] for row in data} == answers
    assert {(row["data_source"], row["ability"]) for row in data} == {("train", "reasoning")}
    export(run, tmp_path / "named", format="prompts", data_source="openai/gsm8k")
    named = datasets.load_dataset(str(tmp_path / "named"), split="train", cache_dir=str(tmp_path / "cache"))
    assert {(row["data_source"], row["datasource"]) for row in named} == {("openai/gsm8k", "openai/gsm8k")}
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(DataFormatError, match=r"train\.jsonl"):
        export(run, tmp_path / "again", format="prompts")


def test_wrong_options_are_refused(run: RunDir, tmp_path: Path) -> None:
    """Unknown names and malformed splits are refused before anything is written; a run without rounds has nothing to export."""
    cases = (
        ({"format": "csv"}, "format: must be one of"),
        ({"format": "tree", "advantage": "x"}, "--advantage: must be one of parent, treepo, group: got 'x'"),
        ({"format": "tree", "target": "x"}, "--target: must be one of monte-carlo"),
        ({"format": "tree", "splits": ["test"]}, "--split 'test': must have the form NAME=SHARE"),
        ({"format": "tree", "splits": ["test=2"]}, "split 'test'"),
    )
    for options, message in cases:
        with pytest.raises(ConfigError, match=message):
            export(run, tmp_path / "out", **options)
    with pytest.raises(DataFormatError, match="graded is made of graded rows: got none in rounds 1, 2"):
        export(run, tmp_path / "out", format="graded")
    for number in (1, 2):
        (run.round(number) / "round.json").unlink()
    with pytest.raises(ConfigError, match="no finished round to export"):
        export(run, tmp_path / "out", format="tree")
    assert not (tmp_path / "out").exists()
    assert len(explain_formats().splitlines()) == 15


class FakeHub:
    """The part of ``HfApi`` that an export uses, over data sets in memory."""

    def __init__(self) -> None:
        self.data_sets: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.folder = Path()
        self.failure: Exception | None = None

    def whoami(self) -> dict[str, str]:
        """Return the account."""
        if self.failure:
            raise self.failure
        return {"name": "me"}

    def repo_exists(self, repo_id: str, *, repo_type: str) -> bool:
        """Say whether a data set exists."""
        assert repo_type == "dataset"
        return repo_id in self.data_sets

    def file_exists(self, repo_id: str, filename: str, *, repo_type: str) -> bool:
        """Say whether a data set has a file."""
        return filename in self.data_sets[repo_id]

    def hf_hub_download(self, repo_id: str, filename: str, *, repo_type: str) -> str:
        """Write a file of a data set to disk."""
        path = self.folder / "downloaded"
        path.write_bytes(self.data_sets[repo_id][filename])
        return str(path)

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool) -> None:
        """Create an empty data set."""
        assert repo_id not in self.data_sets
        self.data_sets[repo_id], self.private[repo_id] = {}, private

    def upload_folder(self, *, repo_id: str, folder_path: Path, repo_type: str, commit_message: str, delete_patterns: list[str]) -> None:
        """Replace the files of a data set that match the patterns by those of a folder."""
        assert delete_patterns == ["data/*"]
        kept = {name: content for name, content in self.data_sets[repo_id].items() if not name.startswith("data/")}
        self.data_sets[repo_id] = kept | contents(folder_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHub:
    """A hub in memory in place of the real one."""
    fake = FakeHub()
    fake.folder = tmp_path
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
    return fake


def test_hub_gets_the_same_files(run: RunDir, tmp_path: Path, hub: FakeHub) -> None:
    """An upload is private unless asked otherwise and holds what a local export holds; `hub` alone names it after run and format."""
    export(run, tmp_path / "local", format="tree")
    line = export(run, "hub:owner/trees", format="tree")
    assert line.startswith("https://huggingface.co/datasets/owner/trees: 12 rows of tree")
    local = {str(path.relative_to(tmp_path / "local")): path.read_bytes() for path in (tmp_path / "local").rglob("*.*")}
    assert hub.data_sets["owner/trees"] == local
    assert hub.private == {"owner/trees": True}
    export(run, "hub", format="sft", public=True)
    assert hub.private["me/run-sft"] is False


def test_hub_keeps_what_is_not_ours(run: RunDir, hub: FakeHub) -> None:
    """A data set that exists is refused before any work; with overwrite an earlier export is replaced, stale files included."""
    export(run, "hub:owner/trees", format="tree")
    before = dict(hub.data_sets["owner/trees"])
    with pytest.raises(CheckpointError, match="hub:owner/trees: must not exist: the hub holds an earlier export of that name"):
        export(run, "hub:owner/trees", format="tree", rounds="2")
    assert hub.data_sets["owner/trees"] == before
    export(run, "hub:owner/trees", format="tree", rounds="2", overwrite=True)
    assert len(hub.data_sets["owner/trees"]) == len(before) - 2
    hub.data_sets["owner/other"] = {"README.md": b"mine"}
    hub.data_sets["owner/bare"] = {}
    for name in ("other", "bare"):
        with pytest.raises(CheckpointError, match="a data set that is not an export of stepladder"):
            export(run, f"hub:owner/{name}", format="tree", overwrite=True)


def test_hub_failures_are_one_sentence(run: RunDir, hub: FakeHub) -> None:
    """No token, no network, a bad name: what to do is said."""
    import httpx2
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

    cases: tuple[tuple[Exception, type[Exception], str], ...] = (
        (LocalTokenNotFoundError("x"), BackendError, "no token was found -- run hf auth login"),
        (httpx2.ConnectError("no route"), BackendError, "the hub must answer: no route -- check name, token and network"),
        (HFValidationError("bad name"), ConfigError, "must be hub:OWNER/NAME: bad name -- correct the name"),
    )
    for hub.failure, kind, message in cases:
        with pytest.raises(kind, match=message):
            export(run, "hub", format="tree")
    assert hub.data_sets == {}


def test_import_from_the_hub(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hub:OWNER/NAME` is fetched and imported under its name; a hub that does not answer is one sentence."""
    import httpx2

    export(run, tmp_path / "local", format="preference")

    def fetch(repository: str, *, repo_type: str) -> str:
        if repository == "owner/absent":
            raise httpx2.ConnectError("no route")
        assert (repository, repo_type) == ("owner/pairs", "dataset")
        return str(tmp_path / "local")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    import_rows("hub:owner/pairs", tmp_path / "other")
    assert len(RunDir(root=tmp_path / "other").imported("pairs")) == 4
    assert (tmp_path / "other" / "imported" / "pairs" / "pairs").is_dir()
    with pytest.raises(BackendError, match="hub:owner/absent: the hub must answer: no route"):
        import_rows("hub:owner/absent", tmp_path / "other")


def test_values_are_what_the_prm_learns_from(run: RunDir, tmp_path: Path) -> None:
    """Where a PRM learns from rollouts, its value rows are exported, not those of the searched trees."""
    config = Config.model_validate({**run.config().model_dump(mode="json"), "prm": {"rollouts": 2}})
    other = open_run(tmp_path / "other", config)
    for number in (0, 1):
        other.finish_round(row(number, policy=0.5, search=0.5, majority=0.5))
    rows = value_rows(trees_of(1)[:1]).rows
    write_trees(other.shard(1, "trees", 0), trees_of(1))
    write_values(other.shard(1, "values", 0), value_rows(trees_of(1)).rows)
    write_trees(other.shard(1, "rollouts", 0), trees_of(1)[:1])
    write_values(other.shard(1, "rollout-values", 0), rows)
    assert f" {len(rows)} rows of value-paths" in export(other, tmp_path / "out", format="value-paths")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| searched trees | 1 |" in card
    assert "run's labelling" not in card


@pytest.mark.parametrize(
    ("format", "kind", "read"),
    [
        ("preference-chat", "pairs", read_pairs),
        ("sft-ids", "traces", read_traces),
        ("value-paths", "values", read_values),
        ("tree", "trees", read_trees),
    ],
)
def test_imported_rows_are_those_of_the_run(run: RunDir, tmp_path: Path, format: str, kind: str, read: Any) -> None:
    """Out of one run and into another, every record is the same."""
    export(run, tmp_path / "out", format=format)
    other = RunDir(root=tmp_path / "other")
    line = import_rows(str(tmp_path / "out"), other.root)
    expected = [row for path in run.shards(kind) for row in read(path)]
    assert [row for path in other.imported(kind) for row in read(path)] == expected
    assert line.startswith(f"{tmp_path / 'other' / 'imported' / 'out'}: {len(expected)} rows of {kind}")
    assert open_run(other.root, run.config()).rows() == []


def test_import_into_the_wrong_place_is_refused(run: RunDir, tmp_path: Path) -> None:
    """A run that has begun, a name that is taken, a directory with other files, and what is no export: nothing is written."""
    export(run, tmp_path / "out", format="sft")
    with pytest.raises(CheckpointError, match="rows must be imported before round 1 begins"):
        import_rows(str(tmp_path / "out"), run.root)
    assert not (run.root / "imported").exists()
    import_rows(str(tmp_path / "out"), tmp_path / "new")
    with pytest.raises(CheckpointError, match="a data set of this name was imported before -- rename the new one"):
        import_rows(str(tmp_path / "out"), tmp_path / "new")
    with pytest.raises(CheckpointError, match="must be empty or a stepladder run"):
        import_rows(str(tmp_path / "out"), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="must be a directory or not exist: it is a file"):
        import_rows(str(tmp_path / "out"), tmp_path / "file")
    with pytest.raises(DataFormatError, match="must be a data set that stepladder export wrote"):
        import_rows(str(tmp_path / "absent"), tmp_path / "newer")
    assert not (tmp_path / "newer").exists()


@pytest.mark.parametrize("format", ["preference", "kto", "tree"])
def test_rows_of_another_renderer_are_refused_at_once(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    """Evolve looks at the imported rows, of whatever kind, before it searches anything."""
    from stepladder.commands import evolve as run_module

    class Renderer:
        hash = "s" * 16

    export(run, tmp_path / "out", format=format)
    import_rows(str(tmp_path / "out"), tmp_path / "new")
    monkeypatch.setattr("stepladder.loops.assembly.checks.check_model_source", lambda source: None)
    monkeypatch.setattr(run_module, "check_model", lambda policy: None)
    monkeypatch.setattr(run_module, "with_chat", lambda config, model, earlier: (config, None))
    monkeypatch.setattr(run_module, "build_renderer", lambda config, model: Renderer())
    monkeypatch.setattr(run_module, "preflight", lambda config, sets, root: [])
    with pytest.raises(DataFormatError, match=f"every row must come from renderer '{'s' * 16}': got '{'r' * 16}'"):
        run_module.evolve(run.config(), tmp_path / "new", display=display(), on_round=lambda row: None)
    Renderer.hash = "r" * 16
    run_module._check_imported(RunDir(root=tmp_path / "new"), run.config())


class LabellingPool(InlinePool):
    """Runs labelling here and keeps every other task, as if it had been done."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Task] = []

    def run(self, tasks: list[Task], *, on_progress: Any, **_: Any) -> list[Any]:
        """Run or keep tasks."""
        done = []
        for task in tasks:
            if task.function.__name__ == "label_shard":
                done.append(task.function(**task.arguments))
            else:
                self.kept.append(task)
                task.arguments["out"].mkdir(parents=True)
                done.append(SUMMARY)
        return done


def test_every_round_learns_from_imported_rows(run: RunDir, tmp_path: Path) -> None:
    """Policy and PRM train on the round's shards and on the imported ones; imported trees are labelled with the run's settings, once."""
    for format in ("preference", "sft", "stepwise", "tree"):
        export(run, tmp_path / format, format=format, rounds="1")
        import_rows(str(tmp_path / format), tmp_path / "other")
    config = Config.model_validate({**run.config().model_dump(mode="json"), "labels": {"pairs": {"min_margin": 0.0}}})
    other, pool = open_run(tmp_path / "other", config), LabellingPool()
    context: Any = RoundContext(config=config, run=other, problems={}, pool=pool, display=display())  # type: ignore[arg-type]
    for name in ("pairs", "traces", "values"):
        other.shard(1, name, 0).parent.mkdir(parents=True)
        other.shard(1, name, 0).write_bytes(run.shard(2, name, 0).read_bytes())
    label_imported(context, 0)
    written = {path: path.stat().st_mtime_ns for path in (other.root / "imported").rglob("*.*")}
    label_imported(context, 0)
    assert {path: path.stat().st_mtime_ns for path in (other.root / "imported").rglob("*.*")} == written
    counts = json.loads((other.imported_folder("tree") / "labels.json").read_text())
    labelled = [read_pairs(path) for path in other.imported("pairs") if "tree" in path.parts]
    assert counts["pairs"]["kept"] == sum(map(len, labelled)) == len(EvidencePairs(min_margin=0.0).select(trees_of(1)).rows)
    train_policy(context, 1, 0)
    train_prm(context, 1, BestModels(policy=0, prm=None), 0)
    sft, preferences, prm = (task.arguments for task in pool.kept)
    folders = {
        kind: [path.relative_to(other.root).parts[1] for path in paths]
        for kind, paths in (("pairs", preferences["rows"]), ("traces", sft["traces"]), ("values", prm["rows"]))
    }
    assert folders == {
        "pairs": ["001", "preference", "preference", "tree", "tree"],
        "traces": ["001", "sft", "sft", "tree", "tree"],
        "values": ["001", "stepwise", "stepwise", "tree", "tree"],
    }


def test_edited_rows_are_refused_when_they_are_imported_or_before_the_search(tmp_path: Path) -> None:
    """A run with settings checks rows against its policy at once; a new one without them before it writes or searches anything."""
    config_file = write_tiny_config(tmp_path / "config")
    config = load_config(config_file, [])
    renderer = build_renderer(config, config.policy.model)
    origin = replace(provenance(1), renderer_hash=renderer.hash)
    question = "which is it"
    texts = {"chosen": "a+b\n", "rejected": "c\n"}
    ids = {f"{name}_ids": [token for step in renderer.encode_steps(text) for token in step] for name, text in texts.items()}
    pair = PreferencePair(
        problem_id="p",
        prompt_ids=list(renderer.prompt_ids(Problem(id="p", question=question))),
        prompt=f"{question}\n",
        chosen_value=1.0,
        rejected_value=0.0,
        depth=1,
        provenance=origin,
        **texts,
        **ids,
    )
    write_pairs(tmp_path / "pairs.parquet", [pair, pair])
    job = ExportJob(format="preference", source=ExportSource(questions={"p": question}))
    export_dataset([tmp_path / "pairs.parquet"], job, tmp_path / "data")
    existing = open_run(tmp_path / "existing", config)
    assert "checked now" not in import_rows(str(tmp_path / "data"), existing.root)
    assert "with --config they are checked now" in import_rows(str(tmp_path / "data"), tmp_path / "new")
    words = ["import", str(tmp_path / "data"), "--run-dir", str(tmp_path / "planned")]
    assert "checked now" not in CliRunner().invoke(app, [*words, "--config", str(config_file)]).stdout
    refused = CliRunner().invoke(app, [*words, "--set", "policy.model=m"])
    assert refused.exit_code == 2 and "without it -- give the configuration" in refused.stderr
    shutil.rmtree(tmp_path / "planned")
    data = tmp_path / "data" / "data" / "train-00000.parquet"
    table = pq.read_table(data)
    for name, column, values, message in (
        ("edited", "chosen", ["a+b\n", "a+d\n"], r"train-00000.parquet:2: the text of 'chosen' must be that of its token ids.*'a\+d\\n'"),
        ("foreign", "chosen_token_ids", [pair.chosen_ids, [999]], r"train-00000.parquet:2: the ids of 'chosen' must be in \[0, .*got 999"),
    ):
        (tmp_path / "data").rename(tmp_path / name)
        changed = table.set_column(table.schema.get_field_index(column), column, pa.array(values))
        pq.write_table(changed, tmp_path / name / "data" / "train-00000.parquet")
        with pytest.raises(DataFormatError, match=message):
            import_rows(str(tmp_path / name), existing.root)
        assert not existing.imported_folder(name).exists()
        with pytest.raises(DataFormatError, match=message):
            import_rows(str(tmp_path / name), tmp_path / "planned", config=config)
        assert not (tmp_path / "planned" / "imported").exists()
        import_rows(str(tmp_path / name), tmp_path / f"new-{name}")
        with pytest.raises(DataFormatError, match=message.replace("train-00000.parquet", "shard-0000.parquet")):
            evolve(config, tmp_path / f"new-{name}", display=display(), on_round=lambda row: None)
        (tmp_path / name).rename(tmp_path / "data")
