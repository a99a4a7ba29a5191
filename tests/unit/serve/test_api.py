"""OpenAI's protocol, asked by the real ``openai`` client over loopback."""

import json

import httpx
import openai
import pytest

from stepladder.mcts.methods import METHODS, resolve_method
from stepladder.testing import ScriptedPolicy, make_step
from stepladder.types import Budget, StopReason
from tests.searches import PROVENANCE
from tests.served import GatedPolicy, ScriptedSession, ServedRenderer, serving


@pytest.fixture(scope="module")
def served():
    """Serve scripted models."""
    with serving() as served:
        yield served


@pytest.fixture(scope="module")
def client(served):
    """Connect the client."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


def ask(client, question="q1", *, model="demo", seed=3, **fields):
    """Ask a question."""
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": question}], seed=seed, **fields)


def expected(question="q1", *, method="mcts", seed=3, simulations=16, prompt=None, **options):
    """Search a question without a server."""
    session = ScriptedSession()
    budget = Budget(num_simulations=simulations, max_depth=6)
    ids = ServedRenderer().encode(prompt or f"{question}\n")
    session.begin(question, method=resolve_method(method, **options), budget=budget, seed=seed, prompt_ids=ids)
    while True:
        for _, result in session.turn():
            return result


def text_of(result):
    """Return the solution of a search."""
    tree, node, texts = result.tree, result.answer_node, []
    while node:
        texts.append(tree.texts[node])
        node = tree.parents[node]
    return "".join(reversed(texts))


def test_an_answer_is_that_of_a_search(client):
    """Text, usage and facts are those of the same search without a server."""
    reply, result = ask(client), expected()
    (choice,) = reply.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == text_of(result) != ""
    assert choice.finish_reason == "stop"
    assert reply.usage.prompt_tokens == len(result.tree.prompt_ids)
    assert reply.usage.completion_tokens == result.tree.generated_tokens
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    shown = len(choice.message.content)
    assert reply.usage.completion_tokens_details.reasoning_tokens == result.tree.generated_tokens - shown
    facts = choice.stepladder
    assert facts["answer"] == result.answer
    assert facts["votes"] == result.votes
    assert facts["score"] == result.tree.scores[result.answer_node]
    assert facts["confidence"] == pytest.approx(result.votes[result.answer] / sum(result.votes.values()))
    assert (facts["complete"], facts["stop_reason"], facts["method"]) == (True, "simulations", "mcts")
    assert "".join(step["text"] for step in facts["steps"]) == choice.message.content
    assert "tree" not in facts


def test_a_seed_repeats_an_answer_and_none_is_another_one(client):
    """With a seed the reply repeats; without one the server draws it, and says which."""
    assert ask(client).choices[0].stepladder["votes"] == ask(client).choices[0].stepladder["votes"]
    first, second = (ask(client, seed=None).choices[0].stepladder for _ in range(2))
    assert first["seed"] != second["seed"]
    again = ask(client, seed=first["seed"]).choices[0].stepladder
    assert again["votes"] == first["votes"]


def test_n_choices_are_searches_of_their_own(client):
    """Each choice has a seed of its own; the first is that of the request, and usage counts all of them."""
    reply = ask(client, n=3)
    seeds = [choice.stepladder["seed"] for choice in reply.choices]
    assert seeds[0] == 3 and len(set(seeds)) == 3
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    for choice in reply.choices:
        assert choice.message.content == text_of(expected(seed=choice.stepladder["seed"]))
    assert reply.usage.completion_tokens == sum(choice.stepladder["generated_tokens"] for choice in reply.choices)
    assert reply.usage.prompt_tokens == len("q1\n")


@pytest.mark.parametrize(
    ("name", "method", "budget"),
    [
        ("demo@beam", "beam", {}),
        ("demo@mcts-5", "mcts", {"simulations": 5}),
        ("demo@best-of-n-7", "best-of-n", {"simulations": 7}),
        ("demo@x1:code-4", "x1:code", {"simulations": 4}),
    ],
)
def test_a_models_name_names_the_search(client, name, method, budget):
    """Method and simulations come from the name."""
    facts, result = ask(client, model=name).choices[0].stepladder, expected(method=method, **budget)
    assert facts["method"] == method
    assert facts["simulations"] == result.tree.num_simulations
    assert facts["votes"] == result.votes


def test_a_models_name_may_name_tokens(client):
    """``-Nt`` is a budget of tokens."""
    facts = ask(client, model="demo@mcts-60t").choices[0].stepladder
    assert facts["stop_reason"] == "tokens"
    assert 30 < facts["generated_tokens"] <= 60


def test_extra_fields_name_the_search(client):
    """Field ``stepladder`` goes over the name; the tree comes on request."""
    extra = {"stepladder": {"method": "beam", "simulations": 4, "options": {"num_children": 2}, "tree": True}}
    facts = ask(client, model="demo@mcts-9", extra_body=extra).choices[0].stepladder
    result = expected(method="beam", simulations=4, num_children=2)
    assert facts["tree"] == json.loads(json.dumps(result.tree.to_dict()))


def test_models_are_listed(client):
    """Every method has a name, and each can be looked up."""
    names = [model.id for model in client.models.list()]
    assert names == ["demo", *(f"demo@{method}" for method in METHODS)]
    assert client.models.retrieve("demo@mcts-64").id == "demo@mcts-64"
    with pytest.raises(openai.NotFoundError, match="no search method 'mtcs' -- did you mean 'mcts'"):
        client.models.retrieve("demo@mtcs-64")


@pytest.mark.parametrize("prompt", ["q1 is\n", list(map(ord, "q1 is\n"))])
def test_a_prompt_is_continued_as_it_is(client, prompt):
    """A prompt of text or token ids goes to the policy without the template."""
    reply = client.completions.create(model="demo", prompt=prompt, seed=3)
    result = expected("q1 is\n", prompt="q1 is\n")
    assert reply.choices[0].text == text_of(result)
    assert reply.usage.prompt_tokens == len("q1 is\n")


def test_several_prompts_have_n_choices_each(client):
    """Choices are ordered by prompt, as in the protocol; usage counts each prompt once."""
    reply = client.completions.create(model="demo", prompt=["q1\n", "q22\n"], n=2, seed=3)
    seeds = [choice.stepladder["seed"] for choice in reply.choices]
    assert seeds[:2] == seeds[2:]
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.choices[2].text == text_of(expected("q22\n", prompt="q22\n"))
    assert reply.usage.prompt_tokens == len("q1\n") + len("q22\n")
    ids = client.completions.create(model="demo", prompt=[list(map(ord, "q1\n")), list(map(ord, "q22\n"))], n=2, seed=3)
    assert [choice.text for choice in ids.choices] == [choice.text for choice in reply.choices]


def test_a_conversation_is_a_prompt_of_its_messages(client):
    """System messages and earlier turns reach the policy."""
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "q1"}]}]
    reply = client.chat.completions.create(model="demo", messages=messages, seed=3)
    prompt = "system: be brief\nuser: q1\n"
    assert reply.usage.prompt_tokens == len(prompt)
    assert reply.choices[0].message.content == text_of(expected("be brief\n\nq1", prompt=prompt))


def test_stop_texts_end_what_is_shown(client):
    """The text ends before the first stop text, and tokens are what the search spent."""
    whole = ask(client).choices[0].message.content
    stop = whole[2:4]
    cut = ask(client, stop=["@", stop])
    assert cut.choices[0].message.content == whole[: whole.find(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens == ask(client).usage.completion_tokens


def test_max_tokens_cuts_in_whole_steps(client):
    """The shown solution has at most so many tokens, in whole steps."""
    whole = ask(client).choices[0]
    steps = [step["text"] for step in whole.stepladder["steps"]]
    cut = ask(client, max_tokens=len(whole.message.content) - 1).choices[0]
    assert cut.message.content == "".join(steps[:-1])
    assert cut.finish_reason == "length"
    assert ask(client, max_completion_tokens=len(whole.message.content)).choices[0].message.content == whole.message.content


def test_logprobs_are_those_of_the_shown_tokens(client):
    """Chat and completions give every token of the solution with its log-probability."""
    chat = ask(client, logprobs=True, top_logprobs=2).choices[0]
    tokens = chat.logprobs.content
    assert "".join(token.token for token in tokens) == chat.message.content
    assert bytes(tokens[0].bytes).decode() == tokens[0].token
    assert all(token.logprob < 0 for token in tokens)
    plain = client.completions.create(model="demo", prompt="q1\n", seed=3, logprobs=1, stop=chat.message.content[3]).choices[0]
    assert "".join(plain.logprobs.tokens) == plain.text == chat.message.content[:3][: len(plain.text)]
    assert plain.logprobs.token_logprobs == [token.logprob for token in tokens[: len(plain.text)]]
    assert plain.logprobs.text_offset == list(range(len(plain.text)))
    assert ask(client).choices[0].logprobs is None


@pytest.mark.parametrize("fields", [{}, {"stop": ["b"]}, {"max_tokens": 5}, {"n": 2}, {"logprobs": True}])
def test_a_stream_adds_up_to_the_whole_reply(client, fields):
    """Deltas, finish reasons, facts and usage of a stream are those of the reply in one piece."""
    whole = ask(client, **fields)
    texts, ends, usage = {}, {}, None
    for chunk in ask(client, stream=True, stream_options={"include_usage": True}, **fields):
        assert chunk.object == "chat.completion.chunk"
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason is not None:
                ends[choice.index] = choice
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    for choice in whole.choices:
        end = ends[choice.index]
        assert end.finish_reason == choice.finish_reason
        assert end.stepladder["votes"] == choice.stepladder["votes"]
        assert end.logprobs == choice.logprobs or end.logprobs.content == choice.logprobs.content
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_a_stream_of_completions(client):
    """The other kind of reply is streamed, too."""
    whole = client.completions.create(model="demo", prompt="q1\n", seed=3)
    chunks = list(client.completions.create(model="demo", prompt="q1\n", seed=3, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize(("stop", "shown"), [(None, "first\n"), (["t\n!"], "firs"), (["x"], "first\n")])
def test_settled_steps_come_before_the_end(stop, shown):
    """A step is sent as soon as every solution still possible contains it; a stop text is held back until it is sure."""
    lines = ["first\n", "second\n", "=3"]

    def scripted(prefix_ids, index, seed):
        depth = "".join(map(chr, prefix_ids)).count("\n") - 1
        return make_step(lines[depth], stop_reason=StopReason.END if depth == 2 else StopReason.STEP)

    policy = GatedPolicy(scripted)
    with (
        serving(lambda: ScriptedSession(policy)) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
        ask(client, stream=True, stop=stop) as chunks,
    ):
        policy.release(1)
        first = next(chunks).choices[0]
        assert (first.delta.role, first.delta.content) == ("assistant", shown)
        assert first.stepladder == {"answer": None, "generated_tokens": 4 * len("first\n"), "simulations": 1, "complete": False}
        policy.release(2)
        rest = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert first.delta.content + rest == "first\nsecond\n=3"


def test_no_answer_is_a_reply_that_says_so():
    """Without an answer the text is that of the most visited path, cut."""
    policy = ScriptedPolicy(lambda prefix, index, seed: make_step("on\n"))
    with (
        serving(lambda: ScriptedSession(policy)) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
    ):
        (choice,) = ask(client, "no").choices
    assert choice.finish_reason == "length"
    assert choice.message.content.startswith("on\non\n")
    assert choice.stepladder["answer"] is None
    assert choice.stepladder["confidence"] is None


def test_a_policy_that_gives_nothing_is_an_error(client):
    """Samples that all fail are a fault of the policy's side, with its message."""
    policy = ScriptedPolicy({})
    with (
        serving(lambda: ScriptedSession(policy)) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.InternalServerError, match="prefix is not in the table") as raised,
    ):
        ask(client)
    assert raised.value.status_code == 502
    assert raised.value.body["code"] == "policy_failed"


