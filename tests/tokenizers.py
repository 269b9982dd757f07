"""Small real tokenizers with chat templates: trained here, saved as Hugging Face folders, nothing downloaded.

Families that differ in all that matters to spans: byte-level BPE with a default system prompt (ChatML), a
sentencepiece-like BPE with byte fallback whose template writes white space before an answer (Mistral 7B Instruct v0.2),
and byte-level BPE whose template strips contents (Llama 3). The templates render what the models' own ones render.
The others are used with the templates of examples/templates: bare sentencepiece models whose [INST] is text (Llama 2,
Mistral v1) or a control token (Mistral v2, v3), and byte-level BPE that knows thoughts (Qwen3).
"""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer, sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 700
TEMPLATES = Path(__file__).resolve().parents[1] / "examples" / "templates"
_CORPUS = Path(__file__).resolve().parents[1] / "LICENSE"
# Of Qwen2 and Llama 3: line feeds in a row are one word, so an answer that begins with one merges with its header.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/user/assistant') }}"
    "{% endif %}"
    "{% if message['role'] == 'user' %}{{ ' [INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
LLAMA3_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + (message['content'] | trim)"
    " + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)


def chatml_tokenizer(directory: Path) -> Path:
    """Byte-level BPE, ChatML (as SmolLM2 and Qwen2.5): no bos, a default system prompt."""
    backend = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    # Qwen2's post-processor: it trims the offsets of white space, which spans must not suffer from.
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return _save(backend, directory, CHATML_TEMPLATE, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def gpt2_tokenizer(directory: Path) -> Path:
    """Byte-level BPE with GPT-2's words (SmolLM2's, too): no mark is in one word with letters."""
    backend = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], pre_tokenizers.ByteLevel(False))
    return _save(backend, directory, CHATML_TEMPLATE, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def llama3_tokenizer(directory: Path) -> Path:
    """Byte-level BPE, Llama 3's template: bos, contents stripped."""
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return _save(_byte_level(names), directory, LLAMA3_TEMPLATE, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def mistral_tokenizer(directory: Path) -> Path:
    """Sentencepiece-like BPE with byte fallback, Mistral 7B Instruct v0.2's template; [INST] is no control token."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_and_specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # Without a pre-tokenizer a whole line is one word: split the corpus, so that no merge spans several words.
    words = (f"\u2581{word}" for word in _corpus().split())
    _train(backend, words, bytes_and_specials, initial_alphabet=[])
    # Training made the byte tokens special as well, which hides them from `decode`; only these three are.
    serialised = backend.to_str()
    backend = Tokenizer.from_str(_only_special(serialised, ["<unk>", "<s>", "</s>"]))
    return _save(backend, directory, MISTRAL_TEMPLATE, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def qwen3_tokenizer(directory: Path) -> Path:
    """Byte-level BPE whose <think> and </think> are tokens, as Qwen3's, which are not special."""
    backend = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")])
    template = (TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8")
    return _save(backend, directory, template, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def bare_folder(directory: Path, template: str, control_symbols: Sequence[str] = ()) -> Path:
    """A bare sentencepiece model and a template of examples/templates."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(sentencepiece_model(control_symbols=list(control_symbols)))
    (directory / "chat_template.jinja").write_bytes((TEMPLATES / f"{template}.jinja").read_bytes())
    return directory


def sentencepiece_model(**options: Any) -> bytes:
    """A serialised BPE model like Llama 2's, or with other ``options`` of the trainer.

    Runs of blanks have low ids and the lowest score, as in the models of Llama 2 and Mistral.
    """
    lines = [line.replace(" ", "  ") if number % 3 == 0 else line for number, line in enumerate(_corpus().split("\n"))]
    file = io.BytesIO()
    defaults: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": VOCABULARY_SIZE,
        "byte_fallback": True,
        "character_coverage": 1.0,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "minloglevel": 2,
    }
    SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=file, **(defaults | options))
    untyped: Any = sentencepiece_model_pb2
    model = untyped.ModelProto.FromString(file.getvalue())
    for piece in model.pieces:
        if set(piece.piece) == {"\u2581"}:
            piece.score = -1e9
    return model.SerializeToString()


def sentencepiece_of(directory: Path) -> SentencePieceProcessor:
    """Sentencepiece itself on the folder's model."""
    return SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))


def _byte_level(special_tokens: list[str], words: pre_tokenizers.PreTokenizer | None = None) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = words or pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    _train(backend, iter([_corpus()]), special_tokens, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    return backend


def _train(backend: Tokenizer, texts: Iterator[str], special_tokens: list[str], initial_alphabet: list[str]) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special_tokens],
        initial_alphabet=initial_alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)


def _only_special(serialised: str, special_tokens: list[str]) -> str:
    backend = json.loads(serialised)
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["content"] in special_tokens]
    return json.dumps(backend)


def _corpus() -> str:
    lines = _CORPUS.read_text(encoding="utf-8").splitlines()
    return "\n".join(line.strip() for line in lines)  # not indented, so that two line feeds become one token


def _save(backend: Tokenizer, directory: Path, template: str, **special_tokens: str) -> Path:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **special_tokens)
    tokenizer.save_pretrained(str(directory))
    return directory
