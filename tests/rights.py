"""Commands for which the rights of files hold: root, who may read and write everything, gives that up first."""

import ctypes
import os
import signal
import subprocess
import sys

_PR_CAPBSET_DROP = 24
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1, 2


def stepladder_without_privileges(*arguments: object) -> subprocess.CompletedProcess:
    """Run the command line to its end, as the owner of files who has no more rights than their modes give."""
    command = [sys.executable, "-m", "stepladder", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
        preexec_fn=_give_up if not os.geteuid() else None,
    )


def _give_up() -> None:
    """Take two capabilities out of the set from which root gets its own when a program starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (_DAC_OVERRIDE, _DAC_READ_SEARCH):
        if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "capabilities must be droppable")
