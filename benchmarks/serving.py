"""Load on ``stepladder serve``: a soak with the server's memory over time, and tokens/s beside ``Solver`` on the same questions.

    python -m benchmarks.serving soak --requests 10000 --clients 200 -- --policy DIR --prm DIR
    python -m benchmarks.serving speed --requests 200 -- --policy DIR --prm DIR

The options after ``--`` go to ``stepladder serve``. Without any, an untrained model of the embedded task is served. The soak mixes methods,
streams, choices, malformed requests and clients that go away. Its last line says whether every other request was answered.
"""

import argparse
import asyncio
import gc
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from stepladder import Solver, embedded

METHODS = ("mcts-4", "beam-3", "best-of-n-4", "uct-4")
TURNS = 9
SPEED: dict[str, Any] = {"simulations": 16}


@contextmanager
def served(options: Sequence[str]) -> Iterator[str]:
    """Start a server and yield its address; it is stopped at the end."""
    command = [sys.executable, "-m", "stepladder", "serve", "--port", "0", "--name", "m", "--max-waiting", "100000", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = iter(process.stderr.readline, "")
        url = next(found[1] for line in lines if (found := re.search(r"serving m at (http\S+)/v1", line)))
        # A pipe that nobody reads would fill up and stop the server.
        threading.Thread(target=lambda: sys.stderr.writelines(lines), daemon=True).start()
        yield url
    finally:
        process.terminate()
        process.wait(120)
        process.stderr.close()


@contextmanager
def model_options(given: Sequence[str]) -> Iterator[list[str]]:
    """Yield the given options of a server, or those of an untrained model of the embedded task."""
    if given:
        yield list(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        task = embedded.prepare(Path(folder) / "task", seed=0)
        form = embedded.settings(Path(folder) / "task")["format"]
        sets = [f"format.{name}={json.dumps(value)}" for name, value in form.items()]
        sets += ["search.max_step_tokens=12", "search.max_depth=6"]
        yield ["--policy", str(task.base_model), *(word for each in sets for word in ("--set", each))]


def question(number: int) -> str:
    """Return a question of the embedded task."""
    rng = random.Random(number)
    return f"{rng.randint(10000, 99999)} {''.join(rng.choice('ABFG') for _ in range(4))}"


def metrics(url: str) -> dict[str, float]:
    """Return the server's figures."""
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


async def one(client: httpx.AsyncClient, number: int, counts: Counter[str]) -> None:
    """Send one request of the soak, and count how it ended."""
    body: dict[str, Any] = {
        "model": f"m@{METHODS[number % len(METHODS)]}",
        "messages": [{"role": "user", "content": question(number)}],
        "seed": number,
        "stream": number % 5 == 1,
        "n": 2 if number % 11 == 3 else 1,
    }
    if number % 17 == 5:
        body["n"] = "many"
    leaves = number % 13 == 7
    try:
        reply = await client.post("/v1/chat/completions", json=body, timeout=httpx.Timeout(600, read=0.05 if leaves else 600))
    except httpx.TimeoutException:
        counts["went away" if leaves else "lost"] += 1
        return
    except httpx.TransportError:
        counts["lost"] += 1
        return
    whole = reply.text.endswith("data: [DONE]\n\n") if body["stream"] and reply.status_code == 200 else True
    counts[str(reply.status_code) if whole else "cut"] += 1


async def soak(url: str, *, requests: int, clients: int, every: int) -> Counter[str]:
    """Send all requests, so many at once, and print memory on the way."""
    counts: Counter[str] = Counter()
    numbers, begin = iter(range(requests)), time.monotonic()

    async def client_loop(client: httpx.AsyncClient) -> None:
        for number in numbers:
            await one(client, number, counts)
            if (number + 1) % every == 0:
                figures = await asyncio.to_thread(metrics, url)
                memory, seconds = figures["process_resident_memory_bytes"] / 2**20, time.monotonic() - begin
                tokens = figures["stepladder_generated_tokens_total"]
                print(f"{number + 1:>6} requests  {seconds:7.0f} s  {memory:7.1f} MiB  {tokens / seconds:9,.0f} tokens/s", flush=True)

    async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=None)) as client:
        await asyncio.gather(*(client_loop(client) for _ in range(clients)))
    return counts


async def ask_all(url: str, requests: int) -> int:
    """Ask all questions at once and return the tokens that were generated."""
    async with httpx.AsyncClient(base_url=url, timeout=3600, limits=httpx.Limits(max_connections=None)) as client:
        bodies = [
            {"model": "m", "messages": [{"role": "user", "content": question(number)}], "seed": 0, "stepladder": SPEED}
            for number in range(requests)
        ]
        replies = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for body in bodies))
    return sum(reply.json()["usage"]["completion_tokens"] for reply in replies)


def compare_speed(url: str, options: Sequence[str], requests: int) -> None:
    """Print tokens/s of the server and of ``Solver`` in turns, and their ratio."""
    words = list(options)
    values = [(words[i], words[i + 1]) for i in range(0, len(words), 2)]
    named = {name: [value for key, value in values if key == name] for name, _ in values}
    source = named.get("--policy", named.get("--run", [None]))[0]
    solver = Solver(source, prm=named.get("--prm", []), overrides=named.get("--set", []), **SPEED)
    questions = [question(number) for number in range(requests)]
    solver(questions)
    asyncio.run(ask_all(url, requests))
    # Else the collector would walk PyTorch and all trees in some turns and not in others.
    gc.freeze()
    ratios: list[tuple[float, float]] = []
    for turn in range(TURNS):
        alone = rates(lambda: sum(each.generated_tokens for each in solver(questions)), time.process_time)
        through = rates(lambda: asyncio.run(ask_all(url, requests)), lambda: metrics(url)["process_cpu_seconds_total"])
        ratios.append((through[0] / alone[0], through[1] / alone[1]))
        print(
            f"turn {turn}: Solver {alone[0]:,.0f} tokens/s, server {through[0]:,.0f}, ratio {ratios[-1][0]:.2f}; "
            f"per CPU second {alone[1]:,.0f} and {through[1]:,.0f}, ratio {ratios[-1][1]:.2f}",
            flush=True,
        )
    by_time, by_cpu = (median(column) for column in zip(*ratios, strict=True))
    print(f"median ratio {by_time:.2f}, per CPU second {by_cpu:.2f}")


def rates(work: Callable[[], int], cpu_s: Callable[[], float]) -> tuple[float, float]:
    """Return the tokens of some work per second, and per second of a process's CPU time. The latter holds on a machine with other work."""
    cpu, begin = cpu_s(), time.monotonic()
    tokens = work()
    return tokens / (time.monotonic() - begin), tokens / (cpu_s() - cpu)


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("soak", "speed"))
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--every", type=int, default=500)
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    chosen = parser.parse_args(words[:at])
    with model_options(words[at + 1 :]) as options, served(options) as url:
        if chosen.what == "speed":
            compare_speed(url, options, chosen.requests)
            return
        counts = asyncio.run(soak(url, requests=chosen.requests, clients=chosen.clients, every=chosen.every))
        figures = metrics(url)
        print(dict(counts), f"open searches at the end: {figures['stepladder_open_searches']:.0f}")
        print("none lost" if not counts["lost"] and not counts["cut"] else "requests were lost")


if __name__ == "__main__":
    main()
