from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.generate.corpus.token_count import TokenCounter


@pytest.fixture(scope="module")
def counters(tokenizer_folders: dict[str, Path]) -> dict[str, tuple[Any, TokenCounter]]:
    """Family of tests/tokenizers.py -> its tokenizer, and a counter of its tokens."""
    loaded = {family: load_tokenizer(tokenizer_folders[family]) for family in ("chatml", "llama3", "mistral", "llama2")}
    return {family: (tokenizer, TokenCounter(tokenizer.backend_tokenizer)) for family, tokenizer in loaded.items()}
