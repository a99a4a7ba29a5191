"""Does search train a real language model better than sampling? Word problems in English, from one warm-up, as Markdown tables.

    python -m benchmarks.word_problems --model DIR --jobs 2                         on a GPU, with vLLM
    python -m benchmarks.word_problems --model DIR --cut-vocabulary --seeds 0,1 --jobs 2 ...   on two cores

DIR holds a small base model, such as Gemma 3 270M. A problem tells how many things somebody has and what happens to them; a solution has a
line for each event and the answer::

    Mia has 23 stamps. She gets 14 more. Then she doubles what she has. How many stamps does Mia have now?
    23 + 14 = 37
    37 * 2 = 74
    #### 74

The warm-up shows short solutions; training and test problems have more events. Nothing but the last line is graded.

    samples    samples one at a time for problems that are not solved yet, without a PRM
    search     the embedded puzzle's search: restarts from the steps that a PRM scores best, trained on the first samples of the round

Both have the same generated tokens and the same updates of the policy a round; the PRM's updates come on top. Every arm and seed is a run
directory below ``--root`` with a log beside it; a stopped call continues.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import many_runs
from benchmarks.evidence_tables import differences_table, finished, means_table, processor, rounds_table
from benchmarks.many_runs import Work, end, numbers, run_from, run_rounds
from benchmarks.small_vocabulary import cut_vocabulary
from stepladder.files import atomic_directory, atomic_write_text
from stepladder.loops.config.load import load_config
from stepladder.loops.runs.directory import load_run
from stepladder.loops.runs.workers import Task
from stepladder.terminal import echo
from stepladder.types import derive_seed

NAMES = ("Mia", "Ben", "Lea", "Tom", "Ida", "Max", "Zoe", "Jan")
THINGS = ("stamps", "apples", "marbles", "cards", "shells", "coins", "books", "pens")
WARM_UP_EVENTS = (2, 3)
EVENTS = (4, 5, 6, 7, 8)
"""Events of training and test problems; their number is the level of a problem."""


class Numbers(NamedTuple):
    """How large the numbers of a problem are."""

    start: tuple[int, int]
    """What somebody has at first, from and to."""
    change: tuple[int, int]
    """What comes or goes, from and to."""
    most: int
    """The largest result of an event."""


NUMBERS = {"small": Numbers((2, 20), (2, 9), 99), "large": Numbers((10, 99), (11, 99), 999)}
"""Sizes of numbers by name."""


def word_problem(rng: random.Random, events: int, numbers: Numbers) -> dict[str, Any]:
    """Return a problem with its solution and answer."""
    name, things, value = rng.choice(NAMES), rng.choice(THINGS), rng.randint(*numbers.start)
    told, lines = [f"{name} has {value} {things}."], []
    for _ in range(events):
        sign, other, text = rng.choice(_possible(rng, value, numbers))
        before, value = value, {"+": value + other, "-": value - other, "*": value * other}[sign]
        told.append(text)
        lines.append(f"{before} {sign} {other} = {value}")
    question = f"{' '.join(told)} How many {things} does {name} have now?"
    return {"question": question, "solution": "\n".join([*lines, f"#### {value}"]), "answer": str(value), "events": events}


def _possible(rng: random.Random, value: int, numbers: Numbers) -> list[tuple[str, int, str]]:
    """Return events that keep the value between 1 and the most: sign, number and sentence."""
    more, less = rng.randint(*numbers.change), rng.randint(*numbers.change)
    events = []
    if value + more <= numbers.most:
        events += [("+", more, f"Then {more} more come."), ("+", more, f"A friend brings {more}.")]
    if less < value:
        events += [("-", less, f"Then {less} get lost."), ("-", less, f"A friend takes {less} of them.")]
    if 2 * value <= numbers.most:
        events.append(("*", 2, "Then the number doubles."))
    if 3 * value <= numbers.most:
        events.append(("*", 3, "Then there are three times as many."))
    return events


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How large the comparison is."""

    rounds: int
    """Rounds after the warm-up."""
    tokens: int
    """Generated tokens of a round, per training problem."""
    updates: int
    """Updates of the policy in a round."""
    problems: int
    """Training problems of each level."""
    tests: int
    """Test problems of each level."""
    solved: int
    """Solved examples of the warm-up."""
    numbers: str = "large"
    """A name of ``NUMBERS``."""

    @property
    def task(self) -> str:
        """Part of the directories of all runs on the same problems."""
        return f"{self.numbers}-{self.problems}-{self.tests}-{self.solved}"

    @property
    def name(self) -> str:
        """Part of the directories of its runs."""
        return f"{self.rounds}x{self.tokens}-{self.updates}-{self.task}"

    def sentence(self) -> str:
        """Say it to readers."""
        return (
            f"{self.rounds} rounds, {self.tokens:,} generated tokens a problem and round, {self.updates} updates of the policy a round, "
            f"{self.problems} training and {self.tests} test problems of each of {len(EVENTS)} levels, {self.solved} solved examples, "
            f"{self.numbers} numbers"
        )


