"""Pairs in the columns of the LongPO release, made as its `data_prepare` makes them and independently of our renderer.

The release finds the responses by searching the tokenised conversation for the template's markers: labelled is what
stands between the marker of an answer and the marker of the next instruction.
"""

from dataclasses import dataclass
from typing import Any

IGNORED = -100


@dataclass(frozen=True)
class Style:
    """One way of the release to tokenise."""

    instruction: str
    response: str
    generation_prompt: bool = False
    """Whether a generation prompt follows the last answer."""
    pad: str = ""
    """The padding token; labels lose it wherever it stands."""
    nested: bool = False
    """Whether the long conversation is a list of one list."""


STYLES = {
    # postprocess_longpo_pair.py, for the three model families
    "chatml": ("chatml", Style("<|im_start|>user\n", "<|im_start|>assistant\n", pad="<|endoftext|>")),
    "mistral": ("mistral", Style(" [INST]", "[/INST]", pad="<unk>")),
    "llama3": (
        "llama3",
        Style(
            "<|start_header_id|>user<|end_header_id|>\n\n",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            pad="<|end_of_text|>",
        ),
    ),
    # format_tokenize.py: the marker without its line feed, a generation prompt, a list around the long conversation
    "chatml wide": (
        "chatml",
        Style("<|im_start|>user", "<|im_start|>assistant", True, pad="<|endoftext|>", nested=True),
    ),
    # a tokenizer whose padding token is its end of turn
    "chatml, end of turn is padding": ("chatml", Style("<|im_start|>user", "<|im_start|>assistant", pad="<|im_end|>")),
    "mistral, end of turn is padding": ("mistral", Style(" [INST]", "[/INST]", pad="</s>")),
}


def raw_row(record: dict[str, Any]) -> dict[str, Any]:
    """A JSONL record as a row of the raw layout."""
    turns = record["turns"]
    return {
        "prompt": record["context"],
        "short_prompts": [turn["short_context"] for turn in turns],
        "questions": [turn["instruction"] for turn in turns],
        "chosens": [turn["chosen"] for turn in turns],
        "rejecteds": [turn["rejected"] for turn in turns],
    }


def tokenised_row(record: dict[str, Any], tokenizer: Any, style: Style) -> dict[str, Any]:
    """A JSONL record as a row of the tokenised layout."""
    row: dict[str, Any] = {}
    for side in ("chosen", "rejected"):
        long: list[dict[str, str]] = []
        short: list[list[dict[str, str]]] = []
        for index, turn in enumerate(record["turns"]):
            long += _exchange(record["context"] if index == 0 else "", turn["instruction"], turn[side])
            short.append(_exchange(turn["short_context"], turn["instruction"], turn[side]))
        for prefix, conversations in (("", [long]), ("ref_", short)):
            columns = _columns(conversations, tokenizer, style)
            if not prefix and not style.nested:
                columns = {kind: rows[0] for kind, rows in columns.items()}
            row |= {f"{prefix}{side}_{kind}": rows for kind, rows in columns.items()}
    return row


def _exchange(context: str, question: str, answer: str) -> list[dict[str, str]]:
    content = f"{context}\n\n{question}" if context else question
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def _columns(conversations: list[list[dict[str, str]]], tokenizer: Any, style: Style) -> dict[str, list[list[int]]]:
    all_ids = [
        tokenizer.apply_chat_template(messages, add_generation_prompt=style.generation_prompt, return_dict=False)
        for messages in conversations
    ]
    pad = tokenizer.convert_tokens_to_ids(style.pad)
    longest = max(map(len, all_ids))
    all_labels = [_labels(ids, tokenizer, style, pad) for ids in all_ids]
    return {
        "input_ids": [ids + [pad] * (longest - len(ids)) for ids in all_ids],
        "attention_mask": [[1] * len(ids) + [0] * (longest - len(ids)) for ids in all_ids],
        "labels": [labels + [IGNORED] * (longest - len(labels)) for labels in all_labels],
    }


def _labels(ids: list[int], tokenizer: Any, style: Style, pad: int) -> list[int]:
    instruction, response = (
        tokenizer.encode(marker, add_special_tokens=False) for marker in (style.instruction, style.response)
    )
    labels, inside = [IGNORED] * len(ids), False
    for index, token in enumerate(ids):
        if ids[max(index - len(response), 0) : index] == response:
            inside = True
        if ids[index : index + len(instruction)] == instruction:
            inside = False
        if inside and token != pad:
            labels[index] = token
    return labels
