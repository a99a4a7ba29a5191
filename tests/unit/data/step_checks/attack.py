"""Try everything that ``attacks`` lists, as whoever runs this file, and print what became of it as JSON.

It is run as a program, ``python -m tests.unit.data.step_checks.attack``, so that a test that runs as root can try all as another user, too.
With the argument ``first`` the sandbox uses no more than the first version of Landlock, as on the oldest kernels; how pieces end does not
depend on that, and is left out.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from stepladder.data.step_checks import sandbox
from tests.unit.data.step_checks.attacks import PRELUDE, RUNS, attempts

_ELSEWHERE = ["/dev/shm/stepladder-attack", "/tmp/stepladder-attack", "/etc/stepladder-attack", "/sys/fs/cgroup/stepladder-attack"]
_TRY_ALL = """
for name, code in {tries!r}.items():
    try:
        exec(code, dict(globals()))
    except BaseException as error:
        # Modules have their own kinds of the built-in errors.
        print(name, next(cls.__name__ for cls in type(error).__mro__ if cls.__module__ == "builtins"), sep="\\t")
    else:
        print(name, "nothing", sep="\\t")
"""


def make_world(folder: Path) -> dict[str, str]:
    """Make the files that attempts are after; return the names under which these see them."""
    places = {"folder": folder, "secret": folder / "secret", "target": folder / "target", "library": folder / "library" / "module.py"}
    places["library"].parent.mkdir(parents=True)
    for name in ("secret", "library"):
        places[name].write_text(f"the text of {name}\n" * 10)
        places[name].chmod(0o640)
        os.utime(places[name], ns=(10**18, 10**18))
        # Not every file system has these attributes.
        with suppress(OSError):
            os.setxattr(places[name], "user.mark", b"0")
    return {name: str(path) for name, path in places.items()}


def state_of(folder: Path) -> dict[str, Any]:
    """Return everything about a folder that code could change: names, contents, modes, owners, links, times of change, attributes."""
    found = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        state, attributes = path.lstat(), {}
        with suppress(OSError):
            attributes = {name: os.getxattr(path, name).hex() for name in os.listxattr(path)}
        content = path.read_text() if path.is_file() else ""
        about = [state.st_mode, state.st_uid, state.st_gid, state.st_nlink, state.st_size, state.st_mtime_ns, state.st_ctime_ns]
        found[str(path)] = [about, attributes, content]
    return found


def state_of_process(pid: int) -> list[Any]:
    """Return what code could change about a process; fails where it is gone."""
    nice, affinity, policy = os.getpriority(os.PRIO_PROCESS, pid), sorted(os.sched_getaffinity(pid)), os.sched_getscheduler(pid)
    return [nice, affinity, policy, Path(f"/proc/{pid}/limits").read_text(), Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"]


def try_all(folder: Path, *, port: int, bystander: int) -> dict[str, dict[str, str]]:
    """Try every attempt, one process a kind; return the name of the error of each, or ``nothing``, and what changed under ``world``."""
    table, before, codes, extra = attempts(), {}, {}, []
    for kind, tries in table.items():
        places: dict[str, Any] = {**make_world(folder / kind), "port": port, "parent": os.getpid(), "bystander": bystander, "own": "own"}
        extra.append(str(Path(places["library"]).parent))
        names = "".join(f"{name} = {value!r}\n" for name, value in places.items())
        codes[kind] = f"{PRELUDE}{names}open(own, 'w').close()\n{_TRY_ALL.format(tries={name: code for name, (code, _) in tries.items()})}"
        before[kind] = state_of(folder / kind)
    packages, readable = sandbox._installed()
    sandbox._installed = lambda: (packages, readable + extra)
    elsewhere, process = list(map(os.path.exists, _ELSEWHERE)), state_of_process(bystander)
    ended = {}
    for kind, run in zip(codes, sandbox.CodeSandbox(deadline_s=30, num_workers=2).run(list(codes.values())), strict=True):
        ended[kind] = dict(line.split("\t") for line in run.output.splitlines() if line.count("\t") == 1)
        changed = "" if state_of(folder / kind) == before[kind] else f"{before[kind]} became {state_of(folder / kind)}"
        ended[kind]["world"] = changed or ("" if run.passed else run.output)
    assert list(map(os.path.exists, _ELSEWHERE)) == elsewhere and state_of_process(bystander) == process
    return ended


def run_all() -> dict[str, dict[str, str]]:
    """Run every piece of code that ends its process, and return the reasons; ``passed`` where one passed."""
    ended: dict[str, dict[str, str]] = {}
    for kind, runs in RUNS.items():
        done = sandbox.CodeSandbox(deadline_s=1 if kind == "time" else 30, num_workers=2).run([code for code, _ in runs.values()])
        ended[kind] = {name: "passed" if run.passed else run.reason for name, run in zip(runs, done, strict=True)}
    return ended


def use_first_landlock(folder: Path) -> None:
    """Have the sandbox believe that the kernel is an old one."""
    worker, source = folder / "sandbox_worker.py", sandbox._WORKER.read_text()
    assert source.count("    if version < 1:") == 1
    worker.write_text(source.replace("    if version < 1:", "    version = min(version, 1)\n    if version < 1:"))
    sandbox._WORKER = worker


def main() -> None:
    """Try and run all, and print what became of it."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        if "first" in sys.argv[1:]:
            use_first_landlock(Path(folder))
        server.set_inheritable(True)
        bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            tried = try_all(Path(folder), port=server.getsockname()[1], bystander=bystander.pid)
            ended = {} if "first" in sys.argv[1:] else run_all()
        finally:
            assert bystander.poll() is None
            bystander.kill()
            bystander.communicate()
        server.settimeout(0)
        with suppress(BlockingIOError):
            server.accept()
            tried["network"]["world"] = "connected"
    print(json.dumps({"user": os.geteuid(), "attempts": tried, "runs": ended}))


if __name__ == "__main__":
    main()
