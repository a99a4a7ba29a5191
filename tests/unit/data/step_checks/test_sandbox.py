"""Model-written code: what it may do, real attempts at what it may not, and machines that cannot sandbox it."""

import os
import resource
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from stepladder.data.step_checks import sandbox
from stepladder.data.step_checks.sandbox import CodeSandbox, check_sandbox, run_code
from stepladder.data.step_checks.sandbox_worker import largest_size
from stepladder.errors import BackendError, ConfigError
from tests.locks import needs_locks

ALLOWED = {
    "state": "a = 2\ndef f(x):\n    return g(x)\ndef g(x):\n    return x + a\nprint(f(1))",
    "standard library": "import math, fractions, itertools, json, re, decimal, statistics\nprint(math.comb(5, 2) - 7)",
    "an installed package": "import numpy as np\nprint(int(np.linalg.det(np.eye(2))) + 2)",
    "own files": "open('a', 'w').write('3')\nimport os\nassert os.listdir('.') == ['a']\nprint(open('a').read())\nos.remove('a')",
    "long": f"x = '{'a' * 300_000}'\nprint(len(x) // 100_000)",
    "annotations are evaluated": "def f(x: 1 + 2): pass\nprint(f.__annotations__['x'])",
    "another output": "import io, sys\nprint(3)\nsys.stdout = io.StringIO()\nprint(4)",
    "no output": "import sys\nprint(3)\nsys.stdout = None",
    "read the empty input": "print(open(0).read() + '3')",
}
ATTACKS = {
    "read a file": ("print(open({secret!r}).read())", "failed"),
    "read a file of the system": ("print(open('/etc/hostname').read())", "failed"),
    "read a file through a link": ("import os\nos.symlink({secret!r}, 'a')\nprint(open('a').read())", "failed"),
    "list a folder": ("import os\nprint(os.listdir({folder!r}))", "failed"),
    "write a file": ("open({target!r}, 'w').write('x')", "failed"),
    "empty a file by access mode 3": ("import os\nos.open({secret!r}, 3 | os.O_TRUNC)", "failed"),
    "empty a file without writing": ("import os\nos.open({secret!r}, os.O_RDONLY | os.O_TRUNC)", "failed"),
    "move a file out": ("import os\nopen('a', 'w').close()\nos.rename('a', {target!r})", "failed"),
    "delete a file": ("import os\nos.remove({secret!r})", "failed"),
    "change a mode": ("import os\nos.chmod({secret!r}, 0)", "failed"),
    "make a folder": ("import os\nos.mkdir('a')", "failed"),
    "read the parent's environment": ("import os\nprint(open(f'/proc/{{os.getppid()}}/environ').read())", "failed"),
    "read the environment": ("import os\nprint(os.environ['STEPLADDER_SECRET'])", "failed"),
    "connect": ("import socket\nsocket.create_connection(('127.0.0.1', {port}))", "failed"),
    "connect natively": ("import ctypes\nassert ctypes.CDLL(None).syscall(41, 2, 1, 0) >= 0", "failed"),
    "fork": ("import os\nwhile True:\n    os.fork()", "failed"),
    "fork natively": ("import ctypes\nwhile True:\n    assert ctypes.CDLL(None).syscall(57) >= 0", "failed"),
    "fork by the other calling convention": ("import ctypes\nassert ctypes.CDLL(None).syscall(0x40000039) >= 0", "failed"),
    "start a thread": ("import threading\nthreading.Thread(target=print).start()", "failed"),
    "start a program": ("import subprocess\nsubprocess.run(['touch', {target!r}])", "failed"),
    "become a program": ("import os\nos.execv('/bin/sh', ['sh', '-c', 'true'])", "failed"),
    "kill the parent": ("import os\nos.kill(os.getppid(), 9)", "failed"),
    "kill its group": ("import os\nos.kill(0, 9)", "failed"),
    "signal the parent through a file": ("import fcntl, os\nfcntl.fcntl(1, fcntl.F_SETOWN, os.getppid())", "failed"),
    "read the parent's memory": ("import ctypes, os\nassert ctypes.CDLL(None).syscall(310, os.getppid(), 0, 0, 0, 0, 0) >= 0", "failed"),
    "leave its session": ("import os\nos.setpgid(0, 0)", "failed"),
    "raise a limit": ("import resource\nresource.prlimit(0, resource.RLIMIT_AS, (-1, -1))", "failed"),
    "take much memory": ("x = bytearray(1 << 34)", "failed"),
    "take much memory slowly": ("x = []\nwhile True:\n    x.append(bytearray(1 << 24))", "failed"),
    "write a huge file": ("f = open('a', 'wb')\nwhile True:\n    f.write(bytes(1 << 20))", "failed"),
    "write many files": ("i = 0\nwhile True:\n    i += 1\n    open(str(i), 'w').write('x')", "overfull"),
    "print for ever": ("while True:\n    print('x' * 10000)", "overfull"),
    "read input": ("input()", "failed"),
    "compute for ever": ("while True:\n    pass", "timeout"),
    "compute for ever in C": ("9**9**9**9", "timeout"),
    "ignore the deadline": ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True:\n    pass", "killed"),
    "wait for ever": ("import time\ntime.sleep(1000)", "timeout"),
    "crash": ("import ctypes\nctypes.string_at(0)", "killed"),
    "an error": ("1 / 0", "failed"),
    "another exit status": ("import sys\nsys.exit(3)", "failed"),
    "exit with status 0": ("import sys\nprint(3)\nsys.exit()", "failed"),
    "no Python": ("x = (", "failed"),
    "no text": ("print('\ud800')", "failed"),
}
ENDLESS = {"compute for ever", "compute for ever in C", "ignore the deadline", "wait for ever"}
"""Attacks that only the deadline ends."""


