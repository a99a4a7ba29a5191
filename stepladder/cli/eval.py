"""``stepladder eval``: search methods at equal budgets on the command line."""

from pathlib import Path
from typing import Annotated

import typer

from stepladder.cli.errors import DebugOption, SetOption, errors_explained
from stepladder.cli.signals import stopped
from stepladder.locks import locked
from stepladder.terminal import echo

_METHOD_HELP = (
    "Method to compare, with changed settings after commas: `beam,wave=8`. May be repeated; `all` is every method of `stepladder solve "
    "--method list`. Every other one is set against the first. Default: mcts, beam, best-of-n, weighted-vote, majority."
)


def evaluate(
    out: Annotated[Path, typer.Option(readable=False, help="Directory for results; finished cells in it are kept, and more can be added.")],
    problems: Annotated[
        Path | None,
        typer.Argument(metavar="[PROBLEMS]", readable=False, help="JSONL or Parquet file with questions and answers, instead of a run's."),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Use models and problems of this run (directory or URL). Default: the newest run in `runs`."),
    ] = None,
    number: Annotated[int | None, typer.Option("--round", min=0, help="Models of this round of the run instead of its best ones.")] = None,
    split: Annotated[str, typer.Option(help="Problems of the run: `test`, `held_out` or `train`.")] = "test",
    policy: Annotated[str | None, typer.Option(help="Directory or hub id of a policy, instead of a run's.")] = None,
    prm: Annotated[
        list[str], typer.Option(help="Directory of a PRM; several make an ensemble, 'none' searches without one. The run's if not given.")
    ] = [],  # noqa: B006
    methods: Annotated[list[str], typer.Option("--method", "--methods", metavar="NAME[,KEY=VALUE...]", help=_METHOD_HELP)] = [],  # noqa: B006
    tokens: Annotated[str, typer.Option(metavar="N,N,...", help="Budgets: generated tokens per problem.")] = "128,256,512,1024",
    seeds: Annotated[int, typer.Option(min=1, help="Searches of each problem at each budget.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first problems only.")] = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    debug: DebugOption = False,
) -> None:
    """Compare search methods at equal budgets of generated tokens.

    Every method searches the same problems with the same models; answers are graded afterwards. What a search learns beyond its budget
    does not count. `greedy` is always run, as a point of reference. The directory then holds `comparison.html`,
    `results.json`, `results.csv`, `results.md` and two charts. Stopped with Ctrl-C, the same command continues.

    - `stepladder eval --run runs/embedded --out runs/eval`
    - `stepladder eval --run runs/embedded --round 1 --method all --tokens 64,256 --seeds 3 --limit 100 --out runs/methods`
    - `stepladder eval --run runs/embedded --method beam,wave=2 --method beam,wave=8,num_children=2 --out runs/beams`
    - `stepladder eval problems.jsonl --policy ./model --prm ./prm --set problems.rule=number --out results`
    """
    with errors_explained(debug):
        from stepladder.commands.compare import run_comparison
        from stepladder.commands.comparison import resolve_comparison
        from stepladder.loops.runs.progress import ProgressDisplay
        from stepladder.report.comparison import render_table, write_comparison

        comparison = resolve_comparison(
            problems=problems,
            split=split,
            limit=limit,
            run=run,
            number=number,
            policy=policy,
            prm=prm,
            methods=methods,
            tokens=tokens,
            num_seeds=seeds,
            overrides=overrides,
            out=out,
        )
        display = ProgressDisplay()
        try:
            with locked(out / ".lock", place=out):
                results = run_comparison(comparison, display=display)
        except KeyboardInterrupt as stop:
            echo(f"\nstopped; everything finished is in {out} -- the same command continues", err=True)
            raise stopped(stop) from None
        echo(render_table(results))
        echo(f"page: {write_comparison(results, out)[-1]}")
