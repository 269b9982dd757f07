"""What Python sources say of a name, read as data: nothing of them is imported or run.

A *record* is what a call is compared with: for a function its signature as source text, for a class the signatures of
some methods, its fields with their defaults (of dataclasses, structs, typed dictionaries and enumerations), and the
other public names that an instance has.
"""

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

Read = Callable[[str], str | None]
"""Path below the root of the sources -> its text; None where there is no such file."""
Record = dict[str, Any]
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
MADE_OF_FIELDS = ("dataclass", "config", "Struct", "TypedDict")
"""In a decorator or a base: the annotated names of the class are what it is made with."""


class Absent(LookupError):
    """The sources have no such name."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a name is defined, after all re-exports."""

    module: str
    path: str
    node: ast.AST


def record(read: Read, dotted: str, methods: Sequence[str] = ()) -> Record:
    """The record of ``package.module.Name``.

    Args:
        methods: of a class, those to record; a base's counts as the class's own.

    Raises:
        Absent: no such name, or a class without one of the methods.
    """
    place = find(read, *dotted.rsplit(".", 1))
    found: Record = {"file": place.path}
    if isinstance(place.node, FUNCTION):
        return found | {"signature": signature_text(place.node)}
    if not isinstance(place.node, ast.ClassDef):
        return found | {"value": ast.unparse(place.node.value)}  # type: ignore[attr-defined]
    classes = list(_bases_first(read, place))
    defined = {node.name: node for one in classes for node in one.body if isinstance(node, FUNCTION)}
    if missing := [method for method in methods if method not in defined]:
        raise Absent(f"{dotted} has no {', '.join(missing)}")
    if methods:
        found["methods"] = {method: signature_text(defined[method]) for method in methods}
    marks = " ".join(ast.unparse(mark) for one in classes for mark in (*one.bases, *one.decorator_list))
    if "Enum" in marks:
        return found | {"members": _members(place.node)}
    if any(mark in marks for mark in MADE_OF_FIELDS):
        found["fields"] = _fields(classes)
        pydantic = find_import(read, place, "dataclass") == "pydantic.dataclasses"
        if pydantic and any("dataclass" in ast.unparse(mark) for mark in place.node.decorator_list):
            found["ignores"] = True  # such a class passes over what it does not know
    others = {name for one in classes for name in _attributes(one)} - found.get("fields", {}).keys()
    return found | {"attributes": sorted(name for name in others if not name.startswith("_"))}


def signature_text(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """``(self, x: int = 1) -> None``, after ``async`` if it is called so."""
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"{'async ' * isinstance(function, ast.AsyncFunctionDef)}({ast.unparse(function.args)}){returns}"


def find(read: Read, module: str, name: str) -> Place:
    """Follow imports through the sources to where the name is defined.

    Raises:
        Absent: it is not in them.
    """
    path, tree = _parsed(read, module)
    for node in reversed(list(_statements(tree.body))):  # the last definition counts
        if name in _defines(node):
            return Place(module, path, node)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name == "*" or name == (alias.asname or alias.name):
                    try:
                        return find(read, _absolute(path, node), name if alias.name == "*" else alias.name)
                    except Absent:
                        continue
    if ":" in (lazily := _lazily(tree, name)):
        return find(read, *(module + lazily).split(":"))
    raise Absent(f"{module} has no {name}")


def find_import(read: Read, place: Place, name: str) -> str | None:
    """The module that ``name`` is imported from where a class stands."""
    imports = [node for node in _parsed(read, place.module)[1].body if isinstance(node, ast.ImportFrom)]
    return next((one.module for one in imports if name in [alias.name for alias in one.names]), None)


@cache
def _parsed(read: Read, module: str) -> tuple[str, ast.Module]:
    stem = module.replace(".", "/")
    for path in (f"{stem}.py", f"{stem}/__init__.py"):
        if (text := read(path)) is not None:
            return path, ast.parse(text)
    raise Absent(f"no module {module}")


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements, those under if, else and try among them."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])


def _defines(node: ast.stmt) -> list[str]:
    if isinstance(node, (*FUNCTION, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [ast.unparse(target) for target in node.targets]
    return [ast.unparse(node.target)] if isinstance(node, ast.AnnAssign) and node.value else []


def _absolute(path: str, node: ast.ImportFrom) -> str:
    """The module that an import in ``path`` names."""
    folders = path.split("/")[: -node.level] if node.level else []
    return ".".join([*folders, *([node.module] if node.module else [])])


def _lazily(tree: ast.Module, name: str) -> str:
    """``.module:Name`` of a table of what a package imports when it is asked for; empty if it has no such entry."""
    for node in tree.body:
        for key, value in zip(*_items(node), strict=True):
            if isinstance(key, ast.Constant) and key.value == name and isinstance(value, ast.Constant):
                return str(value.value)
    return ""


def _items(node: ast.stmt) -> tuple[Sequence[ast.expr | None], Sequence[ast.expr]]:
    table = node.value if isinstance(node, ast.Assign) else None
    return (table.keys, table.values) if isinstance(table, ast.Dict) else ((), ())


def _bases_first(read: Read, place: Place) -> Iterator[ast.ClassDef]:
    """The class after those of its bases that are in the sources."""
    assert isinstance(place.node, ast.ClassDef)
    for base in reversed(place.node.bases):
        try:
            found = find(read, place.module, ast.unparse(base).partition("[")[0])
        except Absent:
            continue
        if isinstance(found.node, ast.ClassDef):
            yield from _bases_first(read, found)
    yield place.node


def _members(node: ast.ClassDef) -> dict[str, str]:
    return {ast.unparse(one.targets[0]): ast.unparse(one.value) for one in node.body if isinstance(one, ast.Assign)}


def _fields(classes: Sequence[ast.ClassDef]) -> dict[str, str | None]:
    """Fields with their defaults as source text, None for those without one."""
    fields = [node for one in classes for node in one.body if isinstance(node, ast.AnnAssign)]
    return {ast.unparse(node.target): _default(node) for node in fields}


def _default(node: ast.AnnAssign) -> str | None:
    """As source text; an ellipsis where a key of a typed dictionary may be absent."""
    if node.value:
        return ast.unparse(node.value)
    return "..." if ast.unparse(node.annotation).startswith("NotRequired") else None


def _attributes(node: ast.ClassDef) -> set[str]:
    """What an instance has: methods, annotated names, and all that is assigned to ``self``."""
    names = {name for one in node.body for name in _defines(one)}
    names |= {ast.unparse(one.target) for one in node.body if isinstance(one, ast.AnnAssign)}
    stored = (one for one in ast.walk(node) if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store))
    return names | {one.attr for one in stored if ast.unparse(one.value) == "self"}
