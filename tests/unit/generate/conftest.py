from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.generate.corpus.token_count import TokenCounter
from tests.tokenizers import gpt2_tokenizer


@pytest.fixture(scope="module")
def counters(
    tokenizer_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Any, TokenCounter]]:
    """Family of tests/tokenizers.py -> its tokenizer, and a counter of its tokens."""
    folders = {family: tokenizer_folders[family] for family in ("chatml", "llama3", "mistral", "llama2")}
    folders["gpt2"] = gpt2_tokenizer(tmp_path_factory.mktemp("gpt2"))
    loaded = {family: load_tokenizer(folder) for family, folder in folders.items()}
    return {family: (tokenizer, TokenCounter(tokenizer.backend_tokenizer)) for family, tokenizer in loaded.items()}
