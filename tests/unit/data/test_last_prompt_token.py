"""Where the trunk ends and the branches begin, on two templates read by hand (test_render.py: on random pairs)."""

from pathlib import Path

import pytest

from megatron_longpo.data.pair import Pair, Turn
from megatron_longpo.data.render import render_pair
from megatron_longpo.data.tokenizer import load_tokenizer

PAIR = Pair("p", "A long story.", (Turn("A story.", "When was it?", "Long ago.", "Today."),), {})


@pytest.mark.parametrize(
    ("family", "header", "last_prompt", "end_of_turn"),
    [
        ("chatml", "<|im_start|>assistant", "\n", "<|im_end|>"),
        ("llama3", "<|start_header_id|>assistant<|end_header_id|>", "\n\n", "<|eot_id|>"),
    ],
    ids=["chatml", "llama3"],
)
def test_branches_open_with_the_token_before_the_first_answer(
    tokenizer_folders: dict[str, Path], family: str, header: str, last_prompt: str, end_of_turn: str
) -> None:
    tokenizer = load_tokenizer(tokenizer_folders[family])
    rendered = render_pair(PAIR, tokenizer, 1000, "refuse")
    assert rendered is not None
    for conversation in (rendered.long, *rendered.short):
        assert str(tokenizer.decode(conversation.trunk.tolist())).endswith(header)
        for branch, answer in ((conversation.chosen, "Long ago."), (conversation.rejected, "Today.")):
            assert tokenizer.decode(branch.tokens[:1].tolist()) == last_prompt
            assert tokenizer.decode(branch.tokens[1:].tolist()) == answer + end_of_turn
            assert branch.spans.tolist() == [[1, len(branch.tokens)]]
