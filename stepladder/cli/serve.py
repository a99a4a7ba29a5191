"""``stepladder serve``."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from stepladder.cli.errors import DebugOption, SetOption, errors_explained
from stepladder.errors import ConfigError
from stepladder.terminal import echo


def serve(
    run: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Use the best models of this run (directory or URL). Default: the newest run in `runs`."),
    ] = None,
    policy: Annotated[str | None, typer.Option(help="Directory or hub id of a policy, instead of a run's.")] = None,
    prm: Annotated[
        list[str],
        typer.Option(help="Directory or hub id of a PRM; given several times: an ensemble. 'none' searches without one."),
    ] = [],  # noqa: B006 - typer copies it
    name: Annotated[str | None, typer.Option(help="Name of the model in requests. Default: that of the run or directory.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on. One that others can reach needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File of keys, one a line. Default: the variable STEPLADDER_API_KEY, else no key.")
    ] = None,
    anonymous: Annotated[bool, typer.Option("--anonymous", help="Let everybody in who can reach --host, without a key.")] = False,
    method: Annotated[str | None, typer.Option(help="Search method of requests that name none.")] = None,
    simulations: Annotated[int | None, typer.Option(min=1, help="Their cap on simulations.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Their cap on generated tokens.")] = None,
    options: Annotated[list[str], typer.Option("--option", metavar="KEY=VALUE", help="Setting of that method, e.g. num_children=8.")] = [],  # noqa: B006
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Deadline of a request; its best answer so far is returned.")] = 600.0,
    max_simulations: Annotated[int, typer.Option(min=1, help="Most simulations that a request may ask for.")] = 4096,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most generated tokens that a request may ask for.")] = 1_000_000,
    max_choices: Annotated[int, typer.Option(min=1, help="Most searches of one request: its prompts times n.")] = 64,
    max_waiting: Annotated[int, typer.Option(min=1, help="Searches that may wait; beyond them requests get status 429.")] = 512,
    max_body: Annotated[int, typer.Option(min=1024, help="Most bytes of a request.")] = 1 << 20,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that open searches may still take after Ctrl-C or SIGTERM.")] = 30.0,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    debug: DebugOption = False,
) -> None:
    """Serve OpenAI's protocol: every request is answered by a search.

    Set a client's `base_url` to the printed address with `/v1`. The model's name may name the search: `NAME@mcts-64` runs 64 simulations.
    docs/serving.md has the fields of requests and replies. `--set policy.backend=openai` searches on a remote server's policy.

    - `stepladder serve`
    - `stepladder serve --policy DIR --prm DIR --method beam --tokens 4000 --port 9000`
    - `stepladder serve --host 0.0.0.0 --api-key-file keys.txt`
    """
    with errors_explained(debug):
        _check_installed()
        from stepladder.commands.solve_settings import choose_models, read_option
        from stepladder.loops.assembly.search import choose_search
        from stepladder.loops.runs.newest import newest_run
        from stepladder.serve.app import Defaults, Limits
        from stepladder.serve.server import ServeSettings, check_address, read_keys
        from stepladder.serve.server import serve as serve_models

        keys = read_keys(api_key_file)
        check_address(host, keys, anonymous=anonymous)
        run = str(newest_run()) if run is None and policy is None else run
        config, policy_source, prms = choose_models(run=run, policy=policy, prm=prm, overrides=overrides)
        chosen = dict(read_option(text) for text in options)
        choose_search(config, method=method, tokens=tokens, simulations=simulations, options=chosen)
        settings = ServeSettings(
            defaults=Defaults(config=config, method=method, simulations=simulations, tokens=tokens, options=chosen),
            policy=policy_source,
            prm=prms,
            name=name or Path(policy or run or "").resolve().name or "stepladder",
            host=host,
            port=port,
            keys=keys,
            limits=Limits(max_choices=max_choices, max_simulations=max_simulations, max_tokens=max_tokens, max_seconds=max_seconds),
            max_waiting=max_waiting,
            max_body_bytes=max_body,
            grace_s=grace,
        )
        echo(f"loading {settings.policy}", err=True)
        serve_models(settings, on_ready=lambda address: _ready(address, settings.name), on_stop=lambda: echo("stopping", err=True))
        echo("stopped", err=True)


def _ready(address: str, name: str) -> None:
    echo(f"serving {name} at {address}/v1 -- Ctrl-C stops", err=True)


def _check_installed() -> None:
    missing = [package for package in ("fastapi", "uvicorn") if find_spec(package) is None]
    if missing:
        raise ConfigError(f"serve: needs the package {missing[0]}: it is not installed -- pip install 'stepladder[serve]'")
