"""The project's folder, and the scripts of ``sample_data``, which is no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def load_script(name: str) -> Any:
    """Import a script of ``sample_data`` by its name."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "sample_data" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module
