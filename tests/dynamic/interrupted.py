"""A pass in a process of its own, killed after it has saved its state twice."""

import os
import signal
import subprocess
import sys

CODE = """
import sys, time
sys.path[:0] = {path!r}
import {module}
from moe_probe.dynamic import saved_states
saved_states.SECONDS = 0
save = saved_states.SavedStates.save
def slow(self, *arguments):
    save(self, *arguments)
    print("saved", flush=True)
    time.sleep(0.5)
saved_states.SavedStates.save = slow
{module}.run(*{arguments!r}, **{options!r})
"""


def run_and_kill(module, *arguments, **options):
    """Call `module.run(*arguments, **options)` and kill it with SIGKILL on the way."""
    code = CODE.format(path=[p for p in sys.path if p], module=module, arguments=arguments, options=options)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "saved\n"
        assert process.stdout.readline() == "saved\n"
        os.kill(process.pid, signal.SIGKILL)