@needs_locks
@pytest.mark.parametrize("name", ALLOWED)
def test_code_runs(name):
    """Functions see each other and the state before them; libraries, own files and a clean exit are fine; each prints a 3."""
    assert run_code(ALLOWED[name], deadline_s=5) == (True, "ran", "3\n")


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """Run every attack once, four at a time, and give what became of each with what they were after.

    Only those that would never end have a short deadline: on a slow machine a gigabyte of memory takes longer than that to fill.
    """
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as server:
        patch.setenv("STEPLADDER_SECRET", "secret")
        folder = tmp_path_factory.mktemp("outside")
        (folder / "secret").write_text("secret")
        places = {"folder": str(folder), "secret": str(folder / "secret"), "target": str(folder / "target")}
        codes = {name: code.format(**places, port=server.getsockname()[1]) for name, (code, _) in ATTACKS.items()}
        runs = {}
        for deadline_s, names in ((1, ENDLESS), (30, ATTACKS.keys() - ENDLESS)):
            runs |= zip(names, CodeSandbox(deadline_s=deadline_s).run([codes[name] for name in names]), strict=True)
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
        yield runs, folder


@needs_locks
def test_only_the_folders_of_packages_can_be_read(tmp_path, monkeypatch):
    """A folder on the path is one of installed packages if it lies in theirs, and not if its name only begins like theirs."""
    packages, private = tmp_path / "site-packages", tmp_path / "site-packages-private"
    for folder in (packages / "inner", private):
        folder.mkdir(parents=True)
        (folder / "place.py").write_text("print('read')")
    monkeypatch.setattr(sandbox.site, "getsitepackages", lambda: [str(packages)])
    monkeypatch.setattr(sys, "path", [*sys.path, str(packages / "inner"), str(private)])
    sandbox._installed.cache_clear()
    try:
        assert sandbox._installed()[0] == [str(packages), str(packages / "inner")]
        inner, outer = (
            run_code(f"print(open({str(folder / 'place.py')!r}).read())", deadline_s=30) for folder in (packages / "inner", private)
        )
    finally:
        sandbox._installed.cache_clear()
    assert inner.passed and outer.reason == "failed" and "PermissionError" in outer.output


@needs_locks
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_fails_and_leaves_nothing_behind(attacked, name):
    """Every attempt ends as stated, tells nothing, and finds the world outside as it was; no connection came in."""
    runs, folder = attacked
    run = runs[name]
    assert not run.passed and run.reason == ATTACKS[name][1], run
    assert "secret\n" not in run.output and len(run.output) <= 8192
    assert [path.name for path in folder.iterdir()] == ["secret"]
    assert (folder / "secret").read_text() == "secret" and (folder / "secret").stat().st_mode & 0o400


