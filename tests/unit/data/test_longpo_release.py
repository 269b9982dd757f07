"""data/longpo_release.py and data/labels.py: what the release's columns hold is recovered exactly, or refused."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from megatron_longpo.data.labels import IGNORED, Template, learn_template
from megatron_longpo.data.longpo_release import KINDS, SIDES, TOKENISED_COLUMNS, layout_of, raw_line, recover_pair
from megatron_longpo.data.pair import parse_pair
from megatron_longpo.data.render import Branch, RenderedPair, TrunkAndBranches, render_pair
from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.errors import UserError
from tests.longpo_release import STYLES, raw_row, tokenised_row
from tests.pairs import make_record
from tests.unit.data.test_indexed import flat

NO_LIMIT = 10**6
# Contents use 0-4; a header, its last token like any word's, and what closes a message.
HEADER, END_OF_TURN, CLOSING, USER = [10, 3], 12, [4, 10, 3], 14
TEMPLATE = Template(np.array(HEADER), END_OF_TURN, np.array(CLOSING), vocab_size=20)
Row = dict[str, list[np.ndarray]]


def arrays(row: dict[str, Any]) -> Row:
    """Every column as its innermost lists."""
    return {
        name: [np.array(values) for values in (column if isinstance(column[0], list) else [column])]
        for name, column in row.items()
    }


@pytest.mark.parametrize("style", STYLES)
def test_the_release_s_rows_are_what_build_renders(tokenizer_folders: dict[str, Path], style: str) -> None:
    family, how = STYLES[style]
    tokenizer = load_tokenizer(tokenizer_folders[family])
    template = learn_template(tokenizer)
    for num_turns in (1, 2, 3, 4):
        record = make_record(num_turns, num_turns)
        expected = render_pair(parse_pair(json.dumps(record).encode(), ""), tokenizer, NO_LIMIT, "refuse")
        found = recover_pair(arrays(tokenised_row(record, tokenizer, how)), "pair", template, NO_LIMIT, "refuse")
        assert expected is not None and found is not None
        assert flat(found)[1:] == flat(expected)[1:]
        assert flat(found)[0] == "pair"


def test_the_styles_differ_where_they_should(tokenizer_folders: dict[str, Path]) -> None:
    """Or the test above would compare the same rows several times."""
    record = make_record(2, 2)
    tokenizer = load_tokenizer(tokenizer_folders["chatml"])
    exact, wide, padded = (
        arrays(tokenised_row(record, tokenizer, STYLES[name][1]))["chosen_labels"][0]
        for name in ("chatml", "chatml wide", "chatml, end of turn is padding")
    )
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (exact == end).sum() == (wide == end).sum() == 2
    assert (padded == end).sum() == 0
    prompt = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    assert (wide != IGNORED).sum() == (exact != IGNORED).sum() + 2 + len(prompt)  # a line feed before each answer


contents = st.lists(st.integers(0, 4), min_size=1, max_size=4)


@st.composite
def published(draw: Callable[[Any], Any]) -> tuple[Row, RenderedPair]:
    """A row in the release's columns, and what it holds."""
    num_turns = draw(st.integers(1, 4))
    answers = [_two_answers(draw) for _ in range(num_turns)]
    assume(len({str(pair) for pair in answers}) == num_turns)  # equal turns cannot be told apart
    instructions = [draw(contents) for _ in range(num_turns)]
    shorts = [draw(contents) for _ in range(num_turns)]
    conversations = [(instructions, answers), *(([shorts[turn]], [answers[turn]]) for turn in range(num_turns))]
    expected = [_expected(*conversation) for conversation in conversations]
    order = draw(st.permutations(range(num_turns)))
    row: Row = {name: [] for name in TOKENISED_COLUMNS}
    for index in (0, *(turn + 1 for turn in order)):
        for branch, side in enumerate(("chosen", "rejected")):
            columns = _columns(draw, *conversations[index], branch)
            for kind, values in zip(KINDS, columns, strict=True):
                row[f"{'ref_' if index else ''}{side}_{kind}"].append(np.array(values))
    return row, RenderedPair("pair", expected[0], tuple(expected[1:]))


def _two_answers(draw: Callable[[Any], Any]) -> tuple[list[int], list[int]]:
    begin, chosen, rejected = draw(st.lists(st.integers(0, 4), max_size=5)), draw(contents), draw(contents)
    assume(chosen != rejected)
    return begin + chosen, begin + rejected


def _expected(instructions: list[list[int]], answers: list[tuple[list[int], list[int]]]) -> TrunkAndBranches:
    branches = []
    for branch in (0, 1):
        tokens, spans = HEADER[-1:], []
        for turn, answer in enumerate(answers):
            if turn:
                tokens = [*tokens, *CLOSING[:1], USER, *instructions[turn], *HEADER]
            spans.append([len(tokens), len(tokens) + len(answer[branch]) + 1])
            tokens = [*tokens, *answer[branch], END_OF_TURN]
        branches.append(Branch(np.array(tokens), np.array(spans)))
    return TrunkAndBranches(np.array([*instructions[0], *HEADER[:-1]]), *branches)


