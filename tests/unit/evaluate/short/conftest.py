"""A mirror of small sets, a tiny random model, and tokenizers with and without bos."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.evaluate.mirror import PLACES, Mirror, open_mirror
from tests.unit.evaluate.short.sets import (
    NUM,
    SUBJECTS,
    adding,
    arc_row,
    hellaswag_row,
    mmlu_row,
    record,
    tiny_model,
    winogrande_row,
    write_set,
)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Mirror:
    root = tmp_path_factory.mktemp("mirror")
    rows = {
        "arc_challenge": {
            "ARC-Challenge": {"train": map(arc_row, range(30)), "validation": [], "test": map(arc_row, range(NUM))}
        },
        "hellaswag": {
            "default": {"train": map(hellaswag_row, range(12)), "validation": map(hellaswag_row, range(NUM))}
        },
        "winogrande": {
            "winogrande_xl": {"train": map(winogrande_row, range(9)), "validation": map(winogrande_row, range(NUM))}
        },
        "mmlu": {
            one: {"test": [mmlu_row(one, i) for i in range(2)], "dev": [mmlu_row(one, i) for i in range(5)]}
            for one in SUBJECTS
        },
    }
    for name, configs in rows.items():
        made = {config: {split: list(some) for split, some in splits.items()} for config, splits in configs.items()}
        write_set(
            root / PLACES[name], {c: {s: some for s, some in splits.items() if some} for c, splits in made.items()}
        )
        record(root, name)
    return open_mirror(root)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums have the same order in every process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def plain(tokenizer_folders: dict[str, Path]) -> Any:
    """Qwen's kind: no bos."""
    return load_tokenizer(tokenizer_folders["chatml"])


@pytest.fixture(scope="module")
def with_bos(tokenizer_folders: dict[str, Path]) -> Any:
    """Llama 3's kind: it begins every text with bos by itself."""
    return adding(load_tokenizer(tokenizer_folders["llama3"]), "<|begin_of_text|> $A")
