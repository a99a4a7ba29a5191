"""``Solver``: models loaded once, any number of questions."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pandas
import pytest

from stepladder import Solver
from stepladder.commands.solve import solve_question
from stepladder.commands.solve_settings import SolveSettings
from stepladder.errors import BackendError, CheckpointError, ConfigError
from stepladder.loops.assembly.search_session import SearchSession
from stepladder.policy.prompts import StepFormat
from stepladder.types import StopReason
from tests.models import save_tiny_policy
from tests.prm_models import qwen_tokenizer, save_head_model
from tests.processes import is_running

SHORT = ["search.max_step_tokens=150", "search.max_depth=3"]
HOSTILE = '<script>alert("x")</script> & 1+1'


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Save a policy whose solutions end with any digit."""
    folder = save_tiny_policy(tmp_path_factory.mktemp("policy"), max_positions=512)
    StepFormat(answer_pattern=r"(\d)").save(folder)
    return folder


@pytest.fixture(scope="module")
def solver(model):
    """Load a solver without a PRM."""
    with Solver(model, simulations=8, overrides=SHORT) as solver:
        yield solver


def facts(solution):
    """Return what decides whether two solutions are the same, without figures that rounding may change."""
    return solution.answer, solution.text, solution.result.tree.token_ids, solution.stop_reason


def test_the_answer_is_that_of_the_command(solver, model):
    """The same settings give what ``stepladder solve`` gives."""
    settings = SolveSettings.resolve(
        run=None, policy=str(model), prm=(), method=None, tokens=None, simulations=8, options=[], seed=0, overrides=SHORT
    )
    row = json.loads(solve_question(settings, "12+30", tree_path=None, as_json=True).text)
    solution = solver("12+30")
    assert solution.answer == row["answer"] is not None
    assert [step.text for step in solution.steps] == [step["text"] for step in row["steps"]]
    assert solution.votes == pytest.approx(row["votes"])
    assert solution.generated_tokens == row["generated_tokens"]
    assert solution.question == "12+30"
    assert 0 < solution.confidence <= 1


def test_a_question_has_one_answer_whatever_is_asked_beside_it(solver):
    """Several questions at once, and the same one twice, find what each finds alone; the order is that of the questions."""
    questions = ["1+1", "2+2", "1+1", "3-1"]
    together = solver(questions)
    assert [solution.question for solution in together] == questions
    assert [facts(solution) for solution in together] == [facts(solver(question)) for question in questions]
    assert solver([]) == []


def test_a_call_may_change_method_caps_and_seed(solver, model):
    """Changes hold for one call; another method leaves the solver's options behind."""
    best = solver("1+1", method="best-of-n", simulations=3)
    assert best.result.tree.method == "best-of-n"
    assert best.result.tree.num_simulations == 3
    assert solver("1+1", seed=1).result.tree.token_ids != solver("1+1").result.tree.token_ids
    capped = solver("1+1", method="best-of-n", tokens=10)
    assert capped.stop_reason == StopReason.TOKENS
    with Solver(model, method="mcts", options={"num_children": 2}, simulations=4, overrides=SHORT) as narrow:
        assert narrow("1+1").result.tree.parents.count(0) <= 2
        assert narrow("1+1", method="best-of-n").result.tree.method == "best-of-n"


def test_a_prm_that_reads_text_scores_the_steps(model, tmp_path):
    """A PRM that needs the question finds it while the question is searched; every step of the solution has a score."""
    prm = save_head_model(tmp_path / "prm", qwen_tokenizer(), head="mlp", num_outputs=2, max_positions=1024)
    with Solver(model, prm=prm, simulations=6, overrides=[*SHORT, "prm.spec=qwen2.5-math-prm"]) as solver:
        first, second = solver(["1+1", "2+2"])
        assert facts(solver("1+1"))[1:3] == facts(first)[1:3]
    assert first.steps and second.steps
    assert all(step.score is not None and 0 <= step.score <= 1 for step in (*first.steps, *second.steps))


def test_a_tree_is_drawn_without_trusting_its_texts(solver):
    """The HTML of a tree escapes question and steps, marks the path, and needs no script."""
    assert solver(HOSTILE).answer is not None
    html = solver.tree._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert html.count("<details") == html.count("</details>") > 0
    assert html.count('class="text chosen"') == len(solver(HOSTILE).steps)
    assert len(solver.tree) == solver.tree.to_networkx().number_of_nodes()


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("", "must have text: got ''"),
        (" \n", "must have text: got"),
        (3, "must be text: got 3 of type int"),
        (None, "must be text: got None"),
    ],
)
def test_an_empty_question_is_refused(solver, question, said):
    """A question must have text, and be one, alone and among others."""
    for asked in (question, [question]):
        with pytest.raises(ConfigError, match=f"^question: {said}"):
            solver(asked)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"simulations": 0}, "simulations must be a whole number >= 1: got 0"),
        ({"tokens": -1}, "tokens must be a whole number >= 1: got -1"),
        ({"seconds": 0}, "seconds must be a number > 0: got 0"),
        ({"seed": -1}, "seed must be a whole number >= 0: got -1"),
    ],
)
def test_impossible_caps_and_seeds_are_refused_by_name(solver, model, changes, said):
    """As the options of the command are: none is taken for "not given". A solver refuses them before it loads its models."""
    with pytest.raises(ConfigError, match=said):
        solver("1+1", **changes)
    with pytest.raises(ConfigError, match=said):
        Solver(model, **changes)


