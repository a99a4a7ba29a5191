"""How fast ``stepladder export`` writes, and how much memory it takes, on made-up rounds of any size.

python -m benchmarks.export_speed                                          megabytes per second of processor time, for every format
python -m benchmarks.export_speed --format preference --shards 256,4096    peak memory with so many shards of 64 problems

Trees have 41 nodes with steps of 30 tokens, and pairs, traces and values are made of them; a tenth of the problems is set aside. The limit
is what libraries alone take to read the same shards and to write the same rows: pyarrow, and ``json`` for lines. Megabytes are those of the
columns in memory, or of the lines.
"""

import argparse
import importlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stepladder.data.exports.dataset import ExportJob, export_dataset
from stepladder.data.exports.formats import EXPORT_FORMATS
from stepladder.data.exports.rows import ExportSource
from stepladder.data.labels.candidates import judge_trees
from stepladder.data.labels.pairing import step_offer
from stepladder.data.labels.traces import select_traces
from stepladder.data.labels.value_rows import value_rows
from stepladder.data.store import PAIRS, TRACES, TREES, VALUES, ShardKind, write_records
from stepladder.terminal import echo
from stepladder.types import PreferencePair, Provenance, TreeRecord

NODES_BELOW, DEPTH, STEP_TOKENS, PROBLEMS = 4, 10, 30, 64
PROVENANCE = Provenance(round=1, policy_version=1, scorer_version=1, seed=0, config_hash="c" * 16, renderer_hash="r" * 16)
FORMATS = ("preference", "sft", "value-paths", "tree", "tree-json", "stepwise", "kto", "trajectories", "value", "prompts")


