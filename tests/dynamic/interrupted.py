"""A pass in a process of its own, killed after it has saved its state twice."""

import importlib
import os
import signal

from moe_probe.dynamic import saved_states


def run_and_kill(module, *arguments, **options):
    """Call `module.run(*arguments, **options)` in a fork of this process and kill it with SIGKILL on the way."""
    told, tells = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            save_always_and_tell(tells)
            importlib.import_module(module).run(*arguments, **options)
        finally:
            os._exit(1)
    os.close(tells)
    with os.fdopen(told, "rb") as pipe:
        assert pipe.read(2) == b"ss"
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def save_always_and_tell(pipe):
    """Every step saves the state, says so, and waits to be killed."""
    save = saved_states.SavedStates.save

    def slow(self, *arguments):
        save(self, *arguments)
        os.write(pipe, b"s")
        signal.sigtimedwait([], 0.5)

    saved_states.SECONDS = -1
    saved_states.SavedStates.save = slow
