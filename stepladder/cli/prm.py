"""``stepladder prm``: process reward models on the command line."""

from pathlib import Path
from typing import Annotated

import typer

from stepladder.cli.errors import DebugOption, OverwriteOption, errors_explained
from stepladder.errors import ConfigError
from stepladder.locks import held
from stepladder.outputs import check_output, directory_with, rows_with, text_with
from stepladder.terminal import echo

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Process reward models: score, train, evaluate.")

ModelOption = Annotated[str, typer.Option("--model", help="Directory or hub id of the process reward model.")]
SpecOption = Annotated[
    str | None, typer.Option("--spec", help="Spec of the PRM; see `prm specs`. Default: the spec of its directory or hub id.")
]
ReferenceOption = Annotated[str | None, typer.Option("--reference", help="Reference model of an implicit PRM.")]
DeviceOption = Annotated[str, typer.Option(help="`auto`, `cpu`, `cuda` or `cuda:N`.")]
DtypeOption = Annotated[str, typer.Option(help="`auto`, `float32`, `bfloat16` or `float16`.")]
BackendOption = Annotated[
    str, typer.Option(help="`transformers`, or `vllm`, which uses a GPU if there is one and reads every spec except judges.")
]
WorkersOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="run.KEY=VALUE",
        help="Who scores: `run.workers=4` processes, or actors on Ray with `run.cluster=ray`; see docs/scale.md. Default: this process.",
    ),
]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that ships with the model; no named spec needs it.")]


@app.command()
def specs(
    as_json: Annotated[bool, typer.Option("--json", help="Print every field as JSON.")] = False,
    debug: DebugOption = False,
) -> None:
    """List the named specs and the public checkpoints that each of them reads."""
    with errors_explained(debug):
        from stepladder.commands.prm_score import explain_specs

        echo(explain_specs(as_json=as_json))


@app.command()
def score(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", readable=False, help="JSONL or Parquet files with solutions.")],
    model: ModelOption,
    output: Annotated[Path, typer.Option(readable=False, help="JSONL file for the scores.")],
    spec: SpecOption = None,
    reference: ReferenceOption = None,
    aggregation: Annotated[str, typer.Option(help="Aggregation of the step scores.")] = "last",
    rewards: Annotated[
        str | None,
        typer.Option(help="Also write rewards for training: of steps by `clip`, `delta` or `par`, of the solution by `verdict`."),
    ] = None,
    bound_at: Annotated[float, typer.Option(help="Bound of `clip`, reference of `par`.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of a judge's verdicts.")] = 0,
    backend: BackendOption = "transformers",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    overrides: WorkersOption = [],  # noqa: B006 - typer copies it
    overwrite: OverwriteOption = False,
    debug: DebugOption = False,
) -> None:
    """Score every step of the solutions in some files.

    Rows have `question` (or `problem`, `prompt`) and `steps` or `solution`; the labelled files of `prm train` will do as well. Stopped with
    Ctrl-C, the same command continues.

    - `stepladder prm score solutions.jsonl --model Qwen/Qwen2.5-Math-PRM-7B --output scores.jsonl`
    - `stepladder prm score solutions.jsonl --model ./my-prm --spec trl --output scores.jsonl`
    - `stepladder prm score solutions.jsonl --model ./my-prm --output scores.jsonl --set run.workers=4`
    """
    with errors_explained(debug):
        from stepladder.commands.kept_work import part_of
        from stepladder.commands.prm_score import PRMSource, score_files
        from stepladder.loops.runs.progress import ProgressDisplay

        # Scores beside the output belong to a call that was stopped: this one continues it.
        replace = overwrite or part_of(output).exists()
        check_output(output, option="--output", ours=rows_with("place", "steps", "scores"), overwrite=replace, inputs=files)
        source = PRMSource(
            model=model,
            spec=spec,
            reference=reference,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            seed=seed,
            backend=backend,
        )
        scoring = {"aggregation": aggregation, "rewards": rewards, "bound_at": bound_at, "overrides": overrides}
        with held(output):
            echo(score_files(files, source, output, **scoring, display=ProgressDisplay()))


