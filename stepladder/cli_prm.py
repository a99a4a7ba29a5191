"""``stepladder prm``: process reward models on the command line."""

from pathlib import Path
from typing import Annotated

import typer

from stepladder.cli_errors import DebugOption, errors_explained

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Process reward models: score, train, evaluate.")

ModelOption = Annotated[str, typer.Option("--model", help="Directory or hub id of the process reward model.")]
SpecOption = Annotated[
    str | None, typer.Option("--spec", help="How it is read; see `prm specs`. Default: what its directory or hub id says.")
]
ReferenceOption = Annotated[str | None, typer.Option("--reference", help="Reference model of an implicit PRM.")]
DeviceOption = Annotated[str, typer.Option(help="`auto`, `cpu`, `cuda` or `cuda:N`.")]
DtypeOption = Annotated[str, typer.Option(help="`auto`, `float32`, `bfloat16` or `float16`.")]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that ships with the model; no named spec needs it.")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="JSONL or Parquet file with solutions.")]


@app.command()
def specs(
    as_json: Annotated[bool, typer.Option("--json", help="Print every field as JSON.")] = False,
    debug: DebugOption = False,
) -> None:
    """List the named specs and the public checkpoints that each of them reads."""
    with errors_explained(debug):
        from stepladder.loops.prm_scoring import explain_specs

        typer.echo(explain_specs(as_json=as_json))


@app.command()
def score(
    file: FileArgument,
    model: ModelOption,
    output: Annotated[Path, typer.Option(help="JSONL file for the scores.")],
    spec: SpecOption = None,
    reference: ReferenceOption = None,
    aggregation: Annotated[str, typer.Option(help="How step scores become one.")] = "last",
    seed: Annotated[int, typer.Option(min=0, help="Seed of a judge's verdicts.")] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    debug: DebugOption = False,
) -> None:
    """Score every step of the solutions in a file.

    Rows have `question` (or `problem`, `prompt`) and `steps` or `solution`; the labelled files of `prm train` will do as well.

    - `stepladder prm score solutions.jsonl --model Qwen/Qwen2.5-Math-PRM-7B --output scores.jsonl`
    - `stepladder prm score solutions.jsonl --model ./my-prm --spec trl --output scores.jsonl`
    """
    with errors_explained(debug):
        from stepladder.loops.prm_scoring import PRMSource, score_file

        source = PRMSource(
            model=model, spec=spec, reference=reference, device=device, dtype=dtype, trust_remote_code=trust_remote_code, seed=seed
        )
        typer.echo(score_file(file, source, output, aggregation=aggregation))
