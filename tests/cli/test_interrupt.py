from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

#: A verb that never ends by itself, in place of a long run; the stubborn one does not stop when asked to either.
SCRIPT = """
import sys, time
import click
from mupd_wsi.cli import app, main

@click.command()
def wait():
    print("ready", flush=True)
    {body}

app.app.add_command(wait)
sys.argv = ["mupd-wsi", "wait"]
sys.exit(main())
"""
#: The signal comes while modules are still being imported.
EARLY = """
import sys, types

class Slow(types.ModuleType):
    def __getattr__(self, name):
        import time
        print("ready", flush=True)
        time.sleep(600)

sys.modules["mupd_wsi.cli.app"] = Slow("mupd_wsi.cli.app")
from mupd_wsi.cli import main
sys.exit(main())
"""
PATIENT = "time.sleep(600)"
STUBBORN = """
    while True:
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            pass
"""


@pytest.mark.parametrize("script", [SCRIPT.format(body=PATIENT), SCRIPT.format(body=STUBBORN), EARLY])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_a_signal_ends_the_command(script: str, number: signal.Signals, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == code
    assert shown.strip() == "mupd-wsi: stopped"


def test_sigint_is_obeyed_where_the_shell_ignores_it() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(body=PATIENT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=_ignore_sigint,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def _ignore_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
