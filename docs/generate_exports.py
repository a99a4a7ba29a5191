"""Write docs/exports.md from the table of formats and an export of one small tree; with ``--check``, say whether it is current.

The file is never edited by hand, so it cannot disagree with the program.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stepladder.data.exports.dataset import ExportJob, export_dataset
from stepladder.data.exports.formats import EXPORT_FORMATS, ExportFormat
from stepladder.data.exports.rows import ExportSource
from stepladder.data.labels.advantages import AdvantageForm
from stepladder.data.labels.graded import GradedSteps
from stepladder.data.labels.pair_rules import EvidencePairs
from stepladder.data.labels.traces import select_traces
from stepladder.data.labels.value_rows import value_rows
from stepladder.data.store import PROVENANCE_COLUMNS, write_records
from stepladder.types import Provenance, TreeRecord

TARGET = Path(__file__).with_name("exports.md")

# A right and a wrong solution that share their first step.
TREE = TreeRecord(
    problem_id="sum-1",
    question="1+1+1",
    prompt_ids=[11, 12, 13],
    method="mcts",
    parents=[-1, 0, 1, 1],
    depths=[0, 1, 2, 2],
    token_ids=[[], [21, 22], [31, 32], [41, 42]],
    logps=[[], [-0.125, -0.25], [-0.5, -0.0625], [-1.5, -0.0625]],
    texts=["", "1+1=2\n", "2+1=3\n", "2+1=4\n"],
    priors=[1.0, 1.0, 0.75, 0.25],
    scores=[None, 0.5, 0.875, 0.25],
    visits=[4, 4, 3, 1],
    values=[0.5, 0.5, 1.0, 0.0],
    stop_reasons=["step", "step", "end", "end"],
    answers=[None, None, "3", "4"],
    outcomes=[None, None, 1.0, 0.0],
    generated_tokens=6,
    policy_calls=2,
    scored_tokens=6,
    num_simulations=4,
    provenance=Provenance(
        round=2, policy_version=1, scorer_version=1, seed=0, config_hash="5d1c08f7a3b2e964", renderer_hash="32b29f17a8b88587"
    ),
)
RECORDS: dict[str, list[Any]] = {
    "trees": [TREE],
    "pairs": EvidencePairs().select([TREE]).rows,
    "traces": select_traces([TREE]).rows,
    "values": value_rows([TREE]).rows,
    "graded": GradedSteps().select([TREE]).rows,
}
SOURCE = ExportSource(
    questions={"sum-1": "1+1+1"}, answers={"sum-1": "3"}, prompt_template="Add: {question}\n", name="owner/sums", ability="math"
)

INTRODUCTION = """\
# Exports

Generated from the table of formats in `stepladder.data.exports.formats` by `make docs`.

```sh
stepladder export --format list
stepladder export runs/embedded --format preference --to data/pairs --split test=0.1
stepladder export runs/embedded --format tree --round 1 --advantage treepo --license mit --to data/trees
stepladder import data/pairs --run-dir runs/next
```

An export is a directory that `datasets.load_dataset(DIR)` opens. It holds Parquet files (`tree-json`: JSON lines) and a data card,
`README.md`. The card states:

- the meaning of every column, and provenance: rounds, model versions, seed, hashes
- the important settings, and the rows kept and dropped by reason
- how widely the trees were searched, sizes and margins
- the licence of the source problems, if `--license` or the card of a local data set gives it

An export is written completely or not at all. It replaces an earlier export only with `--overwrite`, and never anything else. Equal runs
give equal bytes.

- **Splits** (`--split test=0.1`, repeatable) are by problem. A hash of the problem's id, independent of any seed, chooses the split, so a
  problem is in the same split in every export. Problems with the same question stay together. Shares are approximate.
- **The hub**: `--to hub:OWNER/NAME`. With `--to hub` the name consists of run and format, in the account of the token. New data sets are
  private unless you pass `--public`.
- **Answers**: only `prompts` and `trajectories` contain reference answers. They need the run's training problems.
- **Prompts as text** are the run's template filled with the question. With `format.chat = true` the policy saw this text inside its chat
  template, so choose a chat format, or ids.

## Formats
"""

TRAINING = """\
## Training on token ids

