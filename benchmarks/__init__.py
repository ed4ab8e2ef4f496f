"""Benchmarks. Those that start servers use tests/services, so tests/ is added to the path."""

import sys
from pathlib import Path

_TESTS = str(Path(__file__).parents[1] / "tests")
if _TESTS not in sys.path:
    sys.path.append(_TESTS)
