"""Prompts are counted as the model sees them, cut in the middle, and read back as they were written."""

import json
import random
from pathlib import Path

import pytest

from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.long.prompts import Prompt, cut_middle, prompt_length, read_prompts, write_prompts

FAMILIES = ["chatml", "mistral", "llama3", "llama2"]


def prompt(text: str, answer_start: str = "") -> Prompt:
    return Prompt(id="0", text=text, answer_start=answer_start, references=("x",), max_new_tokens=10)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_length_is_that_of_the_continued_conversation_and_the_answers_room(
    tokenizer_folders: dict[str, Path], family: str
) -> None:
    tokenizer = load_tokenizer(tokenizer_folders[family])
    one = prompt("Where is it?", "It is")
    begun = [{"role": "user", "content": one.text}, {"role": "assistant", "content": "It is"}]
    ids = tokenizer.apply_chat_template(begun, continue_final_message=True, return_dict=False)
    assert prompt_length(tokenizer, one) == len(ids) + 10


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(5))
def test_what_is_cut_is_the_middle_and_as_little_as_needed(
    tokenizer_folders: dict[str, Path], family: str, seed: int
) -> None:
    tokenizer = load_tokenizer(tokenizer_folders[family])
    draw = random.Random(seed)
    text = "".join(draw.choice("abc de\n\u00e9\u4e2d\U0001f600") for _ in range(draw.randrange(300, 600)))
    text = f"First {text} last?"
    whole = prompt(text)
    assert cut_middle(tokenizer, whole, 10**6).text == text
    limit = draw.randrange(60, prompt_length(tokenizer, whole))
    cut = cut_middle(tokenizer, whole, limit)
    assert cut.length == prompt_length(tokenizer, cut) <= limit
    assert cut.length > limit - 12  # where the halves meet, and in halving, a few may be lost
    place = next(
        place
        for place in range(len(cut.text) + 1)
        if text.startswith(cut.text[:place]) and text.endswith(cut.text[place:])
    )
    head, tail = (
        len(tokenizer(part, add_special_tokens=False).input_ids) for part in (cut.text[:place], cut.text[place:])
    )
    assert abs(head - tail) <= 12
    assert cut.text.startswith("First") and cut.text.endswith("last?")


def test_a_limit_below_the_answers_room_is_refused(tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(tokenizer_folders["chatml"])
    with pytest.raises(UserError, match="12 tokens hold not even the chat template and the 10 of the answer"):
        cut_middle(tokenizer, prompt("Where is it? " * 9), 12)


def test_prompts_are_read_as_they_were_written(tmp_path: Path) -> None:
    prompts = [
        Prompt(id="0", text="a\u2028b\n", answer_start="Say", references=("1", "2"), max_new_tokens=3, length=9),
        Prompt(id="1", text="\u00e9", references=("B",), options=("w", "x", "y", "z"), max_new_tokens=4, length=5),
    ]
    path = tmp_path / "prompts.jsonl"
    write_prompts(path, prompts)
    assert list(read_prompts(path)) == prompts
    assert len({one.sha256 for one in prompts}) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, '"text" is of the type NoneType'),
        ({"references": "x"}, '"references" is no list of texts'),
        ({"more": 1}, '"more" is missing or not known'),
        ({"length": True}, '"length" is of the type bool'),
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    write_prompts(path, [prompt("a"), prompt("b")])
    lines = path.read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), **change})
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=f"{path}:2: no prompt \\({message}"):
        list(read_prompts(path))
    path.write_text(lines[0] + "\n" + lines[0][:-9])
    with pytest.raises(UserError, match=f"{path}:2: not a JSON line"):
        list(read_prompts(path))
