from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

#: A verb that never ends by itself, in place of a long run; STUBBORN one does not stop when asked to either.
SCRIPT = """
import sys, time
import click
from mupd_wsi.cli import app as module

@click.command()
def wait():
    print("ready", flush=True)
    {body}

module.app.add_command(wait)
sys.exit(module.main(["wait"]))
"""
PATIENT = "time.sleep(600)"
STUBBORN = """
    while True:
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            pass
"""


@pytest.mark.parametrize("body", [PATIENT, STUBBORN])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command(body: str, number: signal.Signals, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(body=body)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in shown


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
