"""data/sentencepiece_model.py: a bare sentencepiece model gives sentencepiece's own ids, or is refused."""

import functools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from megatron_longpo.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from megatron_longpo.errors import UserError
from tests.tokenizers import VOCABULARY_SIZE, sentencepiece_model, sentencepiece_of

BARE = ("mistral-v1", "mistral-v3")
_loaded: dict[str, tuple[PreTrainedTokenizerFast, SentencePieceProcessor]] = {}


@pytest.fixture(scope="module", autouse=True)
def _load(tokenizer_folders: dict[str, Path]) -> None:
    """Once for all examples of a property."""
    _loaded.update(
        (name, (load_tokenizer(path), sentencepiece_of(path)))
        for name, path in tokenizer_folders.items()
        if name in BARE
    )


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


hard = st.lists(
    st.sampled_from(["  ", " ", "\n", "\t", "the", "e", "▁", "🙂", "世", "\x00", "e\u0301", "ﬁ", "=", "<0x0A>"])
).map("".join)


@pytest.mark.parametrize("name", BARE)
@given(text=st.one_of(hard, st.text()).filter(bool))
def test_after_a_control_token_and_a_blank_the_ids_are_sentencepieces(name: str, text: str) -> None:
    tokenizer, processor = _loaded[name]
    assert ids_of(tokenizer, f"<s> {text}")[1:] == processor.encode(text)


@pytest.mark.parametrize("name", BARE)
@given(text=st.one_of(hard, st.text()).filter(lambda text: text[:1] not in (" ", "▁")))
def test_a_text_alone_has_the_ids_of_sentencepiece(name: str, text: str) -> None:
    tokenizer, processor = _loaded[name]
    assert ids_of(tokenizer, text) == processor.encode(text)


@pytest.mark.parametrize("name", BARE)
@given(text=st.one_of(hard, st.text()))
def test_offsets_cover_the_text_in_order(name: str, text: str) -> None:
    text = f"<s> {text}</s>"
    encoding = _loaded[name][0].backend_tokenizer.encode(text, add_special_tokens=False)
    covered = functools.reduce(lambda end, span: max(end, span[1]) if span[0] <= end else -1, encoding.offsets, 0)
    assert covered == len(text)
    assert encoding.offsets == sorted(encoding.offsets)


def test_text_that_looks_like_control_tokens(tokenizer_folders: dict[str, Path]) -> None:
    """To sentencepiece it is text, to the fast tokenizer a control token: render.py refuses such a text."""
    for name, text, id_ in (("mistral-v1", "</s>", 2), ("mistral-v3", "[/INST]", 4)):
        tokenizer, processor = _loaded[name]
        assert ids_of(tokenizer, text) == [id_]
        assert len(processor.encode(text)) > 1
        assert tokenizer.added_tokens_decoder[id_].special
    assert ids_of(_loaded["mistral-v1"][0], "<s> [INST]")[1:] == _loaded["mistral-v1"][1].encode("[INST]")


def test_transformers_alone_takes_two_blanks_for_another_token(tokenizer_folders: dict[str, Path]) -> None:
    """Why the merges are made here; once transformers goes by the scores, sentencepiece_model.py can do without."""
    tokenizer, processor = _loaded["mistral-v1"]
    alone = LlamaTokenizer.from_pretrained(str(tokenizer_folders["mistral-v1"]))
    text = "of  the"
    assert ids_of(tokenizer, text) == processor.encode(text)
    assert ids_of(alone, text) != processor.encode(text)


def test_special_tokens_and_ids(tokenizer_folders: dict[str, Path]) -> None:
    for tokenizer, processor in _loaded.values():
        assert tokenizer.get_vocab() == {processor.id_to_piece(index): index for index in range(VOCABULARY_SIZE)}
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)


def test_settings_of_the_folder_are_kept(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    before = tokenizer_fingerprint(load_tokenizer(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "LlamaTokenizer", "pad_token": "<pad>", "chat_template": "{{ eos_token }}"}'
    )
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.chat_template, tokenizer.pad_token_id) == ("{{ eos_token }}", VOCABULARY_SIZE)
    assert tokenizer_fingerprint(tokenizer) != before


REFUSED = {
    "unigram": {"model_type": "unigram"},
    "a normaliser": {"normalization_rule_name": "nmt_nfkc"},
    "blanks removed": {"remove_extra_whitespaces": True},
    "no blank in front": {"add_dummy_prefix": False},
    "no byte fallback": {"byte_fallback": False},
    "blanks behind words": {"treat_whitespace_as_suffix": True},
}


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED.keys())
def test_a_model_that_converts_to_other_ids_is_refused(options: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(**options))
    with pytest.raises(UserError, match=r"tokenizer.model: .* in sentencepiece and .* once converted") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_special_tokens_of_other_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(bos_piece="<begin>"))
    with pytest.raises(UserError, match=r"tokenizer\.model: the model has no piece '<s>'; name its own special tokens"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"IQ== 0\nIg== 1\n", bytes(range(256))])
def test_another_kind_of_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.model: not a sentencepiece model"):
        load_tokenizer(tmp_path)
