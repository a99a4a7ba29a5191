"""Write docs/training.md from the docstrings of losses and rules, or with ``--check`` say whether it is current.

The file is never edited by hand, so it cannot disagree with the program.
"""

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from stepladder.data.labels.pairs import PAIR_RULES
from stepladder.data.labels.values import traces
from stepladder.policy import preference_losses as losses
from stepladder.policy.objectives import PairLoss, Smoothing, UnpairedLoss

TARGET = Path(__file__).with_name("training.md")

LOSSES: dict[str, tuple[Callable[..., Any], str]] = {
    "dpo": (losses.dpo_losses, "`beta`, `label_smoothing`, `reference`"),
    "ipo": (losses.ipo_losses, "`beta`, `reference`"),
    "inpo": (losses.inpo_losses, "`beta`, `reference_share`, `reference`"),
    "sppo": (losses.sppo_losses, "`beta`, `reference`"),
    "refuel": (losses.refuel_losses, "`beta`, `reference`"),
    "apo-zero": (losses.apo_zero_losses, "`beta`, `reference`"),
    "simpo": (losses.simpo_losses, "`beta`, `target_margin`"),
    "orpo": (losses.orpo_losses, "`beta`, `sft_weight=1`"),
    "cpl": (losses.cpl_losses, "`beta`, `cpl_bias`"),
    "kto": (losses.kto_losses, "`beta`, `good_weight`, `bad_weight`, `reference`"),
    "oreal": (losses.oreal_losses, "`beta`, `good_weight`, `bad_weight`, `reference`"),
}
SMOOTHINGS = {
    "visits": losses.visit_smoothing,
    "agreement": losses.agreement_smoothing,
    "uncertainty": losses.uncertainty_smoothing,
}
TRACES = {
    "`traces_per_problem`, `min_trace_value`": traces.select_traces,
    "`revisions`, `revision_of`, `revision_text`": traces.revision_traces,
    '`graded = "steps"`, `min_margin`, `pairs_per_problem`': traces.graded_steps,
    '`graded = "solutions"`, `traces_per_problem`': traces.graded_solutions,
    '`data = "on-policy"`, `window`': traces.within_window,
}

INTRODUCTION = """\
# What the policy learns from

Generated from the docstrings of `stepladder.policy.preference_losses`, `stepladder.data.labels.pairs` and `stepladder.data.labels.traces` by `make docs`.

A round turns its searched trees into traces, preference pairs and graded continuations, fine-tunes the policy on the traces (`[sft]`)
and then trains it on preferences (`[preference]`). Rules that look at outcomes read finished, graded trees; no search ever does. What
each rule kept and dropped, by reason, stands in `labels.json`, in `metrics.jsonl` and in the report.

All losses run on trees of tokens, in which every shared token is forwarded once. Log-ratios count from the first token in which the two
sides of a pair differ. The reference's log-probabilities are computed once, before the first update, on the same trees;
`preference.reference` says whose they are: those of the model before this stage (`start`), of the warmed-up base model (`base`), or those
that the sampling policy had when it searched, which are stored with the rows (`sampler`).

```
stepladder evolve --set preference.loss=kto --set labels.graded=solutions
stepladder evolve --set labels.pairs=mcts-dpo --set preference.label_smoothing=visits
stepladder evolve --set preference.loss=inpo --set preference.reference=base --set labels.data=on-policy
```
"""

BESIDE_LOSSES = """\
`preference.sft_weight` adds the mean negative log-likelihood of the chosen side to a loss of pairs: with `dpo` this is RPO ({rpo}).
With `kto` the reference point z is estimated on each forward pass, on the completions of other problems behind each prompt;
`micro_batch_size` therefore matters. `kto` and `oreal` learn from `labels.graded`, all others from `labels.pairs`.
"""

BESIDE_WEIGHTS = """\
`agreement` scores the round's trees once more with the best PRM before the one that guided the search; until there are two, pairs count
as they stand.
"""


