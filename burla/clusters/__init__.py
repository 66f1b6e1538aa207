"""Where a head comes from: the local cluster, and Dask clusters that somebody else runs.

`burla.clusters()` lists the clusters that this user knows, whether they are up, and which is in use. The function and
this package have one name, so the package can be called.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any


class _Callable(types.ModuleType):
    def __call__(self) -> Any:
        return importlib.import_module("burla.known").clusters()


sys.modules[__name__].__class__ = _Callable
