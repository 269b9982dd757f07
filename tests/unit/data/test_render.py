"""data/render.py: the invariants of its docstring, against transformers' own tokenisation of the whole conversation."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from megatron_longpo.data.pair import Pair, Turn
from megatron_longpo.data.render import Branch, RenderedPair, TrunkAndBranches, render_pair
from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.errors import UserError

FAMILIES = ("chatml", "mistral", "llama3", "qwen3", "mistral-v1", "mistral-v3", "llama2")
SENTENCEPIECE = ("mistral", "mistral-v1", "mistral-v3", "llama2")
NO_LIMIT = 10**6
_tokenizers: dict[str, PreTrainedTokenizerFast] = {}


@pytest.fixture(scope="module", autouse=True)
def _load(tokenizer_folders: dict[str, Path]) -> None:
    """Once for all examples of a property."""
    _tokenizers.update((family, load_tokenizer(folder)) for family, folder in tokenizer_folders.items())


texts = st.text(st.sampled_from("abe the 12\n\té世🙂.<>"), min_size=1, max_size=16).filter(lambda text: text.strip())
turns = st.builds(Turn, texts, texts, texts, texts).filter(lambda turn: turn.chosen.strip() != turn.rejected.strip())
pairs = st.builds(Pair, st.just("p"), texts, st.lists(turns, min_size=1, max_size=3).map(tuple), st.just({}))


def rendered_answer(family: str, answer: str) -> str:
    """What decoding the answer's span must give, the end of turn aside."""
    if family in ("llama3", "llama2"):
        answer = answer.strip()
    if family == "mistral-v3":
        answer = answer.rstrip(" ")
    if family in SENTENCEPIECE:
        answer = answer.replace("\u2581", " ")  # one and the same to sentencepiece
    return answer + (" " if family == "llama2" else "")


def render(pair: Pair, family: str, max_length: int = NO_LIMIT, overlong: Any = "refuse") -> RenderedPair | None:
    """None for what must be refused: first blanks that merge with the template's, two answers of the same tokens."""
    try:
        return render_pair(pair, _tokenizers[family], max_length, overlong)
    except UserError as error:
        assert "\n" not in str(error), "an error is one line"  # noqa: PT017  # an error is one of two good outcomes
        begins_blank = any(text[0].isspace() for turn in pair.turns for text in (turn.chosen, turn.rejected))
        if begins_blank and ("share the token" in str(error) or "tokenised differently" in str(error)):
            return None
        one_answer = any(
            rendered_answer(family, turn.chosen) == rendered_answer(family, turn.rejected) for turn in pair.turns
        )
        if one_answer and "are the same tokens" in str(error):
            return None
        raise


def messages_of(context: str, turns: tuple[Turn, ...], answer: str) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = []
    for turn in turns:
        content = turn.instruction if messages else f"{context}\n\n{turn.instruction}"
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": getattr(turn, answer)}]
    return messages


def conversations_of(pair: Pair, rendered: RenderedPair) -> list[tuple[list[dict[str, str]], TrunkAndBranches, str]]:
    """(messages, what they were rendered to, branch) for every conversation of a pair."""
    contexts = [(pair.context, pair.turns, rendered.long)]
    contexts += [(turn.short_context, (turn,), short) for turn, short in zip(pair.turns, rendered.short, strict=True)]
    return [
        (messages_of(context, turns, answer), both, answer)
        for context, turns, both in contexts
        for answer in ("chosen", "rejected")
    ]


def decode(family: str, tokens: Any) -> str:
    text = _tokenizers[family].decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


@given(family=st.sampled_from(FAMILIES), pair=pairs)
def test_trunk_and_branch_are_the_conversation_up_to_its_last_response_token(family: str, pair: Pair) -> None:
    rendered = render(pair, family)
    assume(rendered is not None)
    for messages, both, answer in conversations_of(pair, rendered):
        branch: Branch = getattr(both, answer)
        tokens = [*both.trunk, *branch.tokens]
        expected = _tokenizers[family].apply_chat_template(messages, tokenize=True, return_dict=False)
        assert tokens == expected[: len(tokens)]
        assert branch.spans[-1, 1] == len(branch.tokens)
        assert decode(family, expected[len(tokens) :]).strip() == ""
        if family not in SENTENCEPIECE:  # sentencepiece writes a blank at every beginning, so its texts do not add up
            text = _tokenizers[family].apply_chat_template(messages, tokenize=False)
            assert decode(family, tokens) == text[: len(text) - len(text) + len(text.rstrip())]