A trainer that reads text tokenises it again, and may add an end-of-sequence token that the policy never sampled (TRL's DPOTrainer adds
one after every step). The token ids are exactly those that the policy sampled. TRL's SFTTrainer takes `sft-ids` without changes.
DPOTrainer and KTOTrainer take token ids if you replace their tokenisation:

```python
from trl import DPOTrainer


class OnTokenIds(DPOTrainer):
    def _prepare_dataset(self, dataset, *args, **kwargs):
        names = {"prompt_token_ids": "prompt_ids", "chosen_token_ids": "chosen_ids", "rejected_token_ids": "rejected_ids"}
        return dataset.select_columns(list(names)).rename_columns(names)
```

For KTOTrainer the names are `prompt_token_ids`, `completion_token_ids` and `label`, with `loss_type="apo_zero_unpaired"`. Its other
losses also need a column of mismatched completions. Apart from the end-of-sequence token, ids and text give the same losses in TRL 1.16
(`tests/integration/test_export_training.py`).

## Advantages

The reward of a solution is its outcome, 1 or 0. Steps have no reward of their own, and nothing is discounted. V is the share of right
solutions among the graded ones at and below a node (`--target` chooses another value for `parent`).
"""

IMPORTING = """\
## Importing

`stepladder import DIR --run-dir RUN` puts the rows of an export into a run that has not begun its first round, under `RUN/imported/`.
Every round of `evolve` then trains on them as well as on its own rows:

- Pairs, solutions and (for losses without pairs) verdicts train the policy. Judged steps train the PRM.
- Trees are labelled with the run's own settings and train both.

Every field of every record is the same as before the export, bit for bit. Training refuses rows of another prompt format or tokenizer.
`stepladder prm train` reads the files of `stepwise` and `math-shepherd` directly, for any tokenizer.

You may leave rows out, but not edit them: training learns the token ids, and the text is for people. A row is refused, with its file and
number, if a text does not match its ids or an id is outside the policy's vocabulary. `stepladder import` checks this if the run exists,
or if `--config FILE` names the settings of the new one. Otherwise `evolve` checks it before any work. To train on edited solutions, use `warmup.solutions`.
"""


def render() -> str:
    """Return the page: the formats, how to train, advantages, importing, and a row of each format."""
    table = ["| format | title | made of | imported as |", "|---|---|---|---|"]
    for name, known in EXPORT_FORMATS.items():
        back = "" if known.restored is None else known.restored.name
        table.append(f"| [`{name}`](#{name}) | {known.title} | {known.kind.name} | {back} |")
    forms = [f"- `--advantage {form}`: {form.definition}." for form in AdvantageForm]
    parts = [INTRODUCTION, *table, "", TRAINING, *forms, "", IMPORTING, "## A row of each format", ""]
    parts.append(f"Every row also has {', '.join(f'`{name}`' for name in PROVENANCE_COLUMNS)}, which the rows below leave out.\n")
    for name, known in EXPORT_FORMATS.items():
        parts += [f"### {name}", "", known.about, "", "```json", _example(name, known), "```", ""]
    return "\n".join(parts)


def _example(name: str, known: ExportFormat) -> str:
    """Export the tree and return the first row, one column per line."""
    with tempfile.TemporaryDirectory() as folder:
        shard, out = Path(folder) / "shard", Path(folder) / "out"
        write_records(shard, RECORDS[known.kind.name], known.kind)
        export_dataset([shard], ExportJob(format=name, source=SOURCE), out)
        path = out / "data" / f"train-00000.{known.suffix}"
        row = json.loads(path.read_text().splitlines()[0]) if known.suffix == "jsonl" else pq.read_table(path).to_pylist()[0]
    lines = [
        f"  {json.dumps(column)}: {json.dumps(value, ensure_ascii=False)}"
        for column, value in row.items()
        if column not in PROVENANCE_COLUMNS
    ]
    return "{\n" + ",\n".join(lines) + "\n}"


if __name__ == "__main__":
    if "--check" in sys.argv:
        current = TARGET.exists() and TARGET.read_text(encoding="utf-8") == render()
        sys.exit(0 if current else "docs/exports.md is out of date -- run make docs")
    TARGET.write_text(render(), encoding="utf-8")