def _columns(
    draw: Callable[[Any], Any], instructions: list[list[int]], answers: list[tuple[list[int], list[int]]], branch: int
) -> tuple[list[int], list[int], list[int]]:
    """Ids, mask and labels, the labels as wide as the release's may be, with padding on one side."""
    parts: list[tuple[int, bool]] = []
    header_labelled = draw(st.integers(0, len(HEADER)))
    end_labelled, closing_labelled = draw(st.booleans()), draw(st.booleans())
    for turn, answer in enumerate(answers):
        last = turn == len(answers) - 1
        parts += [(token, False) for token in ([USER] if turn else []) + instructions[turn]]
        parts += [(token, index >= len(HEADER) - header_labelled) for index, token in enumerate(HEADER)]
        parts += [(token, True) for token in answer[branch]] + [(END_OF_TURN, end_labelled)]
        parts += [(token, closing_labelled) for token in CLOSING[: draw(st.integers(0, 3)) if last else 1]]
    padding = [0] * draw(st.integers(0, 3))
    columns = (
        [token for token, _ in parts],
        [1] * len(parts),
        [token if labelled else IGNORED for token, labelled in parts],
    )
    pads = ([END_OF_TURN for _ in padding], padding, [IGNORED for _ in padding])
    if draw(st.booleans()):
        return tuple(column + pad for column, pad in zip(columns, pads, strict=True))  # type: ignore[return-value]
    return tuple(pad + column for column, pad in zip(columns, pads, strict=True))  # type: ignore[return-value]


@given(published())
def test_trunk_branches_and_spans_are_recovered_exactly(case: tuple[Row, RenderedPair]) -> None:
    row, expected = case
    found = recover_pair(row, "pair", TEMPLATE, NO_LIMIT, "refuse")
    assert found is not None
    assert flat(found) == flat(expected)


def good_row() -> Row:
    """Two turns; chosen and rejected begin with the same token in the first."""
    answers = [([0, 1], [0, 2]), ([1], [2, 2])]
    row: Row = {name: [] for name in TOKENISED_COLUMNS}
    for long, turns in ((True, [0, 1]), (False, [0]), (False, [1])):
        for branch, side in enumerate(("chosen", "rejected")):
            parts: list[tuple[int, bool]] = []
            for turn in turns:
                parts += [(token, False) for token in (0, 1, 2, *HEADER)]
                parts += [(token, True) for token in (*answers[turn][branch], END_OF_TURN)]
            columns = [[t for t, _ in parts], [1] * len(parts), [t if on else IGNORED for t, on in parts]]
            for kind, values in zip(KINDS, columns, strict=True):
                row[f"{'' if long else 'ref_'}{side}_{kind}"].append(np.array(values))
    return row


def changed(name: str, index: int, at: Any, value: Any) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        row[name][index][at] = value

    return change


def both_changed(side: str, at: Any, value: int) -> Callable[[Row], None]:
    """The token and its label."""

    def change(row: Row) -> None:
        row[f"{side}_input_ids"][0][at] = row[f"{side}_labels"][0][at] = value

    return change


def short_dropped(side: str) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        for kind in KINDS:
            row[f"ref_{side}_{kind}"].pop()

    return change


def cut(side: str, index: int, length: int) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        for kind in KINDS:
            row[f"{side}_{kind}"][index] = row[f"{side}_{kind}"][index][:length]

    return change


def twice(row: Row) -> None:
    for side in SIDES[:2]:
        for kind in KINDS:
            row[f"{side}_{kind}"] *= 2


def same_answers(row: Row) -> None:
    for kind in KINDS:
        row[f"ref_rejected_{kind}"][1] = row[f"ref_chosen_{kind}"][1]


