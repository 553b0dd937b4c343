"""Makes ``fake_federation`` importable by name for the tests beside it."""

import importlib.util
import sys
from pathlib import Path

_PATH = Path(__file__).with_name("fake_federation.py")
_SPEC = importlib.util.spec_from_file_location("fake_federation", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
sys.modules["fake_federation"] = _MODULE
_SPEC.loader.exec_module(_MODULE)
