"""`zoo.registration` as soon as timm has been imported, by whomever: `import zoo` itself takes no
seconds, so that the catalogue and the errors can be had without torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

REGISTRATION = "zoo.registration"


class _ThenRegister(Loader):
    """Loads timm as its own loader does; then its names are known."""

    def __init__(self, own: Loader) -> None:
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.own  # what timm asks for its files
        self.own.exec_module(module)
        import_module(REGISTRATION)


class _Finder(MetaPathFinder):
    """Finds timm where all others do."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "timm":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next(filter(None, specs), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


def register_with_timm() -> None:
    """Make timm know the names of the catalogue, now or when it is imported."""
    if "timm" in sys.modules:
        import_module(REGISTRATION)
    else:
        sys.meta_path.insert(0, _Finder())
