"""The mutations of tests/mutations.py still apply: a change of the code that moves their texts must move them too."""

import ast

import pytest

from tests.mutations import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_applies_and_stays_python(mutation: Mutation) -> None:
    original = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert ast.dump(ast.parse(mutation.apply(original))) != ast.dump(ast.parse(original))
    for test in mutation.tests:
        path, *function = test.split("[")[0].split("::")
        source = (ROOT / path).read_text(encoding="utf-8")
        assert all(f"def {name}(" in source for name in function), test


def test_names_are_unique() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("text", ["", "ab ab"])
def test_a_text_not_there_exactly_once_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="need 1; rewrite the mutation"):
        Mutation(name="m", file="f", old="ab", new="c", tests=()).apply(text)
