"""Recipes: TOML files with a section for every stage, whose keys are the options of the stage's program.

A recipe may say ``extends = "other.toml"`` or a list; what it says itself lies over that, and recipes that are given
later lie over those given earlier. ``key = false`` takes an option back, ``section = false`` a whole stage.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from megatron_longpo.errors import UserError

RECIPES = Path(__file__).parent / "recipes"
"""Those that come with the package: found by their bare names, also by a recipe that extends them."""
STAGES = (
    "generate",
    "build",
    "import-data",
    "import-hf",
    "score-reference",
    "train",
    "export-hf",
    "evaluate",
)
"""Sections that are stages, in the order in which they run."""
SECTIONS = ("model", "run", "machine", "environment", *STAGES)

Value = str | int | float | bool | list[str | int | float]
Section = dict[str, Value]


@dataclass
class Recipe:
    """What was said, the last word on each thing."""

    sections: dict[str, Section] = field(default_factory=dict)
    origins: dict[tuple[str, str], str] = field(default_factory=dict)
    """(section, key) -> where it was said last, ``FILE:LINE`` or ``--set``."""

    def said(self, section: str) -> Section:
        """What a section has, without what was taken back; empty without the section."""
        return {key: value for key, value in self.sections.get(section, {}).items() if value is not False}

    def where(self, section: str, key: str) -> str:
        """How a message about this key begins."""
        return f"{self.origins.get((section, key), '')}: [{section}] {key}".removeprefix(": ")

    def put(self, section: str, value: Any, where: Mapping[str, str]) -> None:
        """Lay a section's table over what is there; ``false`` takes the section away.

        Raises:
            UserError: the section, or the type of a value, is none of a recipe.
        """
        place = where.get("", "")
        if section not in SECTIONS:
            raise UserError(f"{place}: there is no section [{section}]{near(section, SECTIONS)}")
        if value is False:
            self.sections.pop(section, None)
            return
        if not isinstance(value, dict):
            raise UserError(f"{place}: {section} is {value!r}, needs a section [{section}] with options, or false")
        target = self.sections.setdefault(section, {})
        for key, one in value.items():
            self.origins[section, key] = where.get(key, place)
            if not _is_value(one):
                raise UserError(f"{self.where(section, key)} is {one!r}; needs a word, a number, a switch or a list")
            target[key] = one


def near(name: str, names: Iterable[str]) -> str:
    """``; did you mean ...`` for what is close to ``name``, else all names if they are few."""
    names = sorted(names)
    if close := get_close_matches(name, names, n=3):
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are {', '.join(names)}" if len(names) <= 20 else ""


def load(names: Sequence[str], settings: Sequence[str] = ()) -> Recipe:
    """Read recipes, each laid over those before it, and ``SECTION.KEY=VALUE`` over all of them.

    Raises:
        UserError: with file and line, where they can be told.
    """
    recipe = Recipe()
    for name in names:
        _read(find(name, Path()), recipe, ())
    for text in settings:
        _set(recipe, text)
    recipe.sections.setdefault("run", {}).setdefault("folder", "runs/" + "-".join(Path(name).stem for name in names))
    return recipe


def find(name: str, beside: Path) -> Path:
    """The file of a recipe: in the folder ``beside``, or one of the package's.

    Raises:
        UserError: there is none.
    """
    for path in (beside / name, RECIPES / name):
        if path.is_file():
            return path
    known = [path.name for path in RECIPES.glob("*.toml")]
    raise UserError(f"{beside / name}: no such recipe{near(name, known)}")


def _read(path: Path, recipe: Recipe, extending: tuple[Path, ...]) -> None:
    """Lay the recipe in ``path``, and before it those that it extends, over ``recipe``."""
    if path.resolve() in extending:
        raise UserError(f"{path}: extends itself, by way of {' and '.join(one.name for one in extending)}")
    try:
        text = path.read_text(encoding="utf-8")
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise UserError(f"{path}{f':{line[1]}' if line else ''}: not TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error}); a recipe is UTF-8") from error
    lines = _lines(text)
    extends = said.pop("extends", [])
    names = extends if isinstance(extends, list) else [extends]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: extends is {extends!r}; needs the name of a recipe, or a list of them")
    for name in names:
        _read(find(name, path.parent), recipe, (*extending, path.resolve()))
    for section, value in said.items():
        keys = value if isinstance(value, dict) else {}
        where = {key: _place(path, lines.get((section, key))) for key in keys}
        recipe.put(section, value, {"": _place(path, lines.get((section, ""))), **where})


def _place(path: Path, line: int | None) -> str:
    return f"{path}:{line}" if line else str(path)


def _lines(text: str) -> dict[tuple[str, str], int]:
    """Line of each section (key ``""``) and key, which tomllib does not tell; those in plain sight."""
    found: dict[tuple[str, str], int] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\s*([\w-]+)\s*\]", line):
            section = header[1]
            found.setdefault((section, ""), number)
        elif key := re.match(r"\s*\"?([\w-]+)\"?\s*(?:\.\s*\"?([\w-]+)\"?\s*)?=", line):
            table, name = (section, key[1]) if section else (key[1], key[2] or "")
            found.setdefault((table, name), number)
    return found


def _is_value(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in value)
    return isinstance(value, str | int | float)


def _set(recipe: Recipe, text: str) -> None:
    """Take ``SECTION.KEY=VALUE`` or ``SECTION=false``; a value that is no TOML is a word."""
    name, equals, value = text.partition("=")
    section, dot, key = name.partition(".")
    if not equals or not section or (dot and not key):
        raise UserError(f"--set {text}: give SECTION.KEY=VALUE, like train.lr=1e-6, or SECTION=false")
    parsed = _parsed(value)
    recipe.put(section, {key: parsed} if dot else parsed, {"": "--set", key: "--set"})


def _parsed(text: str) -> Any:
    try:
        said = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return said["value"] if len(said) == 1 and _is_value(said["value"]) else text


def dump(recipe: Recipe) -> str:
    """The recipe as one TOML file that extends nothing."""
    parts = []
    for name in (name for name in SECTIONS if name in recipe.sections):
        lines = [f"{key} = {_toml(value)}" for key, value in recipe.sections[name].items()]
        parts.append("\n".join((f"[{name}]", *lines)))
    return "\n\n".join(parts) + "\n"


def _toml(value: Value) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        # A basic string: quotes, backslashes and control characters are escaped.
        return '"' + re.sub(r'[\x00-\x1f"\\\x7f]', lambda found: f"\\u{ord(found[0]):04x}", value) + '"'
    return str(value).lower() if isinstance(value, bool) else repr(value)
