"""``stepladder solve``."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepladder.cli.errors import DebugOption, OverwriteOption, SetOption, errors_explained
from stepladder.errors import BackendError, ConfigError
from stepladder.locks import held
from stepladder.outputs import STANDARD, check_output, named_file, rows_with, text_with
from stepladder.terminal import echo

if TYPE_CHECKING:
    from stepladder.commands.solve import Solved
    from stepladder.commands.solve_report import Detail
    from stepladder.commands.solve_settings import SolveSettings

_TOKENS_HELP = "Cap on generated tokens per question, never exceeded: the last samples are fewer, and cut if they do not fit."
_SECONDS_HELP = (
    "Cap on seconds per question, checked before each wave but the first; loading and compiling do not count. "
    "Such a search cannot be replayed."
)
_INPUT_HELP = (
    "JSONL or Parquet file with questions (fields id, question), or `-` for standard input: JSON lines, or plain text, one question a line."
)
_OUTPUT_HELP = "JSONL file for the answers; a stopped command continues it. `-`, the default, prints them as they come."


def solve(
    question: Annotated[str | None, typer.Argument(help="The question.")] = None,
    run: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Use the best models of this run (directory or URL). Default: the newest run in `runs`."),
    ] = None,
    policy: Annotated[str | None, typer.Option(help="Directory or hub id of a policy, instead of a run's.")] = None,
    prm: Annotated[
        list[str],
        typer.Option(
            help="Directory or hub id of a PRM; given several times: an ensemble. 'none' searches without one, with 'self' the policy "
            "judges its own steps."
        ),
    ] = [],  # noqa: B006 - typer copies it
    prm_spec: Annotated[str | None, typer.Option(help="Spec of a PRM whose directory does not contain it; see `prm specs`.")] = None,
    reference: Annotated[str | None, typer.Option(help="Reference model of an implicit PRM that names none.")] = None,
    ensemble: Annotated[str | None, typer.Option(help="One score of several PRMs': `mean`, `min` or `mean-variance`.")] = None,
    input: Annotated[str | None, typer.Option(metavar="FILE|-", help=_INPUT_HELP)] = None,
    output: Annotated[str | None, typer.Option(metavar="FILE|-", help=_OUTPUT_HELP)] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Load the models once and ask for one question after the other.")
    ] = False,
    id_field: Annotated[str, typer.Option(help="Field of the ids in the input; '' numbers the lines.")] = "id",
    question_field: Annotated[str, typer.Option(help="Field of the questions in the input.")] = "question",
    method: Annotated[str | None, typer.Option(help="Search method; 'list' explains them. Default: the run's `evaluate.method`.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help=_TOKENS_HELP)] = None,
    simulations: Annotated[
        int | None, typer.Option(min=1, help="Cap on simulations per question. Default, without any cap: the run's `evaluate.simulations`.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.001, help=_SECONDS_HELP)] = None,
    options: Annotated[list[str], typer.Option("--option", metavar="KEY=VALUE", help="Setting of the method, e.g. num_children=8.")] = [],  # noqa: B006
    discriminator: Annotated[
        str | None, typer.Option(help="Directory of a second model: choose among answers that it reaches, too (rStar).")
    ] = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    tree: Annotated[Path | None, typer.Option(readable=False, help="Write the searched tree (or trees) as JSON.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the answers alone.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print how well the caches did, too.")] = False,
    overwrite: OverwriteOption = False,
    debug: DebugOption = False,
) -> None:
    """Answer questions with a search.

    - `stepladder solve "25143678"`
    - `stepladder solve --interactive`
    - `stepladder solve --input questions.jsonl --output answers.jsonl --method beam --tokens 2000`
    - `echo "25143678" | stepladder solve --input - | jq .answer`
    - `stepladder solve --input questions.jsonl --output answers.jsonl --set policy.backend=vllm`
    - `stepladder solve --input questions.jsonl --output answers.jsonl --set run.workers=4` spreads the work; so does `run.cluster=ray`
    - `stepladder solve "1+1" --policy DIR --prm ./prm-a --prm ./prm-b --ensemble min --set evaluate.scores.check=arithmetic`
    """
    with errors_explained(debug):
        from stepladder.commands.solve import explain_methods
        from stepladder.commands.solve_report import Detail
        from stepladder.commands.solve_settings import SolveSettings
        from stepladder.loops.runs.newest import newest_run

        if method == "list":
            echo(explain_methods())
            return
        _check_asked(question, input, output, interactive=interactive)
        if quiet and verbose:
            raise ConfigError("solve: --quiet and --verbose contradict each other: got both -- give one")
        if interactive and (tree is not None or as_json):
            raise ConfigError("--interactive: prints text: got --tree or --json -- leave it out")
        detail = Detail.QUIET if quiet else Detail.VERBOSE if verbose else Detail.NORMAL
        _check_outputs(input, output, tree, overwrite=overwrite)
        if run is None and policy is None:
            run = str(newest_run())
            if detail is not Detail.QUIET:
                echo(f"run: {run}, the newest; --run takes another", err=True)
        named = {"prm.spec": prm_spec, "prm.reference": reference, "evaluate.scores.ensemble": ensemble}
        settings = SolveSettings.resolve(
            run=run,
            policy=policy,
            prm=prm,
            method=method,
            tokens=tokens,
            simulations=simulations,
            options=options,
            seed=seed,
            overrides=[*overrides, *(f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None)],
            seconds=seconds,
            discriminator=discriminator,
            # A file is read later, and has as many questions as are searched at once.
            num_problems=sys.maxsize if input is not None else 1,
        )
        if interactive:
            from stepladder.commands.converse import converse

            converse(settings, detail=detail)
        elif question is not None:
            from stepladder.commands.solve import solve_question

            solved = solve_question(settings, question, tree_path=tree, as_json=as_json, detail=detail)
            _show(solved, detail, err=False)
        else:
            assert input is not None
            _solve_many(settings, input, output or STANDARD, tree, detail, id_field=id_field, question_field=question_field)


def _check_outputs(source: str | None, output: str | None, tree: Path | None, *, overwrite: bool) -> None:
    """Check that the places of answers and trees may be written."""
    from stepladder.commands.kept_work import part_of

    path, inputs = named_file(output), [named_file(source)]
    # Answers beside the output belong to a call that was stopped, or of which questions failed: this one continues it.
    replace = overwrite or (path is not None and part_of(path).exists())
    if path is not None:
        check_output(path, option="--output", ours=rows_with("id", "question", "answer"), overwrite=replace, inputs=inputs)
    if tree is not None:
        check_output(tree, option="--tree", ours=text_with('"problem_id"'), overwrite=replace, inputs=inputs)


def _solve_many(
    settings: "SolveSettings", source: str, output: str, tree: Path | None, detail: "Detail", *, id_field: str, question_field: str
) -> None:
    """Answer the questions of a file or of standard input."""
    from stepladder.commands.solve import read_questions, solve_file, solve_stream
    from stepladder.commands.solve_report import Detail
    from stepladder.loops.runs.progress import ProgressDisplay

    # Bars would be drawn over the answers on the same terminal.
    hides = detail is Detail.QUIET or (output == STANDARD and sys.stdout.isatty())
    display = None if hides else ProgressDisplay()
    if output == STANDARD:
        problems = read_questions(source, id_field=id_field, question_field=question_field)
        solved = solve_stream(settings, problems, tree_path=tree, display=display)
    else:
        fields = {"id_field": id_field, "question_field": question_field}
        with held(Path(output)):
            solved = solve_file(settings, source, Path(output), tree_path=tree, display=display, **fields)
    _show(solved._replace(text="" if detail is Detail.QUIET else solved.text), detail, err=output == STANDARD)


def _show(solved: "Solved", detail: "Detail", *, err: bool) -> None:
    """Print what a search has to say, and fail if nothing could be asked."""
    from stepladder.commands.solve_report import Detail

    if solved.text:
        echo(solved.text, err=err)
    if solved.details and detail is Detail.VERBOSE:
        echo(solved.details, err=err)
    if solved.failure is not None:
        raise BackendError(solved.failure)


def _check_asked(question: str | None, source: str | None, output: str | None, *, interactive: bool) -> None:
    """Check that ``solve`` was given one question, or a file of them, or is to ask for them."""
    if sum((question is not None, source is not None, interactive)) != 1:
        raise ConfigError("solve: give one of QUESTION, --input FILE and --interactive -- see stepladder solve --help")
    if question is not None and not question.strip():
        raise ConfigError(f"QUESTION: must have text: got {question!r} -- put the question in quotes")
    if source is None and output is not None:
        raise ConfigError(f"--output: is for the answers to --input: got {output!r} without it -- say where the questions are")