def write_task(folder: Path, size: Size, seed: int) -> None:
    """Write the problems and the solved examples of a seed; no question comes twice."""
    seen: set[str] = set()

    def rows(split: str, levels: Sequence[int], each: int) -> Iterator[dict[str, Any]]:
        rng = random.Random(derive_seed("word problems", seed, split))
        for level in levels:
            made = 0
            while made < each:
                row = word_problem(rng, level, NUMBERS[size.numbers])
                if row["question"] not in seen:
                    seen.add(row["question"])
                    yield {"id": f"{split}-{level}-{made}", **row}
                    made += 1

    if folder.exists():
        return
    with atomic_directory(folder) as temporary:
        parts: dict[str, tuple[Sequence[int], int]] = {
            "test": (EVENTS, size.tests),
            "held_out": (EVENTS, 4),
            "train": (EVENTS, size.problems),
        }
        parts["warmup"] = (WARM_UP_EVENTS, size.solved // len(WARM_UP_EVENTS))
        for split, (levels, each) in parts.items():
            lines = [json.dumps(row) + "\n" for row in rows(split, levels, each)]
            (temporary / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def common(folder: Path, model: Path, size: Size, seed: int) -> dict[str, Any]:
    """Return the settings of all arms."""
    train = {"learning_rate": 3e-5, "batch_size": 32}
    return {
        "run": {"seed": seed, "rounds": size.rounds, "workers": 1, "shard_size": 100_000},
        "problems": {
            **{split: str(folder / f"{split}.jsonl") for split in ("train", "held_out", "test")},
            "rule": "number",
            "level_field": "events",
        },
        "format": {"prompt_template": "{question}\n", "answer_pattern": r"####\s*(.+)", "chat": False},
        "policy": {"model": str(model), "backend": "vllm", "max_batch": 512, "vllm": {"max_context": 512, "memory_share": 0.25}},
        "warmup": {"solutions": str(folder / "warmup.jsonl"), "train": {**train, "epochs": 2.0}},
        "search": {"max_depth": 12, "max_step_tokens": 32, "simulations": 1000},
        "labels": {"traces_per_problem": 2, "trace_by": "random", "replay": 0.5},
        "sft": {**train, "epochs": 1000.0, "max_updates": size.updates},
        "preference": {"enabled": False},
        "evaluate": {"samples": 4, "method": "mcts", "options": {"num_children": 1}, "simulations": 1},
        "gate": {"rule": "drop", "max_drop": 1.0, "min_problems": 1, "min_rows": 1},
    }


def arms(size: Size) -> dict[str, list[str]]:
    """Return the settings in which the arms differ, as ``--set`` takes them."""
    pool = f"pool_tokens={size.tokens}"
    return {
        "samples": [
            "prm.enabled=false",
            "search.method=majority",
            "search.options={temperature=0.8,wave=1}",
            "search.simulations=1",
            f"search.max_tokens={size.tokens // 4}",
            'search.allocation={type="unsolved-first",trees_per_problem=1000,' + pool + "}",
        ],
        "search": [
            "search.method=restart",
            "search.options={draw_steps=3,wave=1,stop_value=0.5,temperature=0.8}",
            "search.start=first-samples",
            f"search.max_tokens={size.tokens // 2}",
            'search.allocation={type="unsolved-first",trees_per_problem=16,' + pool + "}",
            "prm.when=before-search",
            "prm.rollouts=2",
            "prm.rollout_temperature=0.8",
            'prm.target={type="bootstrapped"}',
            "prm.data=accumulate",
            "prm.replay=0.3",
            "prm.train={learning_rate=3e-5,batch_size=32,epochs=1000.0,max_updates=150}",
        ],
    }


def warm_up_root(root: Path, size: Size, seed: int) -> Path:
    """Return the directory of the run of a seed that ends after its warm-up."""
    return root / f"seed-{seed}" / f"warm-up-{size.task}"


def problems_root(root: Path, size: Size, seed: int) -> Path:
    """Return the directory of the problems of a seed."""
    return root / f"seed-{seed}" / f"problems-{size.task}"


def arm_root(root: Path, size: Size, seed: int, arm: str) -> Path:
    """Return the directory of the run of an arm."""
    return root / f"seed-{seed}" / size.name / arm


def warm_up(root: Path, model: Path, size: Size, seed: int, more: Sequence[str]) -> None:
    """Warm up the policy with which both arms of a seed begin; what is finished is kept."""
    write_task(problems_root(root, size, seed), size, seed)
    plain = common(problems_root(root, size, seed), model, size, seed)
    run_rounds(load_config(None, ["prm.enabled=false", *more, "run.rounds=0"], base=plain), warm_up_root(root, size, seed))


def run_arm(root: Path, model: Path, size: Size, seed: int, arm: str, more: Sequence[str]) -> None:
    """Run an arm from the warmed-up policy of its seed; what is finished is kept."""
    start = load_run(warm_up_root(root, size, seed))
    plain = common(problems_root(root, size, seed), model, size, seed)
    run_from(start, load_config(None, [*arms(size)[arm], *more], base=plain), arm_root(root, size, seed, arm))


def main() -> None:
    """Run both arms and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of a base model")
    parser.add_argument("--seeds", type=numbers, default=[0], help="seeds, with commas")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=1000, help="generated tokens a training problem and round")
    parser.add_argument("--updates", type=int, default=60, help="updates of the policy a round")
    parser.add_argument("--problems", type=int, default=64, help="training problems of each level")
    parser.add_argument("--tests", type=int, default=128, help="test problems of each level")
    parser.add_argument("--solved", type=int, default=2000, help="solved examples of the warm-up")
    parser.add_argument("--numbers", choices=NUMBERS, default="large", help="of the problems: up to 99, or up to 999")
    parser.add_argument("--cut-vocabulary", action="store_true", help="keep the model's tokens that these problems need alone")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; they share a GPU")
    parser.add_argument("--root", type=Path, default=Path("runs/word-problems"))
    parser.add_argument("--set", dest="more", action="append", default=[], metavar="KEY=VALUE", help="change a setting in both arms")
    given = parser.parse_args()
    size = Size(
        rounds=given.rounds,
        tokens=given.tokens,
        updates=given.updates,
        problems=given.problems,
        tests=given.tests,
        solved=given.solved,
        numbers=given.numbers,
    )
    root, model = given.root.resolve(), given.model.resolve()
    if given.cut_vocabulary:
        rng, whole, model = random.Random(0), model, root / f"{model.name}-{size.numbers}-numbers"
        rows = [word_problem(rng, events, NUMBERS[size.numbers]) for events in (*WARM_UP_EVENTS, *EVENTS) for _ in range(200)]
        cut_vocabulary(whole, model, [f"{row['question']}\n{row['solution']}\n" for row in rows])
    shared: dict[str, Any] = {"root": root, "model": model, "size": size, "more": given.more}
    starts = {seed: Work(f"seed {seed}, warm-up", Task.of(warm_up, seed=seed, **shared)) for seed in given.seeds}
    runs = [
        (seed, Work(f"seed {seed}, {arm}", Task.of(run_arm, seed=seed, arm=arm, **shared))) for seed in given.seeds for arm in arms(size)
    ]
    failed = many_runs.run_all(starts, runs, jobs=given.jobs)
    cells = finished((arm, seed, arm_root(root, size, seed, arm)) for seed in given.seeds for arm in arms(size))
    if cells:
        text = "\n\n".join([f"{size.sentence()}; {processor()}.", means_table(cells), differences_table(cells), rounds_table(cells)])
        atomic_write_text(root / f"word-problems-{size.name}.md", text + "\n")
        echo(text)
    end(failed)


if __name__ == "__main__":
    main()
