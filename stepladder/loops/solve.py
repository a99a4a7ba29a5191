"""Search as an inference-time solver: models of a run or of directories, any method, no answers anywhere."""

import json
import time
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stepladder.data.problems import load_problems
from stepladder.errors import CheckpointError, ConfigError, DataFormatError
from stepladder.files import atomic_write_text
from stepladder.loops import build
from stepladder.loops.config import Config, FormatConfig, PolicyConfig, ProblemsConfig, with_overrides
from stepladder.loops.run import best_models
from stepladder.loops.rundir import load_run
from stepladder.loops.token_use import TokenUse, unique_tokens
from stepladder.mcts.axes import SearchMethod
from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.methods import OUTSIDE, PRESETS, Preset, resolve_method
from stepladder.types import Budget, Problem, Provenance, SearchResult

DEFAULT_RUN = Path("runs/embedded")
_DEFAULT_METHOD = "mcts"
_UNBOUNDED_SIMULATIONS = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class SolveSettings:
    """Everything a search for answers needs."""

    config: Config
    """Format, limits and device; a run's own configuration, or defaults for bare model directories."""
    policy: str
    """Directory or hub id of the policy."""
    prm: str | None
    """Directory of the PRM; None searches without one."""
    method: SearchMethod
    """Search method."""
    budget: Budget
    """Spending caps per question."""
    seed: int
    """Seed of the search."""

    @classmethod
    def resolve(
        cls,
        *,
        run: Path | None,
        policy: str | None,
        prm: str | None,
        method: str | None,
        tokens: int | None,
        simulations: int | None,
        options: list[str],
        seed: int,
        overrides: Sequence[str] = (),
    ) -> "SolveSettings":
        """Find the models and check the settings.

        With a token cap and no simulation cap the tokens alone decide; with neither, the run's evaluation setting does. ``overrides``
        are ``section.key=value`` over the run's configuration.

        Raises:
            ConfigError: If settings contradict each other, or the method or an option is unknown.
            CheckpointError: If there is no such run or it has no finished round.
        """
        if run is not None and policy is not None:
            raise ConfigError("solve: --run and --policy both name a policy: got both -- give one")
        if policy is not None:
            config, best_prm = _bare_config(policy), None
        else:
            config, policy, best_prm = _run_models(run or DEFAULT_RUN)
        config = with_overrides(config, list(overrides))
        build.check_backends(config, trains=False)
        chosen_prm = best_prm if prm is None else None if prm == "none" else prm
        defaults = config.evaluate
        same_method = method in (None, defaults.method)
        chosen_options = (defaults.options if same_method else {}) | dict(_option(text) for text in options)
        num_simulations = simulations or (_UNBOUNDED_SIMULATIONS if tokens else defaults.simulations)
        budget = Budget(
            num_simulations=num_simulations,
            max_tokens=tokens or (None if simulations else defaults.max_tokens),
            max_depth=config.search.max_depth,
            max_step_tokens=config.search.max_step_tokens,
        )
        return cls(
            config=config,
            policy=policy,
            prm=chosen_prm,
            method=resolve_method(method or defaults.method, **chosen_options),
            budget=budget,
            seed=seed,
        )


def solve_question(settings: SolveSettings, question: str, *, tree_path: Path | None, as_json: bool) -> str:
    """Search one question and return the text to print."""
    begin = time.monotonic()
    problems = [Problem(id="question", question=question)]
    engine = _engine(settings, problems)
    (result,) = engine.search(problems)
    seconds = time.monotonic() - begin
    use = TokenUse.of(engine.policy, engine.scorer, unique_tokens=unique_tokens(result.tree))
    if tree_path is not None:
        _write_trees(tree_path, [result])
    row = _row(result, question)
    return (
        json.dumps({**row, "seconds": round(seconds, 3), "token_use": use.figures()}) if as_json else _readable(row, result, seconds, use)
    )


def solve_file(
    settings: SolveSettings, source: Path, output: Path, *, tree_path: Path | None, id_field: str = "id", question_field: str = "question"
) -> str:
    """Search every question of a file and write one JSON line each, in the order of the file.

    Finished answers are kept beside the output while the work goes on, so a stopped command continues where it was.

    Args:
        settings: Models, method and budget.
        source: JSONL or Parquet file; answers in it are not kept.
        output: JSONL file to write.
        tree_path: Where the searched trees go; None writes none.
        id_field: Field of the ids; empty makes them from file name and line number.
        question_field: Field of the questions.

    Raises:
        DataFormatError: If the file breaks its format.
        CheckpointError: If the kept answers belong to other settings.
    """
    begin = time.monotonic()
    loaded = load_problems(str(source), id_field=id_field or None, question_field=question_field, allow_unlabelled=True)
    problems = [labelled.problem for labelled in loaded]
    part = output.with_name(output.name + ".part")
    rows = _kept_rows(part, settings)
    missing = [problem for problem in problems if problem.id not in rows]
    questions = {problem.id: problem.question for problem in problems}
    results: list[SearchResult] = []
    engine, num_unique = _engine(settings, missing), 0
    with part.open("a", encoding="utf-8") as file:
        for result in engine.search(missing):
            num_unique += unique_tokens(result.tree)
            rows[result.problem_id] = _row(result, questions[result.problem_id])
            file.write(json.dumps(rows[result.problem_id]) + "\n")
            file.flush()
            if tree_path is not None:
                results.append(result)
    atomic_write_text(output, "".join(json.dumps(rows[problem.id]) + "\n" for problem in problems))
    if tree_path is not None:
        _write_trees(tree_path, results)
    part.unlink()
    tokens = sum(row["generated_tokens"] for row in rows.values())
    answered = sum(row["answer"] is not None for row in rows.values())
    done = f"{output}: {len(problems)} questions, {answered} answered, {tokens} generated tokens, {time.monotonic() - begin:.1f} s"
    use = TokenUse.of(engine.policy, engine.scorer, unique_tokens=num_unique).sentence()
    return done if use is None else f"{done}\n{use}"