def test_wrong_settings_are_refused_before_models_are_loaded(model, tmp_path):
    """Settings, runs and models that do not exist are one sentence."""
    with pytest.raises(ConfigError, match="method must be a known one"):
        Solver(model, method="mtcs")
    with pytest.raises(CheckpointError, match="must hold"):
        Solver(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        Solver("./nothing")


def test_unknown_changes_of_a_call_are_refused(solver):
    """A misspelt change is named."""
    with pytest.raises(ConfigError, match="got 'sead'"):
        solver("1+1", sead=1)


def test_a_question_beyond_the_context_is_an_error(solver):
    """Nothing was asked, so there is no solution without an answer; in a list the others are answered."""
    with pytest.raises(BackendError, match="question: must be asked: all"):
        solver("1+1=" * 200)
    good, bad = solver(["1+1", "1+1=" * 200])
    assert good.answer is not None
    assert bad.result.failures.all_failed


def test_a_closed_solver_says_so(model):
    """After ``close`` the models are gone."""
    solver = Solver(model, overrides=SHORT)
    solver.close()
    with pytest.raises(ConfigError, match="it was closed"):
        solver("1+1")


def test_a_tool_ends_with_its_solver(model, tmp_path):
    """The process that runs a tool, which tells its id, is gone after ``close``."""
    (tmp_path / "tools.py").write_text("import os\ndef pid(step):\n    return f'<{os.getpid()}>'\n")
    overrides = [*SHORT, f"search.tool={tmp_path / 'tools.py'}:pid", 'format.steps="tokens"', "format.step_tokens=4"]
    with Solver(model, simulations=8, overrides=overrides) as solver:
        texts = solver("1+1").result.tree.given_texts
    (pid,) = {int(each) for each in re.findall(r"<(\d+)>", "".join(texts))}
    give_up_at = time.monotonic() + 30
    while is_running(pid):
        assert time.monotonic() < give_up_at, "the tool outlived its solver"
        time.sleep(0.02)


def test_an_interrupt_leaves_no_search_behind(solver, monkeypatch):
    """A call that is interrupted ends its searches, and the next one finds what it always finds."""
    expected = facts(solver("1+1"))
    turn, turns = SearchSession.turn, []

    def interrupted(session):
        turns.append(None)
        if len(turns) == 3:
            raise KeyboardInterrupt
        return turn(session)

    with monkeypatch.context() as patch:
        patch.setattr(SearchSession, "turn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            solver(["1+1", "2+2"])
    assert len(solver._session) == 0
    assert facts(solver("1+1")) == expected


def test_an_interrupt_in_the_middle_of_an_update_is_one_as_well(solver, monkeypatch):
    """Then a search may not be ended: the interrupt is what the caller sees, and the next question loads the models again."""
    expected = facts(solver("1+1"))

    def interrupted(session):
        raise KeyboardInterrupt

    def broken(session, ticket, reason):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(SearchSession, "turn", interrupted)
        patch.setattr(SearchSession, "end", broken)
        with pytest.raises(KeyboardInterrupt):
            solver("1+1")
    assert facts(solver("1+1")) == expected


def test_threads_wait_for_each_other(solver):
    """Each finds what it finds alone."""
    questions = ["1+1", "2+2"]
    expected = [facts(solver(question)) for question in questions]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda question: facts(solver(question)), questions)) == expected


def test_progress_may_be_a_function(solver, capsys):
    """It is told how many questions are finished, of how many, and nothing is printed."""
    told = []
    solver((question for question in ("1+1", "2+2", "3+3")), progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("table", [pandas.DataFrame({"question": ["1+1"]}), {"question": "1+1"}])
def test_a_table_is_no_list_of_questions(solver, table):
    """Its names would be asked; a column of it is fine."""
    with pytest.raises(ConfigError, match=f"question: must be a text or several: got a {type(table).__name__} -- give the column"):
        solver(table)
    assert [solution.question for solution in solver(pandas.Series(["1+1"]))] == ["1+1"]


def test_a_failed_model_is_loaded_again(solver, monkeypatch):
    """After a failure of a backend as a whole, the next question opens it anew."""
    expected = facts(solver("1+1"))

    def failing(session):
        raise BackendError("the engine is gone")

    with monkeypatch.context() as patch:
        patch.setattr(SearchSession, "turn", failing)
        with pytest.raises(BackendError, match="the engine is gone"):
            solver("1+1")
    assert facts(solver("1+1")) == expected
