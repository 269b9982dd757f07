"""What all unit tests share: the three small tokenizers, trained once a session, and hypothesis without deadlines."""

from pathlib import Path

import pytest
from hypothesis import settings

# No deadline: the first example of a property imports half of transformers, and test machines are shared.
settings.register_profile("unit", deadline=None, max_examples=60)
settings.load_profile("unit")


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family (chatml, mistral, llama3) -> Hugging Face folder."""
    # Imports transformers: only the tests that need a tokenizer wait for it.
    from tests.tokenizers import chatml_tokenizer, llama3_tokenizer, mistral_tokenizer

    root = tmp_path_factory.mktemp("tokenizers")
    families = {"chatml": chatml_tokenizer, "mistral": mistral_tokenizer, "llama3": llama3_tokenizer}
    return {family: make(root / family) for family, make in families.items()}