@given(family=st.sampled_from(FAMILIES), pair=pairs)
def test_a_span_is_the_answer_and_its_end_of_turn(family: str, pair: Pair) -> None:
    rendered = render(pair, family)
    assume(rendered is not None)
    end_of_turn = str(_tokenizers[family].eos_token)
    for messages, both, name in conversations_of(pair, rendered):
        branch: Branch = getattr(both, name)
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        assert len(branch.spans) == len(answers)
        for answer, (start, end) in zip(answers, branch.spans, strict=True):
            assert decode(family, branch.tokens[start:end]) == rendered_answer(family, answer) + end_of_turn


anything = st.text(min_size=1, max_size=24).filter(lambda text: text.strip())
beginnings = st.sampled_from(
    ["", "", " ", "   ", "\n", "\n\n", "\t", "\u2581", "🙂", "𠮷", "\x00", "\u200b", "e\u0301"]
)
endings = st.sampled_from(["", "", " ", "\n", "🏳️\u200d🌈", "<", "<|", "</"])
any_answer = st.builds(lambda *parts: "".join(parts), beginnings, anything, endings)


two_answers = st.tuples(any_answer, any_answer).filter(lambda both: both[0].strip() != both[1].strip())


@given(family=st.sampled_from(FAMILIES), answers=st.lists(two_answers, min_size=1, max_size=2))
def test_any_answer_is_its_span_or_an_error(family: str, answers: list[tuple[str, str]]) -> None:
    turns = tuple(Turn("Once 世.", "When?", chosen, rejected) for chosen, rejected in answers)
    rendered = render(Pair("p", "Long  ago.", turns, {}), family)
    if rendered is None:
        return
    end_of_turn = str(_tokenizers[family].eos_token)
    for name, texts in zip(("chosen", "rejected"), zip(*answers, strict=True), strict=True):
        branch: Branch = getattr(rendered.long, name)
        for answer, (start, end) in zip(texts, branch.spans, strict=True):
            assert decode(family, branch.tokens[start:end]) == rendered_answer(family, answer) + end_of_turn


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_of_three_turns_that_begin_with_a_blank_or_an_emoji(family: str) -> None:
    answers = (("Plain.", "🙂 first"), (" one blank", "   three  blanks"), ("𠮷野家", "Ends with blanks  "))
    turns = tuple(Turn("Once.", "When  was it?", chosen, rejected) for chosen, rejected in answers)
    rendered = render_pair(Pair("p", "A context.", turns, {}), _tokenizers[family], NO_LIMIT, "refuse")
    assert rendered is not None
    for both in (rendered.long, *rendered.short):
        assert both.chosen.tokens[0] == both.rejected.tokens[0]
    for index, name in enumerate(("chosen", "rejected")):
        branch: Branch = getattr(rendered.long, name)
        found = [decode(family, branch.tokens[start:end]) for start, end in branch.spans]
        expected = [rendered_answer(family, answer[index]) for answer in answers]
        assert found == [text + str(_tokenizers[family].eos_token) for text in expected]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_that_begins_with_a_line_feed(family: str) -> None:
    """Joined with the header's line feed where two are one token; three are not, in Qwen3's header with these words."""
    pair = dataclasses.replace(PAIR, turns=(dataclasses.replace(PAIR.turns[0], rejected="\nToday."),))
    if family == "chatml":
        with pytest.raises(UserError, match=r"the answer beginning '\\nToday.* share the token"):
            render_pair(pair, _tokenizers[family], NO_LIMIT, "refuse")
        return
    rendered = render_pair(pair, _tokenizers[family], NO_LIMIT, "refuse")
    assert rendered is not None
    start, end = rendered.long.rejected.spans[0]
    text = decode(family, rendered.long.rejected.tokens[start:end])
    assert text == rendered_answer(family, "\nToday.") + str(_tokenizers[family].eos_token)


