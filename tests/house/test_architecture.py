"""Imports run down the floors of docs/architecture.md, and never in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("downstream", "ssld", "zoo")
LAUNCHED = "from ssld.cli.run import launch"
"""What a file has that is only there to be run as `python -m`."""


@cache
def floors() -> list[list[str]]:
    """The block of docs/architecture.md that begins with `<!-- floors -->`, the top floor first."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    block = text.partition("<!-- floors -->")[2].split("```")[1]
    return [line.split() for line in block.strip().splitlines()]


@cache
def modules() -> dict[str, Path]:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    names = (".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files)
    return {name.removesuffix(".__init__"): f for name, f in zip(names, files, strict=True)}


def imported(source: str, known: set[str]) -> Iterator[str]:
    """The modules that a file needs when it runs, in functions too."""
    for node in running(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield from [name] if name in known else {node.module} & known


def running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            yield node
            yield from running(node)


@cache
def graph() -> dict[str, set[str]]:
    known = set(modules())
    sources = {name: file.read_text(encoding="utf-8") for name, file in modules().items()}
    return {name: set(imported(text, known)) - {name} for name, text in sources.items()}


def floor_of(module: str, floors: list[list[str]]) -> int | None:
    """0 at the top; None of what stands at a package's root to be run or looked at first."""
    found = {x: i for i, rooms in enumerate(floors) for x in rooms}
    while module and module not in found:
        module = module.rpartition(".")[0]
    return found.get(module)


def upwards(graph: dict[str, set[str]], floors: list[list[str]]) -> list[str]:
    """Imports of a room that is not below; rooms of one floor do not know each other."""
    wrong = []
    for module, needed in graph.items():
        for other in needed:
            here, there = floor_of(module, floors), floor_of(other, floors)
            if here is not None and there is not None and here >= there and module != other:
                if room(module, floors) != room(other, floors):
                    wrong.append(f"{module} imports {other}")
    return wrong


def room(module: str, floors: list[list[str]]) -> str:
    rooms = {x for floor in floors for x in floor}
    while module not in rooms:
        module = module.rpartition(".")[0]
    return module


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that reach themselves."""

    @cache
    def reached(module: str) -> frozenset[str]:
        seen, todo = set(), list(graph[module])
        while todo:
            one = todo.pop()
            if one not in seen:
                seen.add(one)
                todo += graph.get(one, ())
        return frozenset(seen)

    return [module for module in graph if module in reached(module)]


def test_no_import_runs_upwards():
    assert not upwards(graph(), floors())


def test_no_circle():
    assert not circles(graph())


def test_every_folder_has_a_floor():
    missing = [
        name
        for name, file in modules().items()
        if floor_of(name, floors()) is None
        and "." in name
        and not name.endswith("__main__")
        and LAUNCHED not in file.read_text(encoding="utf-8")
    ]
    assert missing == []


def test_the_packages_know_each_other_one_way():
    order = {name: i for i, name in enumerate(PACKAGES)}
    for module, needed in graph().items():
        here = order[module.partition(".")[0]]
        assert all(order[x.partition(".")[0]] >= here for x in needed), module


@pytest.mark.parametrize(
    ("imports", "wrong"),
    [
        ({"a.x": {"b.y"}, "b.y": set()}, []),
        ({"a.x": set(), "b.y": {"a.x"}}, ["b.y imports a.x"]),
        ({"b.y": {"c.z"}, "c.z": set()}, ["b.y imports c.z"]),
        ({"a.x": {"a.w"}, "a.w": set()}, []),
    ],
)
def test_what_counts_as_upwards(imports, wrong):
    assert upwards(imports, [["a"], ["b", "c"]]) == wrong


def test_what_counts_as_a_circle():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c"]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    source = "if TYPE_CHECKING:\n    import a\ndef f():\n    import b\nfrom c import d, e\n"
    assert list(imported(source, {"a", "b", "c.d", "c"})) == ["b", "c.d", "c"]


def test_the_picture_shows_these_floors() -> None:
    from architecture_picture import PICTURE, picture  # imports this file

    assert PICTURE.read_text(encoding="utf-8") == picture(floors()), (
        "draw docs/architecture.svg again: see tests/house/architecture_picture.py"
    )
