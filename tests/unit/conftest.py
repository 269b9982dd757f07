"""What all unit tests share: the three small tokenizers, trained once a session, and hypothesis without deadlines."""

from pathlib import Path

import pytest
from hypothesis import settings

from tests.tokenizers import chatml_tokenizer, llama3_tokenizer, mistral_tokenizer

# No deadline: the first example of a property imports half of transformers, and test machines are shared.
settings.register_profile("unit", deadline=None, max_examples=60)
settings.load_profile("unit")

TOKENIZERS = {"chatml": chatml_tokenizer, "mistral": mistral_tokenizer, "llama3": llama3_tokenizer}


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> Hugging Face folder."""
    root = tmp_path_factory.mktemp("tokenizers")
    return {family: make(root / family) for family, make in TOKENIZERS.items()}
