"""The ``mupd-wsi`` command: one module a verb. It prints and maps errors to exit codes; the library does the work.

Exit codes: 0 done; 1 ``validate`` or ``doctor`` found something wrong, or a bug; 2 the request cannot be meant
(unknown option or target); 3 bad input or output; 130 stopped by Ctrl-C; 143 stopped by SIGTERM.
"""

from mupd_wsi.cli.app import main

__all__ = ["main"]