def test_metrics_are_prometheus_text(served, client):
    """Every line is a comment or a sample, and requests and tokens are counted."""
    before = metrics(served)
    reply = ask(client, n=2)
    after = metrics(served)
    assert after["stepladder_generated_tokens_total"] - before.get("stepladder_generated_tokens_total", 0) == reply.usage.completion_tokens
    name = 'stepladder_searches_total{ended="simulations",method="mcts"}'
    assert after[name] - before.get(name, 0) == 2
    assert after["stepladder_search_seconds_count"] == after['stepladder_search_seconds_bucket{le="+Inf"}']
    assert after["process_resident_memory_bytes"] > 1e6 if "process_resident_memory_bytes" in after else True


def metrics(served):
    """Return the samples by name and labels."""
    text = httpx.get(f"{served.url}/metrics").text
    samples = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in samples}


def test_health(served):
    """A server that can take searches is healthy."""
    reply = httpx.get(f"{served.url}/health")
    assert reply.status_code == 200
    assert reply.json()["status"] == "ok"


def test_the_provenance_of_a_tree_has_the_seed(client):
    """A tree on request names the seed of its search."""
    facts = ask(client, seed=11, extra_body={"stepladder": {"tree": True}}).choices[0].stepladder
    assert facts["tree"]["provenance"]["seed"] == 11 != PROVENANCE.seed
