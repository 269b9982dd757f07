"""Folders with a bare sentencepiece model: ``tokenizer.model`` and no ``tokenizer.json`` (Llama 2, Mistral v1 to v3).

Spans need character offsets, which only a fast tokenizer has, so transformers converts the model. It ranks the merges
by the pieces' ids (transformers 5, `tokenization_utils_base.generate_merges`); sentencepiece merges by score, and these
models give runs of blanks low ids and the lowest score, so two blanks would come out as other tokens. The merges are
therefore made here. What comes out is then held against the sentencepiece package itself, on every piece of the
vocabulary and on texts that are known to be hard; a model for which anything differs is refused.

Sentencepiece puts a blank before every text, the fast tokenizer only at the very beginning. So the text after a control
token has the ids of `SentencePieceProcessor.encode` where the chat template writes that blank: ``[/INST] answer``.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_longpo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MODEL_FILE = "tokenizer.model"
_PIECES_PER_LINE = 50
_HARD_TEXTS = (
    "Two  blanks,   three,    four; a\ttab\t\tand two;\na line\n\n\nand two empty ones.\r\n",
    " one blank before",
    "   three before and after   ",
    "\n",
    "\t x",
    "🙂🏳️‍🌈 𠮷野家 𒀀 ﷽ \U0010ffff",
    "controls \x00\x01\x1b\x7f\u0085 and \u00a0\u2009\u200b\u2028\ufeff blanks",
    "ﬁ ① \uff21 é e\u0301 ﬀ ½ ㌀ İ ß",  # what a normaliser would change
    "[INST] <<SYS>> <0x0A> </S> <|im_start|> ▁ ▁▁ <unknown>",
    "1234567890 3.14159e-10 0x7fff",
)


def is_bare(directory: Path) -> bool:
    """Whether the folder's tokenizer is nothing but a sentencepiece model."""
    return (directory / MODEL_FILE).is_file() and not (directory / "tokenizer.json").is_file()


def load_bare(directory: Path) -> "PreTrainedTokenizerFast":
    """Convert the folder's sentencepiece model; settings and template come from its tokenizer_config.json, if any.

    Raises:
        UserError: the file is no sentencepiece model, or one whose ids the fast tokenizer does not reproduce.
    """
    from sentencepiece import SentencePieceProcessor
    from tokenizers.models import BPE
    from transformers import LlamaTokenizer

    path = directory / MODEL_FILE
    try:
        processor: Any = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"{path}: not a sentencepiece model (Llama 3 has a file of another kind under this name);"
            " give a folder with the model's tokenizer.json"
        ) from error
    loader: Any = LlamaTokenizer
    tokenizer = loader.from_pretrained(str(directory), local_files_only=True)
    vocabulary: dict[str, int] = {processor.id_to_piece(index): index for index in range(len(processor))}
    added = tokenizer.added_tokens_encoder
    pieces = [piece for piece, index in vocabulary.items() if piece not in added and not processor.is_byte(index)]
    merges = _merges({piece: (-processor.get_score(vocabulary[piece]), vocabulary[piece]) for piece in pieces})
    tokenizer.backend_tokenizer.model = BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True)
    _require_same_vocabulary(path, tokenizer, vocabulary)
    _require_same_ids(path, tokenizer, processor, pieces)
    return tokenizer


def _merges(ranks: dict[str, tuple[float, int]]) -> list[tuple[str, str]]:
    """Every way to join two pieces to a third, in sentencepiece's order: highest score, then lowest id, first."""
    found: list[tuple[tuple[float, int], int, str]] = []
    for piece, rank in ranks.items():
        found += [(rank, cut, piece) for cut in range(1, len(piece)) if piece[:cut] in ranks and piece[cut:] in ranks]
    return [(piece[:cut], piece[cut:]) for _, cut, piece in sorted(found)]


def _require_same_vocabulary(path: Path, tokenizer: Any, vocabulary: dict[str, int]) -> None:
    """Tokens beyond the model are allowed where tokenizer_config.json asks for them."""
    converted: dict[str, int] = tokenizer.get_vocab()
    declared = (path.parent / "tokenizer_config.json").is_file()
    surplus = sorted(converted.keys() - vocabulary.keys())
    if surplus and not declared:
        raise UserError(
            f"{path}: the model has no piece {surplus[0]!r}; name its own special tokens (bos_token, eos_token,"
            " unk_token) in a tokenizer_config.json"
        )
    moved = [piece for piece, index in vocabulary.items() if converted.get(piece) != index]
    if moved:
        raise UserError(
            f"{path}: {moved[0]!r} has id {vocabulary[moved[0]]} in the model and {converted.get(moved[0])} once"
            " converted; give a folder with a tokenizer.json made for this model"
        )


def _require_same_ids(path: Path, tokenizer: Any, processor: Any, pieces: list[str]) -> None:
    control: str = tokenizer.bos_token
    added = list(tokenizer.added_tokens_encoder)
    texts = [text for text in _probe(pieces) if not any(token in text for token in added)]
    for text in texts:  # one by one: a batch would start threads, in every worker
        expected: list[int] = processor.encode(text)
        ids: list[int] = tokenizer.backend_tokenizer.encode(f"{control} {text}", add_special_tokens=False).ids[1:]
        if ids != expected:
            raise UserError(
                f"{path}: {text[:60]!r} has the ids {expected[:8]} in sentencepiece and {ids[:8]} once converted to a"
                " fast tokenizer; give a folder with a tokenizer.json made for this model"
            )


def _probe(pieces: list[str]) -> Iterator[str]:
    """The hard texts, runs of the same character, and every piece twice, in an order of its own each time."""
    yield from _HARD_TEXTS
    for character in " \n-=.a":
        yield from (f"x{character * count}y" for count in range(1, 70))
    shuffled = [piece.replace("▁", " ") for piece in pieces]
    for seed in range(2):
        random.Random(seed).shuffle(shuffled)
        for start in range(0, len(shuffled), _PIECES_PER_LINE):
            yield "".join(shuffled[start : start + _PIECES_PER_LINE])
