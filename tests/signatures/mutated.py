"""Our calls with one argument swapped or renamed, each of which a comparison must notice."""

from collections.abc import Callable, Iterable
from types import ModuleType

from tests.mutations import ROOT, Mutation


def mutations(file: str, *changes: tuple[str, str, str]) -> tuple[Mutation, ...]:
    """Of one file: (name, text that is in it once, what stands there instead)."""
    return tuple(Mutation(name=name, file=file, old=old, new=new, tests=()) for name, old, new in changes)


def text(mutation: Mutation) -> str:
    """The file with the fault."""
    return mutation.apply((ROOT / mutation.file).read_text(encoding="utf-8"))


def module(mutation: Mutation) -> ModuleType:
    """The mutated file as a module, beside the true one."""
    made = ModuleType(mutation.file.removesuffix(".py").replace("/", "."))
    exec(compile(text(mutation), mutation.file, "exec"), made.__dict__)
    return made


def is_noticed(mutation: Mutation, compare: Callable[[ModuleType], None]) -> bool:
    """The comparison fails on the mutated module."""
    made = module(mutation)
    try:
        compare(made)
    except Exception:  # whatever a wrong argument makes the comparison or the stand-ins raise
        return True
    return False


def survivors(all_of_them: Iterable[Mutation], compare: Callable[[ModuleType], None]) -> list[str]:
    """Names of the mutations that are not noticed."""
    return [mutation.name for mutation in all_of_them if not is_noticed(mutation, compare)]
