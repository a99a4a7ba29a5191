"""The command line: config -> lazy import -> exit code. No logic that deserves a unit test of its own lives here.

Exit codes: 0 done, 1 the work failed, 2 wrong usage, settings or data, 130 stopped with Ctrl-C.
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepladder.cli.asked import asked_run, resolved_settings
from stepladder.cli.config import config as explain_settings
from stepladder.cli.doctor import doctor
from stepladder.cli.errors import DebugOption, OverwriteOption, SetOption
from stepladder.cli.errors import errors_explained as _errors_explained
from stepladder.cli.eval import evaluate
from stepladder.cli.prm import app as prm_app
from stepladder.cli.serve import serve
from stepladder.cli.signals import handle_signals, stopped
from stepladder.cli.solve import solve
from stepladder.cli.usage import Commands
from stepladder.cli.watch import watch
from stepladder.errors import ConfigError
from stepladder.outputs import check_output, named_file, rows_with
from stepladder.terminal import echo

if TYPE_CHECKING:
    from stepladder.loops.runs.run_places import RunPlace

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    help="Train a language model to reason by letting it search.",
)

app.add_typer(prm_app, name="prm")

_CONFIG_HELP = (
    "Configuration file, or `recipe:NAME` for a published system (see `stepladder recipes`). Without one, the embedded task runs: no "
    "weights, no network, no GPU."
)
_DRY_RUN_HELP = (
    "Make the checks that come before the work, print the resolved configuration as TOML, and stop; `evolve` reads it back. What the "
    "embedded task or a branch still has to make is not checked."
)
_FROM_HELP = (
    "Branch: CONFIG.toml is then a run directory, whose rounds up to this one are taken over into --run-dir, with changes by --set from "
    "the next round on."
)
_ON_HELP = "Task of a recipe: `embedded` (the default, glyph programs), `puzzle`, or a configuration file."
_RUN_DIR_HELP = (
    "Where the run lives: a directory, or a URL in an object store, such as s3://BUCKET/RUN; an existing run is continued. Default: "
    "runs/NAME-OF-CONFIG."
)

ConfigArgument = Annotated[str | None, typer.Argument(metavar="[CONFIG.toml|recipe:NAME]", help=_CONFIG_HELP)]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the versions of stepladder and its parts, and exit.")] = False,
) -> None:
    """Train a language model to reason by letting it search."""
    if version:
        from stepladder.commands.versions import versions

        echo(versions())
        raise typer.Exit


@app.command()
def evolve(
    config: ConfigArgument = None,
    run_dir: Annotated[str | None, typer.Option(metavar="DIR|URL", help=_RUN_DIR_HELP)] = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    on: Annotated[str | None, typer.Option(metavar="TASK|CONFIG.toml", help=_ON_HELP)] = None,
    task: Annotated[str | None, typer.Option(help="Embedded task, without CONFIG.toml: `puzzle` (the default) or `glyphs`.")] = None,
    seed: Annotated[int | None, typer.Option(help="Run seed; short for --set run.seed=N.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds after the warm-up; short for --set run.rounds=N.")] = None,
    stop_after: Annotated[int | None, typer.Option(min=0, help="Stop after this round; the same command without it goes on.")] = None,
    from_round: Annotated[int | None, typer.Option(min=0, help=_FROM_HELP)] = None,
    dry_run: Annotated[bool, typer.Option(help=_DRY_RUN_HELP)] = False,
    debug: DebugOption = False,
) -> None:
    """Run self-evolution rounds: search, label, train policy and PRM, evaluate, gate.

    Stop it with Ctrl-C at any time; the same command continues and ends with the same data as if it had never been stopped.

    - `stepladder evolve` runs the embedded task, from nothing, in minutes
    - `stepladder evolve --task glyphs` runs another one: short programs with hidden meanings, given the answers
    - `stepladder evolve recipe:rstar-math` runs a published system on that one, and `--on my.toml` on another task
    - `stepladder evolve runs/embedded --from-round 1 --run-dir runs/branch --set search.simulations=32` branches a run
    - `stepladder evolve configs/gsm8k.toml --set policy.model=./my-model --run-dir runs/gsm8k`
    """
    with _errors_explained(debug):
        from stepladder import embedded
        from stepladder.commands.evolve import check_settings, load_inputs, ready
        from stepladder.loops.config.unused import unused_settings
        from stepladder.loops.runs.directory import check_run
        from stepladder.loops.runs.newest import RUNS
        from stepladder.loops.runs.run_places import find_run
        from stepladder.toml_text import as_toml

        if from_round is not None:
            _branch(config, from_round, run_dir, [*overrides, *_shorthands(seed, rounds)], stop_after, dry_run=dry_run)
            return
        asked = asked_run(config, on=on, task=task)
        place = find_run(run_dir or RUNS / asked.name, to_work=True)
        start = place.root / "start"
        resolved = resolved_settings(asked, start, [*overrides, *_shorthands(seed, rounds)])
        # All of this before anything is written. What the embedded task will prepare need not be there yet.
        check_settings(resolved)
        sets = None if asked.config is None else load_inputs(resolved)
        check_run(place.root, resolved)
        # A recipe keeps the sizes of its task, also those of what it does not train.
        for unused in unused_settings(resolved) if asked.recipe is None else ():
            echo(f"note: {unused}", err=True)
        if dry_run:
            for note in [] if sets is None else ready(resolved, sets, place.root)[1]:
                echo(f"note: {note}", err=True)
            echo(as_toml(resolved.model_dump(mode="json")).rstrip())
            return
        with place.held(_tell) as check:
            if asked.config is None:
                embedded.prepare(start, seed=resolved.run.seed, task=embedded.task_named(asked.task))
            tested = asked.config is None and asked.recipe is None
            last = resolved.run.rounds if stop_after is None else min(stop_after, resolved.run.rounds)
            expected_s = embedded.expected_seconds(asked.task, last) if tested else None
            _evolve(resolved, place, stop_after, sets=sets, expected_s=expected_s, check=check)


def _tell(sentence: str) -> None:
    echo(sentence, err=True)


def _shorthands(seed: int | None, rounds: int | None) -> list[str]:
    return [f"run.{name}={value}" for name, value in (("seed", seed), ("rounds", rounds)) if value is not None]


def _branch(source: str | None, number: int, run_dir: str | None, overrides: list[str], stop_after: int | None, *, dry_run: bool) -> None:
    """Continue a round of a run in another directory."""
    from stepladder.commands.branch import make_branch, plan_branch
    from stepladder.commands.evolve import check_settings
    from stepladder.loops.runs.run_places import find_run
    from stepladder.toml_text import as_toml

    if source is None or run_dir is None:
        raise ConfigError("--from-round: needs the directory of a run in the place of CONFIG.toml, and --run-dir for the branch")
    place = find_run(run_dir, to_work=True)
    planned = plan_branch(source, number, place.root, overrides)
    check_settings(planned.config)
    if dry_run:
        echo(as_toml(planned.config.model_dump(mode="json")).rstrip())
        return
    before = place.content()
    make_branch(planned)
    with place.held(_tell, before=before) as check:
        _evolve(planned.config, place, stop_after, check=check)


def _evolve(
    config: Any, place: "RunPlace", stop_after: int | None, *, check: Callable[[], None], sets: Any = None, expected_s: float | None = None
) -> None:
    from stepladder.commands.evolve import run_rounds
    from stepladder.commands.opening import next_commands
    from stepladder.loops.runs.progress import ProgressDisplay
    from stepladder.report.page import write_report
    from stepladder.report.table import RoundTable

    display = ProgressDisplay()
    table = RoundTable(display.console)
    try:
        run = run_rounds(
            config, place.root, sets=sets, display=display, on_round=table.add, stop_after=stop_after, expected_s=expected_s, check=check
        )
    except KeyboardInterrupt as stop:
        echo(f"\nstopped; everything finished is in {place.name} -- the same command continues", err=True)
        raise stopped(stop) from None
    echo(table.render())
    echo(f"report: {place.page_place(write_report(run))}")
    echo("\n".join(["", "next:", *(f"  {command}" for command in next_commands(run))]))


@app.command(name="recipes")
def recipes_(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Recipe to print. Default: list all.")] = None,
    debug: DebugOption = False,
) -> None:
    """List the published systems that `evolve recipe:NAME` runs, with what each cost, or print the file of one.

    - `stepladder recipes`
    - `stepladder recipes rstar-math > my.toml`
    """
    with _errors_explained(debug):
        from stepladder.commands.recipes import list_recipes, show_recipe

        echo(list_recipes() if name is None else show_recipe(name))


app.command()(solve)
app.command(name="eval")(evaluate)
app.command(name="config")(explain_settings)
app.command()(serve)
app.command()(watch)
app.command()(doctor)


@app.command()
def export(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Run directory or URL.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="New or empty directory, `hub:OWNER/NAME`, or `hub` for a name made here.")] = None,
    format: Annotated[str, typer.Option("--format", help="Kind of data set; `list` explains them.")] = "preference",
    rounds: Annotated[str | None, typer.Option("--round", help="Rounds to export, e.g. `2` or `1-3`. Default: all finished ones.")] = None,
    splits: Annotated[
        list[str], typer.Option("--split", metavar="NAME=SHARE", help="Set problems aside, e.g. `test=0.1`. Repeatable.")
    ] = [],  # noqa: B006
    advantage: Annotated[str, typer.Option(help="Advantages of trees and trajectories: `parent`, `treepo` or `group`.")] = "parent",
    target: Annotated[
        str, typer.Option(help="Value of a node: `monte-carlo`, `tree-value`, `q`, `score`, `hard-max` or `distance`.")
    ] = "monte-carlo",
    data_source: Annotated[
        str | None,
        typer.Option(help="Name of the problems' source in rows for verl and OpenRLHF, e.g. `openai/gsm8k`. Default: hub id or file name."),
    ] = None,
    license: Annotated[str | None, typer.Option("--license", help="Licence of the source problems (SPDX), for the data card.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new data set on the hub public. Default: private.")] = False,
    overwrite: OverwriteOption = False,
    debug: DebugOption = False,
) -> None:
    """Export a run's trees and training rows as a data set with a data card.

    The result loads with `datasets.load_dataset(DIR)`. Other trainers take it without changes, and `stepladder import` reads it back.

    - `stepladder export --format list`
    - `stepladder export runs/embedded --format preference --to data/pairs --split test=0.1`
    - `stepladder export runs/embedded --format tree --round 3 --advantage treepo --to hub:me/trees`
    """
    with _errors_explained(debug):
        from stepladder.commands.export import ExportOptions, explain_formats, export_rounds
        from stepladder.loops.runs.progress import ProgressDisplay

        if format == "list":
            echo(explain_formats())
            return
        if run is None or to is None:
            raise ConfigError("export: give a RUN directory and --to DIR, hub or hub:OWNER/NAME -- see stepladder export --help")
        options = ExportOptions(
            format=format,
            rounds=rounds,
            splits=splits,
            advantage=advantage,
            target=target,
            data_source=data_source,
            licence=license,
            overwrite=overwrite,
            public=public,
        )
        echo(export_rounds(run, to, options, display=ProgressDisplay()))


@app.command(name="import")
def import_(
    place: Annotated[str, typer.Argument(metavar="DIR|hub:OWNER/NAME", help="Data set that `stepladder export` wrote.")],
    run_dir: Annotated[
        str,
        typer.Option(metavar="DIR|URL", help="Run that is to learn from it; it must not have begun round 1, and need not exist yet."),
    ],
    config: Annotated[
        Path | None,
        typer.Option(readable=False, help="TOML configuration of a run that does not exist yet: check the rows against its policy now."),
    ] = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    debug: DebugOption = False,
) -> None:
    """Add an exported data set to a run: every round of `evolve` trains on its rows and on its own.

    Pairs, solutions and verdicts train the policy, judged steps the PRM, trees are labelled with the run's settings and train both. Prompt
    format and tokenizer must be those of the export.

    - `stepladder import data/pairs --run-dir runs/more --config more.toml`
    """
    with _errors_explained(debug):
        from stepladder.commands.export import import_rows
        from stepladder.loops.assembly.checks import check_model
        from stepladder.loops.config.load import load_config
        from stepladder.loops.runs.run_places import find_run

        if overrides and config is None:
            raise ConfigError(f"import: --set changes the settings of --config: got {overrides[0]!r} without it -- give the configuration")
        settings = None if config is None else load_config(config, overrides)
        if settings is not None:
            check_model(settings.policy)
        run = find_run(run_dir, to_work=True)
        # The lock makes the directory, and an import that is refused must leave none.
        with nullcontext() if run.copy is None else run.held(_tell):
            echo(import_rows(place, run.root, config=settings))


@app.command()
def grade(
    file: Annotated[str, typer.Argument(help="JSONL file, `-` for standard input. Rows have `reference`, and `answer` or `text`.")],
    output: Annotated[str, typer.Option(help="JSONL file for the verdicts; `-` is standard output.")] = "-",
    rule: Annotated[str, typer.Option(help="`exact`, `number` or `math`; docs/grading.md explains them.")] = "math",
    options: Annotated[
        list[str],
        typer.Option(
            "--option",
            metavar="NAME=VALUE",
            help="Make rule `math` less strict, e.g. `units=optional`; or a verifier's argument. Repeatable.",
        ),
    ] = [],  # noqa: B006
    answer_pattern: Annotated[
        str | None,
        typer.Option(help="Regular expression with one group that reads the answer out of `text`. Default: the last `\\boxed{}`."),
    ] = None,
    verifier: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Grade by a task's verifier instead: `file.py:function`, `package.module:function`, or an entry point."
        ),
    ] = None,
    passing: Annotated[float, typer.Option(min=0.001, max=1.0, help="Smallest number of a verifier that counts as right.")] = 1.0,
    workers: Annotated[int, typer.Option(min=1, help="Processes for algebra.")] = 2,
    deadline: Annotated[float, typer.Option(min=0.01, help="CPU seconds for one answer.")] = 5.0,
    overwrite: OverwriteOption = False,
    debug: DebugOption = False,
) -> None:
    r"""Grade answers against their references, with reasons.

    Every output row has `correct`, `reason`, the extracted answer, and the normal forms of both sides. If rows have their own
    verdict, `equal`, the summary counts how often the rule disagrees. A verifier takes `question`, `reference`, and the answer or the
    whole `text`, as in a run; `credit` is its number.

    - `stepladder grade answers.jsonl`
    - `stepladder grade answers.jsonl --rule number --output verdicts.jsonl`
    - `stepladder grade answers.jsonl --verifier countdown.py:grade`
    - `echo '{"reference": "1/2", "text": "It is 0.5: \\boxed{0.5}"}' | stepladder grade -`
    """
    with _errors_explained(debug):
        from stepladder.commands.grade import OUTPUT_KEYS, GradeSettings, grade_file

        if (path := named_file(output)) is not None:
            check_output(path, option="--output", ours=rows_with(*OUTPUT_KEYS), overwrite=overwrite, inputs=[named_file(file)])
        settings = GradeSettings.parse(
            rule=rule,
            options=options,
            answer_pattern=answer_pattern,
            num_workers=workers,
            deadline_s=deadline,
            verifier=verifier,
            passing=passing,
        )
        echo(grade_file(file, output, settings), err=path is None)


@app.command()
def report(
    run: Annotated[list[str], typer.Argument(metavar="RUN", help="Run directory or URL; several are compared.")],
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", readable=False, help="HTML file to write. Default: RUN/report.html; none for several runs, which are printed."
        ),
    ] = None,
    trees: Annotated[int, typer.Option(min=0, help="Most searched trees of test problems on the page of one run.")] = 6,
    overwrite: OverwriteOption = False,
    debug: DebugOption = False,
) -> None:
    """Write one self-contained HTML page about a run: curves, tables, and searched trees to click through.

    Several runs are shown side by side: rounds, settings that differ, and the best policies on the test problems that they share.

    Runs that differ only in their seed are one line with a band.

    - `stepladder report runs/embedded`
    - `stepladder report runs/embedded --trees 200`
    - `stepladder report runs/a runs/b --to comparison.html`
    """
    with _errors_explained(debug):
        from stepladder.loops.runs.directory import load_run
        from stepladder.loops.runs.run_places import find_run
        from stepladder.report.page import write_report
        from stepladder.report.runs import write_comparison_of_runs

        if len(run) == 1:
            place = find_run(run[0])
            page = write_report(load_run(place.root), to, overwrite=overwrite, most_trees=trees)
            place.publish(page)
            echo(f"report: {place.page_place(page)}")
        else:
            echo(write_comparison_of_runs([load_run(each) for each in run], to, overwrite=overwrite))


def main() -> None:
    """Run the command line."""
    handle_signals()
    app()
