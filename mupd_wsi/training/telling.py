"""What the command lines of training and measuring have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps

from mupd_wsi.errors import MupdError


def told_in_a_line(main: Callable[[], int]) -> Callable[[], int]:
    """A command line whose errors of ours end in one line on standard error, after its module's name, and exit code 3.

    Args:
        main: parses the words, works, returns the exit code.
    """

    @wraps(main)
    def telling() -> int:
        try:
            return main()
        except MupdError as error:
            spec = sys.modules[main.__module__].__spec__  # of what is run by "python -m", too
            name = "" if spec is None else spec.name.removesuffix(".__main__").rpartition(".")[-1]
            sys.stderr.write(f"{name}: error: {error}\n")
            return 3

    return telling
