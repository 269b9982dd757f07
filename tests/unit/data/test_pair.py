"""data/pair.py: the schema and its invariants, each broken once; whatever a line holds, one clear error."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_longpo.data.pair import MAX_ID_CHARS, Pair, Turn, parse_pair, read_pairs
from megatron_longpo.errors import UserError
from tests.pairs import make_record, write_jsonl

WHERE = "pairs.jsonl:7"


def line_of(record: Any) -> bytes:
    return json.dumps(record).encode()


def turn(**changes: Any) -> dict[str, Any]:
    return make_record(turns=[make_record()["turns"][0] | changes])


def test_every_field_arrives() -> None:
    record = {
        "id": "a",
        "context": "Long.",
        "turns": [{"short_context": "S", "instruction": "Q?", "chosen": "Yes é", "rejected": "No"}],
        "meta": {"k": [1]},
    }
    turns = (Turn("S", "Q?", "Yes é", "No"),)
    assert parse_pair(line_of(record) + b"\n", WHERE) == Pair("a", "Long.", turns, {"k": [1]})
    del record["meta"]
    assert parse_pair(line_of(record), WHERE).meta == {}


BAD_LINES = {
    "blank line": (b"  \n", "blank line"),
    "not UTF-8": (b'{"id": "caf\xe9"}', "not UTF-8: byte 0xe9 at position 11"),
    "broken JSON": (b'{"id": "a", ', "not valid JSON"),
    "two objects": (b"{} {}", "not valid JSON: Extra data at column 4"),
    "not an object": (b"[1]", "the pair must be an object, not array"),
    "NaN": (b'{"meta": {"x": NaN}}', "NaN is not a JSON number"),
    "field twice": (b'{"id": "a", "id": "b"}', "field 'id' appears twice"),
    "deep nesting": (b"[" * 100_000, "not valid JSON"),
    "missing field": (line_of({"id": "a", "turns": []}), "the pair lacks the field 'context'"),
    "missing turn field": (
        line_of(make_record(turns=[{"instruction": "Q", "chosen": "a", "rejected": "b"}])),
        "turns[0] lacks the field 'short_context'",
    ),
    "unknown field": (line_of(make_record(contxt="x")), "the pair has the unknown field 'contxt'"),
    "unknown turn field": (line_of(turn(win="x")), "turns[0] has the unknown field 'win'"),
    "id is a number": (line_of(make_record(id=3)), "id must be string, not number"),
    "context is null": (line_of(make_record(context=None)), "context must be string, not null"),
    "turns is an object": (line_of(make_record(turns={})), "turns must be array, not object"),
    "meta is an array": (line_of(make_record(meta=[])), "meta must be object, not array"),
    "turn is a string": (line_of(make_record(turns=["x"])), "turns[0] must be an object, not string"),
    "answer is a boolean": (line_of(turn(chosen=True)), "turns[0].chosen must be string, not boolean"),
    "no turns": (line_of(make_record(turns=[])), "turns is empty"),
    "empty id": (line_of(make_record(id="")), "id '' must be printable"),
    "line feed in id": (line_of(make_record(id="a\nb")), "must be printable"),
    "endless id": (line_of(make_record(id="a" * (MAX_ID_CHARS + 1))), "at most 512 characters"),
    "empty context": (line_of(make_record(context="\n ")), "context is empty"),
    "empty short context": (line_of(turn(short_context="")), "turns[0].short_context is empty"),
    "empty instruction": (line_of(turn(instruction="")), "turns[0].instruction is empty"),
    "empty answer": (line_of(turn(chosen="")), "turns[0].chosen is empty"),
    "blank answer": (line_of(turn(rejected=" \t\n")), "turns[0].rejected is empty"),
    "equal answers": (line_of(turn(chosen="Same.", rejected="Same.")), "turns[0].chosen equals turns[0].rejected"),
    "equal but for blanks": (line_of(turn(chosen="Same.", rejected=" Same.\n")), "equals turns[0].rejected"),
    "half a surrogate pair": (line_of(turn(chosen="a\ud800")), "half of a surrogate pair (\\ud800) at character 1"),
    "half a pair in meta": (line_of(make_record(meta={"a": [{"b": "\ud83d"}]})), "half of a surrogate pair (\\ud83d)"),
    "half a pair in a name": (line_of(make_record(meta={"\udfff": 1})), "half of a surrogate pair (\\udfff)"),
    "half a pair in the id": (line_of(make_record(id="\ud800")), "half of a surrogate pair"),
    "Infinity": (b'{"meta": {"x": -Infinity}}', "-Infinity is not a JSON number"),
    "beyond floats": (b'{"meta": {"x": 1e999}}', "1e999 is too large for a number"),
    "UTF-16": ("\ufeff{}".encode("utf-16-le"), "not UTF-8: it is UTF-16"),
}


def test_a_byte_order_mark_is_passed_over() -> None:
    """Some editors write one before a file; two such files joined have one in the middle."""
    line = line_of(make_record())
    assert parse_pair(b"\xef\xbb\xbf" + line, WHERE) == parse_pair(line, WHERE)


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert parse_pair(line_of(make_record(meta={"x": "🙂"})), WHERE).meta == {"x": "🙂"}
    assert b"\\ud83d" in line_of(make_record(meta={"x": "🙂"}))


@pytest.mark.parametrize(("line", "message"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_one_error_that_names_the_place(line: bytes, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_pair(line, WHERE)
    assert str(caught.value).startswith(f"{WHERE}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=5,
)
ALMOST_PAIRS = st.fixed_dictionaries(
    {"id": st.text() | JSON_VALUES, "context": st.text() | JSON_VALUES},
    optional={
        "turns": JSON_VALUES
        | st.lists(
            st.fixed_dictionaries(
                dict.fromkeys(("short_context", "instruction", "chosen", "rejected"), st.text() | JSON_VALUES)
            )
        ),
        "meta": JSON_VALUES,
    },
)


@given(st.binary() | JSON_VALUES.map(line_of) | ALMOST_PAIRS.map(line_of))
def test_whatever_a_line_holds_is_a_valid_pair_or_a_user_error(line: bytes) -> None:
    try:
        pair = parse_pair(line, WHERE)
    except UserError as error:
        if not str(error).startswith(f"{WHERE}: "):
            raise
        return
    texts = [
        pair.context,
        *(text for t in pair.turns for text in (t.short_context, t.instruction, t.chosen, t.rejected)),
    ]
    assert pair.turns
    assert all(text.strip() and text.encode() for text in texts)
    assert all(t.chosen.strip() != t.rejected.strip() for t in pair.turns)


def test_read_pairs_gives_file_and_line(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", [make_record(0), make_record(1)])
    two = write_jsonl(tmp_path / "two.jsonl", [make_record(2)])
    places = [(where, pair.id) for where, pair in read_pairs([one, two])]
    assert places == [(f"{one}:1", "pair-0"), (f"{one}:2", "pair-1"), (f"{two}:1", "pair-2")]


def test_a_duplicate_id_names_both_lines(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", [make_record(0), make_record(1)])
    two = write_jsonl(tmp_path / "two.jsonl", [make_record(2), make_record(1)])
    with pytest.raises(UserError, match="'pair-1' was already used") as caught:
        list(read_pairs([one, two]))
    assert str(caught.value).startswith(f"{two}:2: ")
    assert f"{one}:2" in str(caught.value)


def test_an_empty_or_missing_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match=r"empty\.jsonl: the file is empty"):
        list(read_pairs([tmp_path / "empty.jsonl"]))
    with pytest.raises(UserError, match=r"none\.jsonl: no such file"):
        list(read_pairs([tmp_path / "none.jsonl"]))