@needs_locks
def test_scratch_is_gone_and_starts_empty(tmp_path, monkeypatch):
    """What one piece writes, no other finds, and nothing of it stays."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run_code("open('a', 'w').write('x')", deadline_s=5).passed
    assert run_code("import os\nassert not os.listdir('.')", deadline_s=5).passed
    assert list(tmp_path.iterdir()) == []


@needs_locks
def test_the_same_code_gives_the_same_result_and_is_run_once():
    """Hashes of texts are the same in every process; a piece given twice, in one call or two, has one result, cut where it is long."""
    order = "print(hash('a'), list({'x', 'y', 'z', 'u', 'v'}))"
    assert run_code(order, deadline_s=5) == run_code(order, deadline_s=5)
    runner, clock = CodeSandbox(), "import time\nprint(time.time_ns(), '.' * 20000)"
    first, other, again = runner.run([clock, "print(1)", clock])
    assert first == again == runner.run([clock])[0] != other
    assert len(first.output) == 8192 and runner.run([]) == []


@needs_locks
def test_an_end_of_output_is_not_the_end_of_the_code():
    """Code that closes its output and fails later has failed."""
    assert run_code("import os\nos.close(1)\nos.close(2)\nos._exit(4)", deadline_s=5) == (False, "failed", "")


@pytest.fixture
def unlocked(tmp_path, monkeypatch):
    """A worker on a machine whose system calls it does not know."""
    worker = tmp_path / "sandbox_worker.py"
    source = Path(sandbox._WORKER).read_text()
    assert '"x86_64"' in source
    worker.write_text(source.replace('"x86_64"', '"another"'))
    monkeypatch.setattr(sandbox, "_WORKER", worker)
    check_sandbox.cache_clear()
    yield tmp_path / "written"
    check_sandbox.cache_clear()


def test_nothing_runs_where_it_cannot_be_sandboxed_unless_that_is_allowed(unlocked):
    """Without a lock there is one clear error, before and at the run; with the user's word the code runs, with a limit on its time."""
    with pytest.raises(ConfigError, match=r"sandbox: code that a model wrote must be sandboxed .* or set allow_unsandboxed"):
        CodeSandbox()
    code = f"open({str(unlocked)!r}, 'w').close()"
    with pytest.raises(BackendError, match="must be sandboxed"):
        run_code(code, deadline_s=5)
    assert not unlocked.exists()
    runner = CodeSandbox(deadline_s=1, allow_unsandboxed=True)
    assert [run.reason for run in runner.run(["1 / 0", "x = 1", "while True: pass"])] == ["failed", "ran", "timeout"]


def test_children_of_code_that_was_not_sandboxed_die_with_it(unlocked):
    """A child that holds the output and outlives its parent does not hold up the search, and is killed."""
    if os.geteuid() != 0:
        pytest.skip("only root is exempt from the limit on processes")
    code = """
        import os, time
        child = os.fork()
        if not child:
            time.sleep(1000)
        print(child)
    """
    run = run_code(textwrap.dedent(code), deadline_s=5, allow_unsandboxed=True)
    stat, patience = Path(f"/proc/{int(run.output)}/stat"), time.monotonic() + 20
    # A killed process takes a moment to end, and is then a zombie until the init process takes note.
    while stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < patience
        time.sleep(0.01)


def test_settings_and_interpreters_that_cannot_be(monkeypatch, tmp_path):
    """Numbers out of range, and an interpreter that does not start, are said."""
    for wrong in ({"deadline_s": 0}, {"num_workers": 0}):
        with pytest.raises(ConfigError, match="deadline_s and num_workers >= 1"):
            CodeSandbox(**wrong, allow_unsandboxed=True)
    broken = tmp_path / "worker.py"
    broken.write_text("raise SystemExit('broken')")
    monkeypatch.setattr(sandbox, "_WORKER", broken)
    with pytest.raises(BackendError, match=f"status 1 and .*broken.* -- check {sys.executable!r}"):
        run_code("", deadline_s=5)
    with ThreadPoolExecutor(4) as pool:
        told = [pool.submit(run_code, "", deadline_s=5).exception() for _ in range(8)]
    assert {type(error) for error in told} == {BackendError}, "threads that share the server are told alike"
    server = sandbox.CodeServer()
    assert server.startup_error() == server.startup_error()


@needs_locks
def test_computing_takes_its_time_on_a_busy_machine():
    """Code gets its CPU seconds beside many busy processes, however long the wait for a processor is."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4 * (os.cpu_count() or 1))]
    try:
        began = time.monotonic()
        code = "import time\nwhile time.process_time() < 0.7:\n    pass"
        assert run_code(code, deadline_s=1).reason == "ran"
        if time.monotonic() - began <= 1.0:
            pytest.skip("the machine gave the code a processor at once")
    finally:
        for process in busy:
            process.kill()
            process.wait()


@needs_locks
@pytest.mark.parametrize("nap_s", [0.5, 0.01])
def test_sleeping_ends_at_the_deadline(nap_s):
    """Code that wakes now and then has the deadline's seconds, no multiple of them; a shorter sleep is fine."""
    began = time.monotonic()
    assert run_code(f"import time\nwhile True:\n    time.sleep({nap_s})", deadline_s=2).reason == "timeout"
    assert 1.5 < time.monotonic() - began < 10
    assert run_code("import time\ntime.sleep(0.5)", deadline_s=2).passed


