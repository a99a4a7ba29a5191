"""Training a generative judge: it writes verdicts on graded steps, and learns the ones that agree with the grades.

A judge that says its word at once writes nothing that could be chosen, so it learns the right word for every step.

Source: Zhao et al. 2025, "GenPRM" (arXiv 2504.00891), and Khalifa et al. 2025, "Process reward models that think" (arXiv 2504.16828): a
    model verifies steps with known labels, and verifications whose verdicts agree with the labels train the judge by their likelihood.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from stepladder.data.labels.selection import Selection
from stepladder.errors import ConfigError, DataFormatError
from stepladder.lm.loaded_models import LoadedModels
from stepladder.lm.loading import load_tokenizer
from stepladder.lm.settings import EngineSettings, TrainSettings
from stepladder.lm.trainer import ProgressCallback
from stepladder.lm.training import TrainReport
from stepladder.loops.assembly.prms import MemberAccess, judge_renderer, verdict_prompts
from stepladder.loops.config.training import VerdictLoss
from stepladder.policy.fine_tuning import train_sft
from stepladder.prm.judge import Verdict
from stepladder.prm.openers import load_judge
from stepladder.prm.reader import Solution
from stepladder.prm.sources import PRMSource
from stepladder.prm.specs import PRMSpec
from stepladder.prm.word_judge import VerdictPrompts
from stepladder.types import Provenance, Trace, ValueRow, derive_seed


@dataclass(frozen=True, kw_only=True, slots=True)
class GradedStep:
    """A step whose grade is known."""

    problem_id: str
    """Key of its problem."""
    solution: Solution
    """The solution up to the step, which is its last one."""
    right: bool
    """Whether it is right."""


def graded_steps(problem_id: str, solution: Solution, labels: Sequence[float | None]) -> list[GradedStep]:
    """Return the steps of a solution whose label says whether they are right: above one half, or below.

    Args:
        problem_id: Key of its problem.
        solution: The solution.
        labels: Labels of its steps, in [0, 1]; None for an unknown one.
    """
    return [
        GradedStep(problem_id=problem_id, solution=replace(solution, steps=solution.steps[: number + 1]), right=label > 0.5)
        for number, label in enumerate(labels)
        if label is not None and label != 0.5
    ]


def graded_row(row: ValueRow, *, step_end: str) -> list[GradedStep]:
    """Return the graded steps of a searched path.

    Args:
        row: The path. An observation begins the step after it.
        step_end: Text that ends a step; judges read steps without it.
    """
    observed = ["", *row.given_texts[:-1]] if row.given_texts else [""] * len(row.steps)
    steps = tuple(before + step.removesuffix(step_end) for before, step in zip(observed, row.steps, strict=True))
    return graded_steps(row.problem_id, Solution(question=row.prompt, steps=steps), row.targets)


class JudgeStart(NamedTuple):
    """The model that a judge is trained from."""

    model: str
    """Directory or hub id."""
    spec: PRMSpec
    """How it judges."""
    trust_remote_code: bool = False
    """Run code that ships with a hub model."""


def train_judge(
    start: JudgeStart,
    steps: Sequence[GradedStep],
    out_dir: str | Path,
    settings: TrainSettings,
    *,
    rule: VerdictLoss,
    models: LoadedModels,
    more: Sequence[Trace] = (),
    on_progress: ProgressCallback | None = None,
) -> TrainReport:
    """Have verdicts written on graded steps, train a judge on those that agree, and save it with its spec.

    Args:
        start: The model to train, which also writes the verdicts unless the rule names a teacher.
        steps: Graded steps.
        out_dir: Directory of the trained judge; replaced if it exists.
        settings: Training settings; ``batch_size`` counts verdicts.
        rule: How many verdicts are written and kept.
        models: The process's models; the ones that write are released before the training.
        more: Other rows for the judge to learn, of any renderer with its tokenizer.
        on_progress: Called after every update.

    Raises:
        BackendError: If the loss stops being finite.
        CheckpointError: If a model cannot be read or written, or its tokenizer does not tell the words apart.
        ConfigError: If the teacher has another tokenizer than the judge.
        DataFormatError: If no verdict agrees with the grades on one of the two sides.
    """
    tokenizer = load_tokenizer(start.model, trust_remote_code=start.trust_remote_code)
    renderer_hash = judge_renderer(tokenizer, start.spec).hash
    asked = capped_steps(steps, per_side=rule.per_side, seed=settings.seed)
    source = PRMSource(
        model=rule.teacher or start.model, device=settings.device, trust_remote_code=start.trust_remote_code, seed=settings.seed
    )
    if rule.teacher is not None:
        _check_teacher(source, start, renderer_hash)
    if start.spec.says_word_at_once:
        written = _right_words(asked, verdict_prompts(tokenizer, start.spec))
    else:
        judge = load_judge(source, start.spec, MemberAccess(models, EngineSettings(trust_remote_code=start.trust_remote_code)))
        written = judge.verdicts([step.solution for step in asked], num_verdicts=rule.samples)
    chosen = agreeing_verdicts(asked, written)
    models.release()
    provenance = Provenance(round=0, policy_version=0, scorer_version=None, seed=settings.seed, config_hash="", renderer_hash=renderer_hash)
    rows = [_trace(step, verdict, provenance) for step, verdict in chosen.rows]
    rows += [replace(row, provenance=provenance) for row in more]
    report = train_sft(
        start.model,
        rows,
        out_dir,
        settings,
        renderer_hash=renderer_hash,
        trust_remote_code=start.trust_remote_code,
        on_progress=on_progress,
    )
    start.spec.save(out_dir)
    dropped = Counter({**chosen.dropped_by_reason, "over problem cap": len(steps) - len(asked)})
    return replace(report, dropped_by_reason=dict(Counter(report.dropped_by_reason) + dropped))


def agreeing_verdicts(steps: Sequence[GradedStep], written: Sequence[Sequence[Verdict]]) -> Selection[tuple[GradedStep, Verdict]]:
    """Return the first verdict on every step that agrees with its grade, as many on right as on wrong steps.

    Dropped by reason: ``no verdict agrees``, ``more on one side``.

    Args:
        steps: Graded steps.
        written: Verdicts on each.

    Raises:
        DataFormatError: If none agrees on one of the two sides.
    """
    first = [
        next((verdict for verdict in verdicts if verdict.good is step.right), None) for step, verdicts in zip(steps, written, strict=True)
    ]
    agreeing = [(step, verdict) for step, verdict in zip(steps, first, strict=True) if verdict is not None]
    sides = [[each for each in agreeing if each[0].right is side] for side in (True, False)]
    fewest = min(map(len, sides))
    if not fewest:
        raise DataFormatError(
            f"judge: learns verdicts on right and on wrong steps: got {len(sides[0])} and {len(sides[1])} that agree with the grades of "
            f"{len(steps)} steps -- write more verdicts per step, or name a teacher"
        )
    dropped = Counter({"no verdict agrees": len(steps) - len(agreeing), "more on one side": len(agreeing) - 2 * fewest})
    return Selection(rows=[*sides[0][:fewest], *sides[1][:fewest]], considered=len(steps), dropped_by_reason=dict(+dropped))


def capped_steps(steps: Sequence[GradedStep], *, per_side: int, seed: int) -> list[GradedStep]:
    """Return at most ``per_side`` right and as many wrong steps of every problem, in an order that the seed draws; equal steps once."""
    distinct = {(step.problem_id, step.solution.question, step.solution.steps, step.right): step for step in steps}

    def drawn(step: GradedStep) -> int:
        return derive_seed(seed, "verdict", step.problem_id, *step.solution.steps)

    kept, counts = [], Counter[tuple[str, bool]]()
    for step in sorted(distinct.values(), key=drawn):
        counts[step.problem_id, step.right] += 1
        if counts[step.problem_id, step.right] <= per_side:
            kept.append(step)
    return kept


def _check_teacher(source: PRMSource, start: JudgeStart, renderer_hash: str) -> None:
    tokenizer = load_tokenizer(source.model, trust_remote_code=source.trust_remote_code)
    if judge_renderer(tokenizer, start.spec).hash != renderer_hash:
        raise ConfigError(
            "teacher: writes the tokens that the judge learns, so it must have the judge's tokenizer and chat template: got "
            f"{source.model} for {start.model} -- choose a teacher of the same family"
        )


def _right_words(steps: Sequence[GradedStep], prompts: VerdictPrompts) -> list[list[Verdict]]:
    """Return for every step the verdict of a judge that says its word at once: the right one."""
    words = {True: prompts.spec.good or "", False: prompts.spec.bad or ""}
    return [
        [Verdict(prompts.prompt(step.solution.question, step.solution.steps), prompts.words[step.right], words[step.right], step.right)]
        for step in steps
    ]


def _trace(step: GradedStep, verdict: Verdict, provenance: Provenance) -> Trace:
    return Trace(
        problem_id=step.problem_id,
        prompt_ids=list(verdict.prompt_ids),
        completion_ids=list(verdict.completion_ids),
        prompt=step.solution.question,
        completion=verdict.text,
        mean_value=float(step.right),
        provenance=provenance,
    )
