"""Compiled modules that all processes of one test session share.

Where no bytecode lies beside the installed sources and none may be written there, every interpreter
that a test starts would compile torch and all that goes with it: ten seconds each. The first one of
a session, pytest's own, makes a folder for all of them; it is removed at the end.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec

_torch = find_spec("torch")
if sys.dont_write_bytecode and _torch and not os.path.exists(str(_torch.cached)):
    _folder = tempfile.mkdtemp(prefix="ssld-bytecode-")
    atexit.register(shutil.rmtree, _folder, ignore_errors=True)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = _folder
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
