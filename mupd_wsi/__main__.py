"""``python -m mupd_wsi`` is the ``mupd-wsi`` command."""

from __future__ import annotations

import sys

from mupd_wsi.cli import main

if __name__ == "__main__":
    sys.exit(main())
