"""litgpt's ``Config`` without the rest of litgpt.

Importing the package ``litgpt`` brings Lightning, torchmetrics and transformers: seconds and 230 MB that a slice or an
export has no use for. ``litgpt/config.py`` itself needs nothing but PyYAML, and is registered under its own name, so
that a later ``import litgpt`` finds the same class.
"""

import importlib.util
import sys
from pathlib import Path

if "litgpt.config" not in sys.modules:
    _package = importlib.util.find_spec("litgpt")
    assert _package and _package.submodule_search_locations
    _file = Path(_package.submodule_search_locations[0]) / "config.py"
    _spec = importlib.util.spec_from_file_location("litgpt.config", _file)
    assert _spec and _spec.loader
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["litgpt.config"] = _module
    _spec.loader.exec_module(_module)

Config = sys.modules["litgpt.config"].Config
configs: list[dict] = sys.modules["litgpt.config"].configs
"""litgpt's table of models, as arguments of ``Config``."""
