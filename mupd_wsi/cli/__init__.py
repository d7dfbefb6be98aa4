"""The ``mupd-wsi`` command: one module a verb. It prints and maps errors to exit codes; the library does the work.

Exit codes: 0 done; 1 ``validate`` or ``doctor`` found something wrong, or a bug; 2 the request cannot be meant
(unknown option or target); 3 bad input or output; 130 stopped by Ctrl-C; 143 stopped by SIGTERM or SIGUSR1.
"""

from __future__ import annotations

from mupd_wsi.cli import interrupt


def main() -> int:
    """Run the command line of this process and return its exit code; does not return where a signal stopped it."""
    interrupt.install_handlers()
    try:
        # Imported here, so that a Ctrl-C during the imports is met as well.
        from mupd_wsi.cli.app import run

        return run()
    except KeyboardInterrupt as stop:
        interrupt.leave(stop)