REFUSALS: dict[str, tuple[Callable[[Row], Any], str]] = {
    "lengths": (lambda row: row["chosen_labels"].__setitem__(0, np.array([1])), r"chosen\[0\]: 15 input_ids, 15 of"),
    "numbers": (lambda row: row["ref_chosen_labels"].pop(), "holds 2 conversations, ref_chosen_attention_mask 2 and"),
    "mask": (changed("rejected_attention_mask", 0, 3, 0), r"rejected\[0\]: attention_mask is 0 between tokens"),
    "vocabulary": (changed("chosen_input_ids", 0, 1, 20), "token 1 is 20, but the tokenizer's ids end at 19"),
    "negative id": (changed("ref_chosen_input_ids", 1, 0, -1), r"ref_chosen\[1\]: token 0 is -1, but"),
    "label": (changed("chosen_labels", 0, 6, 3), "token 6 is 1 and its label 3; a label must be the token itself"),
    "no label": (changed("chosen_labels", 0, slice(None), IGNORED), "no response: every label is -100"),
    "hole": (changed("rejected_labels", 0, 14, IGNORED), "the response at token 13 is not closed with the end-of"),
    "early label": (changed("chosen_labels", 0, slice(1, 5), np.array([1, 2, *HEADER])), "that begin at token 1 do"),
    "late label": (changed("chosen_labels", 0, 5, IGNORED), "labels that begin at token 6 do not begin where"),
    "empty response": (both_changed("chosen", 5, END_OF_TURN), "the response at token 5 is empty; drop the row"),
    "cut off": (cut("chosen", 0, 14), "the response at token 13 is not closed with the end-of-turn token 12"),
    "two ends": (both_changed("chosen", 6, END_OF_TURN), "1 labelled tokens follow the end of turn at token 6"),
    "turns": (cut("chosen", 0, 8), "the long conversation: chosen has 1 responses, rejected 2"),
    "nothing shared": (changed("chosen_input_ids", 0, 0, 4), "chosen and rejected differ before response 0 .after 0"),
    "instructions": (changed("rejected_input_ids", 0, 8, 4), "chosen and rejected differ before response 1 .after 0"),
    "same answers": (same_answers, "short conversation 1: response 0 is the same in chosen and rejected"),
    "short missing": (short_dropped("rejected"), "holds 1 short conversations, but the long one has 2 turns"),
    "several long": (twice, "chosen_input_ids holds 2 conversations; it needs one, with all turns"),
    "other answer": (both_changed("ref_rejected", 6, 3), "no short conversation has the responses of turn 0"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_recovered_is_refused(name: str) -> None:
    row = good_row()
    assert recover_pair(row, "pair", TEMPLATE, NO_LIMIT, "refuse") is not None
    change, message = REFUSALS[name]
    change(row)
    with pytest.raises(UserError, match=message):
        recover_pair(row, "pair", TEMPLATE, NO_LIMIT, "refuse")


def test_a_short_conversation_has_one_response() -> None:
    row = good_row()
    for side in ("chosen", "rejected"):
        for kind in KINDS:
            row[f"ref_{side}_{kind}"][0] = row[f"{side}_{kind}"][0]
    with pytest.raises(UserError, match="short conversation 0 has 2 responses; it needs one"):
        recover_pair(row, "pair", TEMPLATE, NO_LIMIT, "refuse")


def test_a_trunk_has_a_token() -> None:
    row = good_row()
    for name in row:
        row[name] = [values[4:] for values in row[name]]
    template = dataclasses.replace(TEMPLATE, header=np.array(HEADER[1:]))
    with pytest.raises(UserError, match="1 tokens before the first response; it needs a context of at least 2"):
        recover_pair(row, "pair", template, NO_LIMIT, "refuse")


def test_the_limit_is_refused_or_skipped_at_one_token_too_many() -> None:
    longest = 4 + 12  # the rejected side of the long conversation
    assert recover_pair(good_row(), "pair", TEMPLATE, longest, "refuse") is not None
    assert recover_pair(good_row(), "pair", TEMPLATE, longest - 1, "skip") is None
    with pytest.raises(UserError, match=f"a conversation of {longest} tokens, more than the limit of {longest - 1}"):
        recover_pair(good_row(), "pair", TEMPLATE, longest - 1, "refuse")


def test_the_template_is_learnt_whole(tokenizer_folders: dict[str, Path]) -> None:
    for family, header, end, closing in (
        ("chatml", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>", "\n<|im_start|>assistant\n"),
        ("mistral", "[/INST]", "</s>", ""),
        (
            "llama3",
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            "<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ):
        tokenizer = load_tokenizer(tokenizer_folders[family])
        template = learn_template(tokenizer)
        assert str(tokenizer.decode(template.header.tolist())).strip(" ") == header
        assert tokenizer.decode([template.end_of_turn]) == end
        assert tokenizer.decode(template.closing.tolist()) == closing


def test_layouts_are_told_by_their_columns() -> None:
    assert layout_of([*TOKENISED_COLUMNS, "chosen_lm_labels"], "f") == "tokenised"
    assert layout_of(raw_row(make_record()), "f") == "raw"
    with pytest.raises(UserError, match=r"^f: lacks the columns rejected_labels \(it has"):
        layout_of([name for name in TOKENISED_COLUMNS if name != "rejected_labels"], "f")
    with pytest.raises(UserError, match=r"^f: lacks the columns prompt, short_prompts, .*\(it has text\)"):
        layout_of(["text"], "f")


def test_a_raw_row_is_the_jsonl_line() -> None:
    record = make_record(3, 3)
    expected = parse_pair(json.dumps(record | {"meta": {}}).encode(), "")
    assert parse_pair(raw_line(raw_row(record), record["id"], ""), "") == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"questions": ["a", "b"]}, "short_prompts 1, questions 2, chosens 1, rejecteds 1"),
        ({"chosens": "text"}, "chosens must be a list with an entry a turn, not str"),
        ({"rejecteds": None}, "rejecteds must be a list with an entry a turn, not NoneType"),
    ],
)
def test_ragged_raw_rows_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^f: row 7: .*{message}"):
        raw_line(raw_row(make_record()) | change, "id", "f: row 7")
