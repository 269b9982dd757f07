"""A folder to launch from: a small model that divides as a 7B model does, documents, pairs and a mirror."""

from pathlib import Path

import pytest

from tests.unit.evaluate.making_mirrors import make_mirror
from tests.workspace import make_model, make_pairs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_model(folder / "hf", "mistral", num_attention_heads=8, num_key_value_heads=4, hidden_size=64)
    make_pairs(folder / "pairs.jsonl", 16)
    (folder / "corpus").mkdir()
    (folder / "corpus" / "a.txt").write_text("One sentence. Another one.\n" * 99, encoding="utf-8")
    make_mirror(folder / "mirror")
    return folder


@pytest.fixture
def work(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a test, with links to all of that."""
    for path in inputs.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
