"""How idle the workers of a run were in each stage, and what rounds that overlap saved."""

from collections.abc import Sequence

from stepladder.loops.runs.results import RoundRow
from stepladder.loops.runs.stage_work import RunWork, StageWork
from stepladder.report.figures import duration, percent
from stepladder.report.markup import Markup, lead, table


def idle_time(rows: Sequence[RoundRow], run: RunWork) -> list[Markup]:
    """Return the table of the workers' time by stage, with what overlapping rounds saved; nothing where it was not recorded."""
    if not run.stages:
        return []
    together = StageWork.sum(list(run.stages.values()))
    cells = [
        (name, duration(work.available), duration(work.own), duration(work.ahead), duration(work.idle), percent(work.idle_share))
        for name, work in [*run.stages.items(), ("together", together)]
    ]
    header = ("stage", "time of the workers", "work on the stage", "work on the next round", "idle", "idle, %")
    said = ["Seconds are summed over the workers and over the rounds.", *_overlap_words(rows, run)]
    return [Markup("<h3>Idle workers</h3>"), lead(" ".join(said)), table(header, cells)]


def _overlap_words(rows: Sequence[RoundRow], run: RunWork) -> list[str]:
    """Say what overlapping rounds saved, and with which models they searched."""
    overlapping = [(row.round, row.overlap) for row in rows if row.overlap is not None]
    if not overlapping:
        return ["With run.overlap, idle workers begin the next round while the PRM is trained and the models are measured."]
    saved = sum(sum(spent.values()) for spent in run.early.values())
    old = [number for number, overlap in overlapping if overlap.prm_rounds_old]
    again = [number for number, overlap in overlapping if not overlap.began_early]
    return [
        f"Work on the next round (run.overlap) shortened the run by about {duration(saved)}.",
        *([f"The search used a PRM that was one round old in {_rounds(old)}."] if old else []),
        *([f"What was done ahead was in vain in {_rounds(again)}, because a gate refused the models."] if again else []),
        *([f"That cost {duration(run.thrown_away)} of all workers."] if run.thrown_away else []),
    ]


def _rounds(numbers: Sequence[int]) -> str:
    return f"round{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"