@given(family=st.sampled_from(FAMILIES), pair=pairs)
def test_branches_open_with_the_same_token_and_a_pair_has_a_short_conversation_a_turn(family: str, pair: Pair) -> None:
    rendered = render(pair, family)
    assume(rendered is not None)
    assert len(rendered.short) == len(pair.turns)
    for both in (rendered.long, *rendered.short):
        assert both.chosen.tokens[0] == both.rejected.tokens[0]
        assert both.chosen.spans[0, 0] == both.rejected.spans[0, 0] == 1
        for array in (both.trunk, both.chosen.tokens, both.chosen.spans, both.rejected.tokens, both.rejected.spans):
            assert array.dtype == np.int32
    assert all(short.chosen.spans.shape == short.rejected.spans.shape == (1, 2) for short in rendered.short)


CONTEXT = " ".join(f"{number} 世界 pages." for number in range(20, 60))
PAIR = Pair("p", CONTEXT, (Turn("Once.", "When was it?", "Long ago.", "Today."),), {})


@given(family=st.sampled_from(FAMILIES), num_excess=st.integers(1, 200))
def test_truncation_takes_whole_characters_from_the_middle_of_the_context(family: str, num_excess: int) -> None:
    whole = render_pair(PAIR, _tokenizers[family], NO_LIMIT, "refuse")
    assert whole is not None
    limit = whole.long.lengths.longer - num_excess
    shorter = render_pair(PAIR, _tokenizers[family], limit, "truncate")
    assert shorter is not None
    assert num_excess <= shorter.num_removed <= num_excess + 6  # at most the rest of a character at either side
    assert shorter.long.lengths.longer == whole.long.lengths.longer - shorter.num_removed <= limit
    text, kept = decode(family, whole.long.trunk), decode(family, shorter.long.trunk)
    assert "\ufffd" not in kept
    cut = next(place for place, (a, b) in enumerate(zip(text, kept, strict=False)) if a != b)
    assert kept == text[:cut] + text[len(text) - len(kept) + cut :]
    num_before = cut - text.index(CONTEXT)
    num_after = len(kept) - cut - (len(text) - text.index(CONTEXT) - len(CONTEXT))
    assert num_before > 0
    assert num_after > 0
    assert abs(num_before - num_after) < 40  # the middle in tokens is not quite the middle in characters
    for name in ("chosen", "rejected"):
        assert np.array_equal(getattr(shorter.long, name).tokens, getattr(whole.long, name).tokens)
        assert np.array_equal(getattr(shorter.long, name).spans, getattr(whole.long, name).spans)
    assert np.array_equal(shorter.short[0].trunk, whole.short[0].trunk)


def test_a_short_context_is_truncated_under_the_same_limit() -> None:
    pair = dataclasses.replace(
        PAIR, context="Brief.", turns=(dataclasses.replace(PAIR.turns[0], short_context=PAIR.context),)
    )
    whole = render_pair(pair, _tokenizers["chatml"], NO_LIMIT, "refuse")
    assert whole is not None
    limit = whole.short[0].lengths.longer - 10
    shorter = render_pair(pair, _tokenizers["chatml"], limit, "truncate")
    assert shorter is not None
    assert shorter.num_removed >= 10
    assert shorter.short[0].lengths.longer <= limit
    assert np.array_equal(shorter.long.trunk, whole.long.trunk)


def test_the_limit_is_the_longer_conversation() -> None:
    whole = render_pair(PAIR, _tokenizers["chatml"], NO_LIMIT, "refuse")
    assert whole is not None
    longer = len(whole.long.trunk) + max(len(whole.long.chosen.tokens), len(whole.long.rejected.tokens))
    for overlong in ("refuse", "truncate", "skip"):
        kept = render_pair(PAIR, _tokenizers["chatml"], longer, overlong)
        assert kept is not None
        assert kept.num_removed == 0
    assert render_pair(PAIR, _tokenizers["chatml"], longer - 1, "skip") is None
    with pytest.raises(UserError, match=rf"pair 'p': the long conversation: {longer} tokens, more than the limit"):
        render_pair(PAIR, _tokenizers["chatml"], longer - 1, "refuse")


def test_instructions_and_answers_are_never_cut() -> None:
    pair = dataclasses.replace(
        PAIR, context="Brief.", turns=(dataclasses.replace(PAIR.turns[0], instruction="Why? " * 50),)
    )
    with pytest.raises(UserError, match="but the context has only"):
        render_pair(pair, _tokenizers["chatml"], 40, "truncate")