@app.command()
def train(
    init: Annotated[str, typer.Option(help="Policy or process reward model to start from: directory or hub id.")],
    output: Annotated[Path, typer.Option(readable=False, help="Directory for the trained model.")],
    files: Annotated[list[Path], typer.Argument(metavar="[FILE...]", readable=False, help="Files of solutions with labelled steps.")] = [],  # noqa: B006
    trees: Annotated[  # - typer copies both
        list[Path],
        typer.Option(readable=False, help="Searched trees to learn from instead: a run, one of its rounds, or shards; may be repeated."),
    ] = [],  # noqa: B006
    target: Annotated[
        str,
        typer.Option(
            help="Target of a step of a tree: `monte-carlo`, `tree-value`, `q`, `score`, `hard-max`, `distance`, `outcome`, `progress` or "
            "`step-pairs`."
        ),
    ] = "monte-carlo",
    supervise: Annotated[
        str, typer.Option(help="Tokens of a tree's step that learn its target: `step-end` or `every-token`.")
    ] = "step-end",
    spec: SpecOption = None,
    loss: Annotated[
        str,
        typer.Option(
            help="`bce`, `mse`, `hl-gauss`, `two-hot`, `pairwise`, `pairwise+mse`, `listwise`, `implicit-ce`, `implicit-dpo`, or "
            "`verdicts` for a judge."
        ),
    ] = "bce",
    teacher: Annotated[
        str | None, typer.Option(help="With `verdicts`: model that writes them. Default: the start model.", show_default=False)
    ] = None,
    verdicts: Annotated[
        int, typer.Option(min=1, help="With `verdicts`: verdicts written on a step; the first that agrees is learned.")
    ] = 4,
    per_side: Annotated[int, typer.Option(min=1, help="With `verdicts`: right steps of a problem, and as many wrong ones at most.")] = 2,
    scope: Annotated[
        str, typer.Option(help="`full`, `head` or `lora`. With `--trees`, `head` is a head on the body of the policy `--init`.")
    ] = "full",
    head_first: Annotated[float, typer.Option(min=0, help="Passes with the head alone before everything is trained.")] = 0.0,
    neutral: Annotated[str, typer.Option(help="What a PRM800K rating of 0 means: `good`, `bad`, `half` or `drop`.")] = "good",
    held_out: Annotated[float, typer.Option(help="Share of the problems set aside to measure the model.")] = 0.1,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 1.0,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-5,
    batch_size: Annotated[int, typer.Option(min=1, help="Solutions, or compared groups, per update.")] = 64,
    micro_batch_size: Annotated[int | None, typer.Option(min=1, help="The same per forward pass. Default: all of an update.")] = None,
    max_updates: Annotated[int | None, typer.Option(min=1, help="Cap on updates.")] = None,
    checkpoint_every: Annotated[int, typer.Option(min=0, help="Updates between checkpoints; the same command continues. 0: none.")] = 0,
    bf16: Annotated[bool | None, typer.Option(help="Compute in bfloat16. Default: on a GPU that has it.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of split, row order and new weights.")] = 0,
    device: Annotated[str, typer.Option(help="`auto`, `cpu` or `cuda`.")] = "auto",
    trust_remote_code: TrustOption = False,
    overwrite: OverwriteOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a process reward model on labelled steps, or on searched trees.

    Reads PRM800K, Math-Shepherd, OmegaPRM (flat and tree), ProcessBench, and `prompt`/`completions`/`labels` rows; problems are split, not
    solutions. A model that `prm train` wrote is scored, evaluated and trained on without `--spec`.

    - `stepladder prm train phase2_train.jsonl --init ./policy --spec trl --output ./my-prm`
    - `stepladder prm train math-aps.jsonl --init ./policy --spec ppm --loss pairwise --output ./my-ppm`
    - `stepladder prm train phase2_train.jsonl --init ./chat --spec thinkprm --loss verdicts --teacher ./strong --output ./my-judge`
    - `stepladder prm train --trees runs/embedded --init runs/embedded/rounds/001/models/policy --loss two-hot --output ./my-prm`
    """
    with errors_explained(debug):
        from stepladder.commands.prm_train import REPORT_FILE, TrainingJob, train_files, train_trees
        from stepladder.loops.config.training import VerdictLoss

        if bool(files) == bool(trees):
            raise ConfigError("prm train: needs files of labelled solutions or --trees: got both or neither -- give one of them")
        inputs = [*files, *trees, Path(init)]
        check_output(output, option="--output", ours=directory_with(REPORT_FILE), overwrite=overwrite, inputs=inputs, is_directory=True)
        settings = dict(
            learning_rate=learning_rate,
            epochs=epochs,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            max_updates=max_updates,
            checkpoint_every=checkpoint_every,
            bf16=bf16,
            seed=seed,
            device=device,
        )
        job = TrainingJob(
            init=init,
            output=output,
            spec=spec,
            loss=loss,
            scope=scope,
            head_first=head_first,
            neutral=neutral,
            held_out=held_out,
            trust_remote_code=trust_remote_code,
            target=target,
            supervise=supervise,
            verdicts=VerdictLoss(per_side=per_side, samples=verdicts, teacher=teacher),
        )
        with held(output):
            echo(train_trees(trees, job, settings) if trees else train_files(files, job, settings))


@app.command(name="eval")
def evaluate(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", readable=False, help="JSONL or Parquet files of graded or labelled solutions.")
    ],
    model: ModelOption,
    spec: SpecOption = None,
    reference: ReferenceOption = None,
    aggregation: Annotated[str, typer.Option(help="Aggregation of step scores to the score of a solution.")] = "last",
    threshold: Annotated[float, typer.Option(help="A step counts as wrong below it.")] = 0.5,
    tune_on: Annotated[
        Path | None, typer.Option(readable=False, help="Choose the threshold on this file, which must hold other problems.")
    ] = None,
    neutral: Annotated[str, typer.Option(help="What a PRM800K rating of 0 means: `good`, `bad`, `half` or `drop`.")] = "good",
    to_json: Annotated[Path | None, typer.Option("--json", readable=False, help="Write every figure to this file.")] = None,
    plots: Annotated[Path | None, typer.Option(readable=False, help="Directory for plots (SVG).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of a judge's verdicts.")] = 0,
    backend: BackendOption = "transformers",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    overrides: WorkersOption = [],  # noqa: B006 - typer copies it
    overwrite: OverwriteOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure a process reward model: every figure that the files allow.

    - first wrong step (ProcessBench): F1 of the accuracies on wrong and on right solutions
    - one right solution against wrong ones (RewardMATH): accuracy and mean reciprocal rank, ties counting against
    - best of n with the unbiased estimator: the over-optimisation curve of score and verifier
    - labelled steps: AUC, Brier score, reliability, AUC by depth
    """
    with errors_explained(debug):
        from stepladder.commands.prm_eval import EvaluationJob, evaluate_files
        from stepladder.commands.prm_score import PRMSource
        from stepladder.loops.runs.progress import ProgressDisplay

        if to_json is not None:
            check_output(to_json, option="--json", ours=text_with('"dropped_by_reason"'), overwrite=overwrite, inputs=files)
        source = PRMSource(
            model=model,
            spec=spec,
            reference=reference,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            seed=seed,
            backend=backend,
        )
        job = EvaluationJob(
            source=source, aggregation=aggregation, threshold=threshold, tune_on=tune_on, neutral=neutral, overrides=overrides
        )
        echo(evaluate_files(files, job, json_path=to_json, plots=plots, display=ProgressDisplay()))