def explain_methods() -> str:
    """Return one paragraph per search method (what it does, its settings, its source), and why some published ones are missing."""
    paragraphs = [_explained(preset) for preset in PRESETS.values()]
    outside = [f"  {name}: {reason}" for name, reason in OUTSIDE.items()]
    note = "Settings not named have their defaults, which docs/methods.md lists; --option KEY=VALUE changes any of them."
    return "\n".join([*paragraphs, "", note, "", "Published searches that the settings do not express:", *outside])


def _explained(preset: Preset) -> str:
    method = preset.method
    lines = [f"{method.name}: {method.description}"]
    details = {
        "settings": ", ".join(f"{name}={value}" for name, value in method.settings().items()),
        "source": preset.source,
        "published budget": preset.budget,
        "differs": preset.differs,
    }
    return "\n".join(lines + [f"    {name}: {text}" for name, text in details.items() if text])


def _run_models(run_path: Path) -> tuple[Config, str, str | None]:
    try:
        run = load_run(run_path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; or name a model with --policy DIR") from None
    policy, prm = best_models(run)
    return run.config(), policy, prm


def _bare_config(policy: str) -> Config:
    """Settings for a model directory without a run; its saved step format is used if there is one."""
    from stepladder.lm.loading import FORMAT_FILE
    from stepladder.policy.prompts import StepFormat

    saved = asdict(StepFormat.load(policy)) if (Path(policy) / FORMAT_FILE).is_file() else {}
    return Config(problems=ProblemsConfig(train="", test=""), policy=PolicyConfig(model=policy), format=FormatConfig(**saved))


def _option(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f"--option {text!r}: must have the form key=value, for example --option num_children=8")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def _engine(settings: SolveSettings, problems: list[Problem]) -> SearchEngine:
    config = settings.config
    renderer = build.build_renderer(config, settings.policy)
    return SearchEngine(
        policy=build.build_policy(config, settings.policy),
        scorer=build.build_scorer(config, settings.prm, renderer=renderer, problems=problems),
        renderer=renderer,
        method=settings.method,
        budget=settings.budget,
        provenance=Provenance(
            round=0, policy_version=0, scorer_version=None, seed=settings.seed, config_hash=config.hash(), renderer_hash=renderer.hash
        ),
        max_trees=config.search.max_trees,
    )


def _path(result: SearchResult) -> list[int]:
    """Nodes from the first step to the answer, root left out."""
    path, node = [], result.answer_node
    while node is not None and node > 0:
        path.append(node)
        node = result.tree.parents[node]
    return path[::-1]


def _row(result: SearchResult, question: str) -> dict[str, Any]:
    tree = result.tree
    steps = [
        {"text": tree.texts[node], "score": tree.scores[node], "value": tree.values[node], "visits": tree.visits[node]}
        for node in _path(result)
    ]
    return {
        "id": result.problem_id,
        "question": question,
        "answer": result.answer,
        "steps": steps,
        "votes": result.votes,
        "method": tree.method,
        "generated_tokens": tree.generated_tokens,
        "policy_calls": tree.policy_calls,
        "simulations": tree.num_simulations,
        "stop_reason": str(result.stop_reason),
    }


def _readable(row: dict[str, Any], result: SearchResult, seconds: float, use: TokenUse) -> str:
    lines = [f"answer: {row['answer'] if row['answer'] is not None else 'none found -- raise --tokens or try another --method'}", ""]
    for number, step in enumerate(row["steps"], start=1):
        score = "  -  " if step["score"] is None else f"{step['score']:.3f}"
        lines.append(f"  {number:>2}  {score}  {step['text'].strip()}")
    nodes = len(result.tree.parents)
    lines += [
        "",
        f"{row['method']}: {row['generated_tokens']} generated tokens, {row['simulations']} simulations, {nodes} nodes, {seconds:.2f} s",
        use.sentence() or "",
    ]
    return "\n".join(lines).rstrip("\n")


def _write_trees(path: Path, results: list[SearchResult]) -> None:
    trees = [result.tree.to_dict() for result in results]
    atomic_write_text(path, json.dumps(trees[0] if len(trees) == 1 else trees) + "\n")


def _kept_rows(part: Path, settings: SolveSettings) -> dict[str, dict[str, Any]]:
    """Answers of an earlier, stopped call; its last line may be torn and is then searched again."""
    if not part.exists():
        return {}
    lines = part.read_text(encoding="utf-8").split("\n")
    rows = {}
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
            rows[row["id"]] = row
        except (json.JSONDecodeError, KeyError):
            raise DataFormatError(f"{part}:{number}: not an answer of an earlier call -- remove the file to start over") from None
    if any(row["method"] != settings.method.name for row in rows.values()):
        raise CheckpointError(f"{part}: holds answers of another method -- remove the file to start over, or use the same --method")
    part.write_text("".join(line + "\n" for line in lines[:-1]), encoding="utf-8")
    return rows