def test_a_pair_with_one_short_context_too_long_is_skipped_whole() -> None:
    long_short = dataclasses.replace(PAIR.turns[0], short_context=PAIR.context * 2)
    pair = dataclasses.replace(PAIR, context="Brief.", turns=(PAIR.turns[0], long_short))
    assert render_pair(pair, _tokenizers["chatml"], 200, "skip") is None


@pytest.mark.parametrize("field", ["context", "short_context", "instruction", "chosen", "rejected"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_that_spells_a_control_token_is_refused(family: str, field: str) -> None:
    text = f"A text with {_tokenizers[family].eos_token} in it."
    if field == "context":
        pair = dataclasses.replace(PAIR, context=text)
    else:
        pair = dataclasses.replace(PAIR, turns=(dataclasses.replace(PAIR.turns[0], **{field: text}),))
    with pytest.raises(UserError, match=rf"pair 'p': .*{field} holds the control token .* at character 12"):
        render_pair(pair, _tokenizers[family], NO_LIMIT, "refuse")


def test_answers_that_are_equal_once_normalised_are_refused(tokenizer_folders: dict[str, Path], tmp_path: Path) -> None:
    """An accented letter as one character and as two, and a tokenizer that joins them, as Qwen's do."""
    shutil.copytree(tokenizer_folders["chatml"], tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"normalizer": {"type": "NFC"}}))
    tokenizer = load_tokenizer(tmp_path)
    turn = dataclasses.replace(PAIR.turns[0], chosen="caf\u00e9", rejected="cafe\u0301")
    with pytest.raises(
        UserError, match="pair 'p': the long conversation: chosen and rejected of its turn 0 are the same"
    ):
        render_pair(dataclasses.replace(PAIR, turns=(turn,)), tokenizer, NO_LIMIT, "refuse")


def test_an_answer_that_merges_with_the_header_is_refused() -> None:
    pair = dataclasses.replace(PAIR, turns=(dataclasses.replace(PAIR.turns[0], rejected="\nToday."),))
    with pytest.raises(UserError, match=r"pair 'p': the long conversation: the answer beginning .* share the token"):
        render_pair(pair, _tokenizers["chatml"], NO_LIMIT, "refuse")


def header_template(header: str) -> str:
    """A template whose assistant header ends so; its generation prompt is the same header."""
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '"
        + header
        + "' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant" + header + "' }}{% endif %}"
    )


def test_white_space_of_the_header_is_seen_though_the_tokenizer_trims_its_offsets(
    tokenizer_folders: dict[str, Path],
) -> None:
    tokenizer = load_tokenizer(tokenizer_folders["chatml"])
    tokenizer.chat_template = header_template(": ")
    encoding = tokenizer.backend_tokenizer.encode(": Today", add_special_tokens=False)
    assert (1, 2) not in encoding.offsets  # the post-processor has trimmed the blank away
    with pytest.raises(UserError, match=r"the answer beginning 'Long ago.*' and the text before it share the token"):
        render_pair(PAIR, tokenizer, NO_LIMIT, "refuse")


def test_branches_that_differ_before_the_first_answer_are_refused(
    tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    # Words are split with a look-ahead (a run of blanks gives its last one away unless white space follows), so where
    # runs of blanks are tokens, an answer's first character changes tokens that lie wholly before it.
    shutil.copytree(tokenizer_folders["chatml"], tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {"\u0120\u0120": 700, "\u0120\u0120\u0120": 701}
    content["model"]["merges"] += [["\u0120", "\u0120"], ["\u0120\u0120", "\u0120"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.chat_template = header_template("   ")
    pair = dataclasses.replace(PAIR, turns=(dataclasses.replace(PAIR.turns[0], chosen="1 day", rejected=" 2 days"),))
    with pytest.raises(UserError, match="the long conversation: chosen and rejected are tokenised differently before"):
        render_pair(pair, tokenizer, NO_LIMIT, "refuse")


def test_a_template_without_end_of_turn_is_refused(tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(tokenizer_folders["chatml"])
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ':\n' + m['content'] + '\n' }}{% endfor %}"
    with pytest.raises(UserError, match="does not close an answer with an end-of-turn token"):
        render_pair(PAIR, tokenizer, NO_LIMIT, "refuse")


def test_a_template_changed_after_the_first_pair_is_checked_again(tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(tokenizer_folders["chatml"])
    assert render_pair(PAIR, tokenizer, NO_LIMIT, "refuse") is not None
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        render_pair(PAIR, tokenizer, NO_LIMIT, "refuse")