@needs_locks
def test_an_exit_function_is_part_of_the_run():
    """What exit functions print belongs to the output, and they run once."""
    assert run_code("import atexit\natexit.register(print, 2)\nprint(1)", deadline_s=5) == (True, "ran", "1\n2\n")


@needs_locks
@pytest.mark.parametrize("length", [8175, 8191, 8192, 8193, 8210, 70_000])
def test_the_mark_of_success_is_no_part_of_the_output(length):
    """Around the cut, and far beyond it, the output holds what was printed and nothing else."""
    run = run_code(f"import sys\nsys.stdout.write('x' * {length})", deadline_s=5)
    assert run.passed and run.output == "x" * min(length, 8192)


@needs_locks
def test_the_process_has_no_rights_left(tmp_path, monkeypatch):
    """Seen from outside: no capability of any set, no new privileges, two filters, no core, and no descriptor but the standard ones."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = {}

    def look():
        end = time.monotonic() + 60
        while not seen and time.monotonic() < end:
            for path in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    if (path / "cwd").readlink().is_relative_to(tmp_path) and "Seccomp_filters:\t2" in (
                        status := (path / "status").read_text()
                    ):
                        seen["status"] = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
                        limits = (path / "limits").read_text().splitlines()
                        seen["core"] = next(line.split()[4:6] for line in limits if line.startswith("Max core file size"))
                        seen["descriptors"] = sorted(link.name for link in (path / "fd").iterdir())

    looking = threading.Thread(target=look)
    looking.start()
    assert run_code("import time\ntime.sleep(2)", deadline_s=5).passed
    looking.join()
    status = seen["status"]
    wanted = ["CapInh", "CapPrm", "CapEff", "CapAmb", *(["CapBnd"] if os.geteuid() == 0 else [])]
    assert {name: int(status[name], 16) for name in wanted} == dict.fromkeys(wanted, 0)
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2" and seen["descriptors"] == ["0", "1", "2"]
    # One byte stops the machine's crash handler, too; who starts with none cannot raise it.
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    assert seen["core"] == ["0" if hard == 0 else "1"] * 2


@needs_locks
def test_files_are_counted_where_no_call_can_be_listened_to(tmp_path, monkeypatch):
    """In a container that listens to its processes' calls itself, too many files still end a piece."""
    worker, source = tmp_path / "sandbox_worker.py", Path(sandbox._WORKER).read_text()
    listens = "return _filter(libc, _LISTENING_FILTER, _NEW_LISTENER)"
    assert source.count(listens) == 1
    worker.write_text(source.replace(listens, "return -1"))
    monkeypatch.setattr(sandbox, "_WORKER", worker)
    assert run_code("open('a', 'w')", deadline_s=5).passed
    assert run_code("i = 0\nwhile True:\n    i += 1\n    open(str(i), 'w').close()", deadline_s=20).reason == "overfull"


@needs_locks
def test_code_holds_what_the_bounds_allow():
    """Four files of 15 MB, or a new file of that size again and again, or many small files, are fine; shared memory is no file."""
    assert run_code("for i in range(4):\n    open(str(i), 'wb').write(bytes(15 << 20))", deadline_s=20).passed
    assert run_code("import os\nfor i in range(20):\n    open('a', 'wb').write(bytes(15 << 20))\n    os.remove('a')", deadline_s=20).passed
    assert run_code("for i in range(255):\n    open(str(i), 'w').write('x' * 200_000)", deadline_s=20).passed
    assert run_code("import mmap\nx = [mmap.mmap(-1, 1 << 20) for _ in range(20)]\nopen('a', 'w')", deadline_s=20).passed


@pytest.mark.parametrize("sizes", [[0], [0, 0], [7, 0], [4, 0, 7], [4, 4, 0], [6, 6, 0], [9, 9, 0], [13, 0], [3, 3, 3, 0]])
def test_files_share_the_disk(sizes):
    """The size is the largest to which all smaller files can grow within the total; it is negative where there is none."""
    fitting = [size for size in range(13) if sum(max(size, other) for other in sizes) <= 12]
    assert max(largest_size(sizes, 12), -1) == max(fitting, default=-1)