def render() -> str:
    """Return the page.

    Raises:
        AssertionError: If a loss or a smoothing is not listed above.
    """
    assert [*LOSSES] == [*get_args(PairLoss), *get_args(UnpairedLoss)], "a loss is missing here"
    assert [*SMOOTHINGS] == [*get_args(Smoothing)], "a smoothing is missing here"
    head = "| `preference.loss` | what it does | per pair or continuation | settings | source |"
    loss_rows = [_row(f"`{name}`", _summary(loss), _formula(loss), settings, _source(loss)) for name, (loss, settings) in LOSSES.items()]
    smoothing_rows = [_row(f"`{name}`", _summary(rule), _formula(rule), _source(rule)) for name, rule in SMOOTHINGS.items()]
    pair_rows = []
    for name, rule in PAIR_RULES.items():
        settings = ", ".join(f"`{setting}`" for setting in rule.settings if setting not in ("anchors", "earlier_scores"))
        pair_rows.append(_row(f"`{name}`", rule.about, settings, _dropped(rule.select), rule.source))
    trace_rows = [_row(settings, _summary(rule), _dropped(rule), _source(rule)) for settings, rule in TRACES.items()]
    return "\n".join(
        [
            INTRODUCTION,
            "## Losses",
            "",
            head,
            "|---|---|---|---|---|",
            *loss_rows,
            "",
            BESIDE_LOSSES.format(rpo=_source(losses.preference_loss)),
            "## Weights of pairs",
            "",
            "`preference.label_smoothing` is a number, or one of these, with `dpo`:",
            "",
            "| `label_smoothing` | what it is | per pair | source |",
            "|---|---|---|---|",
            *smoothing_rows,
            "",
            BESIDE_WEIGHTS,
            "## Pairs",
            "",
            "| `labels.pairs` | what it chooses | settings in `[labels]` | dropped because | source |",
            "|---|---|---|---|---|",
            *pair_rows,
            "",
            "## Traces, graded continuations, and which trees count",
            "",
            "| settings in `[labels]` | what it chooses | dropped because | source |",
            "|---|---|---|---|",
            *trace_rows,
            "",
        ]
    )


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")


def _summary(rule: Callable[..., Any]) -> str:
    return _plain(inspect.getdoc(rule).split("\n\n")[0].removeprefix("Return ")).rstrip(".")  # pyright: ignore[reportOptionalMemberAccess]


def _formula(rule: Callable[..., Any]) -> str:
    """Return the indented lines behind the summary, each as code."""
    block = inspect.getdoc(rule).split("\n\n")[1]  # pyright: ignore[reportOptionalMemberAccess]
    assert block.startswith("    "), f"{rule.__name__}: the docstring must show the formula behind its summary"
    return "<br>".join(f"`{' '.join(line.split())}`" for line in block.splitlines())


def _source(rule: Callable[..., Any]) -> str:
    found = re.search(r"Source: (.*?)(?:\n\n|\Z)", inspect.getdoc(rule) or "", flags=re.DOTALL)
    return _plain(found[1]).rstrip(".") if found else "ours"


def _dropped(rule: Callable[..., Any]) -> str:
    if rule is PAIR_RULES["agent-q"].select:
        rule = PAIR_RULES["value-margin"].select
    found = re.search(r"Dropped by reason: (.*?)\.(?:\n\n|\Z)", inspect.getdoc(rule) or "", flags=re.DOTALL)
    assert found, f"{rule.__name__}: the docstring must list why candidates are dropped"
    return _plain(found[1]).replace("`", "")


if __name__ == "__main__":
    if "--check" in sys.argv:
        current = TARGET.exists() and TARGET.read_text(encoding="utf-8") == render()
        sys.exit(0 if current else "docs/training.md is out of date -- run make docs")
    TARGET.write_text(render(), encoding="utf-8")
