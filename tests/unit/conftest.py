"""What all unit tests share: the small tokenizers, trained once a session, and hypothesis without deadlines."""

from pathlib import Path

import pytest
from hypothesis import settings

# No deadline: the first example of a property imports half of transformers, and test machines are shared.
settings.register_profile("unit", deadline=None, max_examples=60)
settings.load_profile("unit")


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> Hugging Face folder; mistral-v1, mistral-v3 and llama2 hold a bare sentencepiece model."""
    # Imports transformers: only the tests that need a tokenizer wait for it.
    from tests.tokenizers import bare_folder, chatml_tokenizer, llama3_tokenizer, mistral_tokenizer, qwen3_tokenizer

    root = tmp_path_factory.mktemp("tokenizers")
    return {
        "chatml": chatml_tokenizer(root / "chatml"),
        "mistral": mistral_tokenizer(root / "mistral"),
        "llama3": llama3_tokenizer(root / "llama3"),
        "qwen3": qwen3_tokenizer(root / "qwen3"),
        "mistral-v1": bare_folder(root / "mistral-v1", "mistral-v1"),
        "mistral-v3": bare_folder(root / "mistral-v3", "mistral-v3", control_symbols=("[INST]", "[/INST]")),
        "llama2": bare_folder(root / "llama2", "llama2"),
    }