def made_tree(rng: random.Random, number: int) -> TreeRecord:
    """Return a tree of 41 nodes: on every level one of four steps goes on, and the others end."""
    parents, depths = [-1], [0]
    for depth in range(1, DEPTH + 1):
        parents += [len(parents) - NODES_BELOW if depth > 1 else 0] * NODES_BELOW
        depths += [depth] * NODES_BELOW
    inner, count = set(parents), len(parents)
    ends = [node not in inner for node in range(count)]
    ids = [[], *([rng.randrange(150_000) for _ in range(STEP_TOKENS)] for _ in range(count - 1))]
    outcomes = [float(rng.random() < 0.5) if end else None for end in ends]
    return TreeRecord(
        problem_id=f"{number:08d}",
        question=_words(rng, 40),
        prompt_ids=[rng.randrange(150_000) for _ in range(80)],
        method="mcts",
        parents=parents,
        depths=depths,
        token_ids=ids,
        logps=[[-rng.random() for _ in step] for step in ids],
        texts=["", *(_words(rng, STEP_TOKENS // 2) + "\n" for _ in range(count - 1))],
        priors=[rng.random() for _ in range(count)],
        scores=[None, *(rng.random() for _ in range(count - 1))],
        visits=[rng.randrange(1, 64) for _ in range(count)],
        values=[rng.random() for _ in range(count)],
        stop_reasons=["end" if end else "step" for end in ends],
        answers=[str(rng.randrange(100)) if end else None for end in ends],
        outcomes=outcomes,
        generated_tokens=STEP_TOKENS * (count - 1),
        policy_calls=DEPTH,
        scored_tokens=STEP_TOKENS * (count - 1),
        num_simulations=count - 1,
        provenance=PROVENANCE,
    )


def _words(rng: random.Random, count: int) -> str:
    return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(count))


def _pairs(trees: Sequence[TreeRecord]) -> list[PreferencePair]:
    """Return four pairs of siblings for each tree."""
    offers = [(tree, node) for tree in judge_trees(trees) for node in range(1, len(tree.record.parents), 2 * NODES_BELOW)]
    return [step_offer(tree, 0.5, node, node + 1).row for tree, node in offers]


ROWS: dict[str, Callable[[Sequence[TreeRecord]], list[Any]]] = {
    PAIRS.name: _pairs,
    TRACES.name: lambda trees: select_traces(trees, per_problem=4).rows,
    VALUES.name: lambda trees: value_rows(trees).rows,
    TREES.name: list,
}


def made_shards(folder: Path, kind: ShardKind[Any], count: int) -> tuple[list[Path], list[Path]]:
    """Write shards of trees, and of rows of a kind, whose contents repeat under new ids; return the paths of the rows and of the trees."""
    rng = random.Random(0)
    trees = [made_tree(rng, number) for number in range(PROBLEMS)]
    for each in (TREES,) if kind is TREES else (TREES, kind):
        records = ROWS[each.name](trees)
        base = folder / f"{each.name}.parquet"
        write_records(base, records, each)
        table = pq.read_table(base)
        base.unlink()
        (folder / each.name).mkdir()
        for number in range(count):
            _write_renamed(folder / each.name / f"shard-{number:05d}.parquet", table, number)
    return sorted((folder / kind.name).iterdir()), sorted((folder / TREES.name).iterdir())


def _write_renamed(path: Path, table: pa.Table, number: int) -> None:
    """Write rows with other problem ids, and other questions where they have any."""
    for column in {"problem_id", "question", "prompt"} & set(table.schema.names):
        renamed = pa.array([f"{number:06d} {value}" for value in table[column].to_pylist()])
        table = table.set_column(table.schema.get_field_index(column), table.schema.field(column), renamed)
    with path.open("wb") as file:
        pq.write_table(table, file, **WRITING)


WRITING: dict[str, Any] = {"compression": "zstd", "version": "2.6", "data_page_version": "1.0", "write_page_checksum": True}
"""How a shard is written."""


def export(folder: Path, name: str) -> None:
    """Export made-up shards in this process, and print what it took as JSON."""
    paths, trees = (sorted((folder / kind).iterdir()) for kind in (EXPORT_FORMATS[name].kind.name, TREES.name))
    names = (f"{number:06d} {problem:08d}" for number in range(len(paths)) for problem in range(PROBLEMS))
    answers = dict.fromkeys(names, "42") if EXPORT_FORMATS[name].needs_answers else {}
    job = ExportJob(format=name, source=ExportSource(answers=answers), trees=trees, splits={"test": 0.1})
    # The data card imports it, which takes as long for any number of rows.
    importlib.import_module("datasets")
    begin = time.process_time()
    summary = export_dataset(paths, job, folder / "out")
    seconds = time.process_time() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size, limit_s = _limit(sorted((folder / "out" / "data").iterdir()), folder / "again")
    begin = time.process_time()
    for path in paths:
        pq.ParquetFile(path, page_checksum_verification=True).read()
    limit_s += time.process_time() - begin
    echo(json.dumps({"rows": summary.num_rows, "size": size, "seconds": seconds, "limit_s": limit_s, "peak": peak << 10}))


def _limit(files: Sequence[Path], again: Path) -> tuple[int, float]:
    """Return the bytes of exported rows, and the processor seconds in which a library alone writes them."""
    size, seconds = 0, 0.0
    for path in files:
        if path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            rows, size = [json.loads(line) for line in lines], size + path.stat().st_size
            begin = time.process_time()
            again.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        else:
            table = pq.read_table(path)
            size += table.nbytes
            begin = time.process_time()
            pq.write_table(table, again, **WRITING)
        seconds += time.process_time() - begin
    return size, seconds


def measured(name: str, num_shards: int) -> dict[str, Any]:
    """Export made-up shards in a process of its own, and return what it took."""
    with tempfile.TemporaryDirectory(prefix="export-speed-") as folder:
        made_shards(Path(folder), EXPORT_FORMATS[name].kind, num_shards)
        command = [sys.executable, "-m", "benchmarks.export_speed", "--export", folder, "--format", name]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Measure what the command line asks for, and say how busy the machine is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", action="append", dest="formats", choices=FORMATS)
    parser.add_argument("--shards", default="16", help="shards of 64 problems; several numbers with commas between them")
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.export is not None:
        export(args.export, args.formats[0])
        return
    echo(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    echo(f"{'format':<14} {'problems':>9} {'rows':>9} {'MB':>8} {'MB/s':>7} {'limit':>7} {'peak memory':>12}")
    for name in args.formats or FORMATS:
        for num_shards in map(int, args.shards.split(",")):
            took = measured(name, num_shards)
            size = took["size"] / 1e6
            speeds = f"{size / took['seconds']:>7.1f} {size / took['limit_s']:>7.1f}"
            echo(f"{name:<14} {num_shards * PROBLEMS:>9,} {took['rows']:>9,} {size:>8.1f} {speeds} {took['peak'] / 1e6:>9,.0f} MB")


if __name__ == "__main__":
    main()
