"""A library as its sources describe it: every call is bound as the true function would bind it, and noted.

What is not recorded (extract.py) is not there, and an argument that the true function does not take raises its
TypeError.
"""

import ast
import enum
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from inspect import Parameter, Signature
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Source:
    """A default that is no literal, as the source writes it."""

    text: str


@dataclass(frozen=True)
class Call:
    """One call of a recorded name."""

    name: str
    arguments: dict[str, Any]
    """What was given, by the function's own names; ``self`` and what was left to its default are not in it."""


def value_of(text: str) -> Any:
    """What a default is."""
    try:
        return ast.literal_eval(text)
    except ValueError:
        return Source(text)


def signature_of(text: str) -> Signature:
    """The signature that ``(self, x: int = 1) -> None`` describes."""
    function = ast.parse(f"def function{text.removeprefix('async ')}: ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    args = function.args
    positional = [(one, Parameter.POSITIONAL_ONLY) for one in args.posonlyargs]
    positional += [(one, Parameter.POSITIONAL_OR_KEYWORD) for one in args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    rows = [(*one, default) for one, default in zip(positional, defaults, strict=True)]
    rows += [(args.vararg, Parameter.VAR_POSITIONAL, None)] if args.vararg else []
    keywords = zip(args.kwonlyargs, args.kw_defaults, strict=True)
    rows += [(one, Parameter.KEYWORD_ONLY, default) for one, default in keywords]
    rows += [(args.kwarg, Parameter.VAR_KEYWORD, None)] if args.kwarg else []
    return Signature([_parameter(one.arg, kind, default and ast.unparse(default)) for one, kind, default in rows])


def _parameter(name: str, kind: Any, default: str | None) -> Parameter:
    return Parameter(name, kind, default=Parameter.empty if default is None else value_of(default))


def signature_of_record(record: dict[str, Any], method: str = "") -> Signature:
    """Of a function, of a method, or of the making of a class."""
    methods = record.get("methods", {})
    if method or "__init__" in methods:
        return signature_of(methods[method or "__init__"])
    if "signature" in record:
        return signature_of(record["signature"])
    # Keywords only: the order of fields of bases is not told apart, and ours are given by name.
    return Signature([_parameter(name, Parameter.KEYWORD_ONLY, text) for name, text in record["fields"].items()])


def bind(signature: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, without ``self``; those of ``**kwargs`` are laid open.

    Raises:
        TypeError: the function does not take them.
    """
    given = dict(signature.bind(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is Parameter.VAR_KEYWORD:
            given |= given.pop(parameter.name, {})
    return {name: value for name, value in given.items() if name not in ("self", "cls")}


@dataclass
class Library:
    """Recorded modules to stand in for a library."""

    records: dict[str, dict[str, Any]]
    version: str
    base: type = object
    """Of the classes that stand in."""
    calls: list[Call] = field(default_factory=list)
    behaviour: dict[str, Callable[..., Any]] = field(default_factory=dict)
    """What a call gives back: of ``package.Class.method``, given the object and the arguments by name, or of
    ``package.function``, given the arguments."""

    @classmethod
    def of(cls, file: str, base: type = object) -> "Library":
        """Read ``file``, a name in this folder without its ending."""
        found = json.loads((HERE / f"{file}.json").read_text(encoding="utf-8"))
        return cls(found["names"], found["archive"]["version"], base)

    def arguments(self, name: str) -> list[dict[str, Any]]:
        """What the calls of a name were given so far."""
        return [call.arguments for call in self.calls if call.name == name]

    def default(self, name: str, parameter: str, method: str = "") -> Any:
        """What a parameter is where it is left out."""
        return signature_of_record(self.records[name], method).parameters[parameter].default

    def instance(self, name: str, **attributes: Any) -> SimpleNamespace:
        """An object with some of the attributes that those of class ``name`` have; AssertionError if not."""
        record = self.records[name]
        unknown = attributes.keys() - {*record["attributes"], *record.get("fields", {})}
        assert not unknown, f"{name} has no {unknown}"
        return SimpleNamespace(**attributes)

    @contextmanager
    def installed(self) -> Iterator["Library"]:
        """The modules are imported in place of the library inside the block."""
        modules = self.modules()
        before = {name: sys.modules.get(name) for name in modules}
        sys.modules.update(modules)
        try:
            yield self
        finally:
            for name, module in before.items():
                if module is None:
                    del sys.modules[name]
                else:
                    sys.modules[name] = module

    def modules(self) -> dict[str, ModuleType]:
        """By dotted name, each after the one that it lies in."""
        modules: dict[str, ModuleType] = {}
        for name in self.records:
            *folders, last = name.split(".")
            for depth in range(1, len(folders) + 1):
                if (dotted := ".".join(folders[:depth])) not in modules:
                    modules[dotted] = module = ModuleType(dotted)
                    module.__path__, module.__spec__ = [], ModuleSpec(dotted, None)
                    module.__version__ = self.version  # type: ignore[attr-defined]
                    if depth > 1:
                        setattr(modules[".".join(folders[: depth - 1])], folders[depth - 1], module)
            setattr(modules[".".join(folders)], last, self._stand_in(name))
        return modules

    def _stand_in(self, name: str) -> Any:
        record, short = self.records[name], name.rpartition(".")[2]
        if "value" in record:
            return value_of(record["value"])
        if "members" in record:
            return enum.Enum(short, record["members"])
        if "signature" in record:
            return lambda *args, **kwargs: self._called(name, signature_of_record(record), args, kwargs)
        methods = {method: self._method(name, method) for method in record.get("methods", {})}
        if "fields" in record:
            methods["__init__"] = self._made_of_fields(name)
        return type(short, (self.base,), methods)

    def _called(self, name: str, signature: Signature, args: Any, kwargs: Any, *owner: Any) -> Any:
        given = bind(signature, (*owner, *args), kwargs)
        self.calls.append(Call(name, given))
        act = self.behaviour.get(name)
        return act(*owner, given) if act else None

    def _method(self, name: str, method: str) -> Any:
        signature = signature_of_record(self.records[name], method)

        def call(owner: Any, *args: Any, **kwargs: Any) -> Any:
            if method == "__init__":
                self.base.__init__(owner)
            return self._called(f"{name}.{method}", signature, args, kwargs, owner)

        return classmethod(call) if "cls" in signature.parameters else call

    def _made_of_fields(self, name: str) -> Any:
        signature, ignores = signature_of_record(self.records[name]), self.records[name].get("ignores", False)

        def make(owner: Any, *args: Any, **kwargs: Any) -> None:
            if ignores:
                kwargs = {one: value for one, value in kwargs.items() if one in signature.parameters}
            self.base.__init__(owner)
            given = bind(signature, args, kwargs)
            self.calls.append(Call(f"{name}.__init__", given))
            for one, parameter in signature.parameters.items():
                object.__setattr__(owner, one, given.get(one, parameter.default))

        return make
