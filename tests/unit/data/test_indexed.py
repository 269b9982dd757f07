"""data/indexed.py: what is written comes back; what is damaged or mixed is refused; errors leave nothing."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_longpo.data.dataset_files import SUFFIXES, dataset_file
from megatron_longpo.data.indexed import PairReader, PairWriter
from megatron_longpo.data.manifest import InputFile, Manifest
from megatron_longpo.data.render import Branch, Lengths, RenderedPair, TrunkAndBranches
from megatron_longpo.errors import UserError

INPUT = InputFile(path="pairs.jsonl", num_bytes=10, sha256="00")


def make_branch(rng: np.random.Generator, num_turns: int, vocab_size: int) -> Branch:
    borders = np.cumsum(rng.integers(1, 6, 2 * num_turns), dtype=np.int32)
    return Branch(rng.integers(0, vocab_size, borders[-1], dtype=np.int32), borders.reshape(num_turns, 2))


def make_conversation(rng: np.random.Generator, num_turns: int, vocab_size: int) -> TrunkAndBranches:
    trunk = rng.integers(0, vocab_size, rng.integers(1, 30), dtype=np.int32)
    return TrunkAndBranches(trunk, make_branch(rng, num_turns, vocab_size), make_branch(rng, num_turns, vocab_size))


def make_pairs(seed: int, turns: list[int], vocab_size: int = 500) -> list[RenderedPair]:
    rng = np.random.default_rng(seed)
    return [
        RenderedPair(
            id=f"id {index} é",
            long=make_conversation(rng, num_turns, vocab_size),
            short=tuple(make_conversation(rng, 1, vocab_size) for _ in range(num_turns)),
            num_removed=index % 2 * 7,
        )
        for index, num_turns in enumerate(turns)
    ]


def write(prefix: Path, pairs: list[RenderedPair], vocab_size: int = 500, **options: Any) -> Manifest:
    settings = {"tokenizer_fingerprint": "t", "vocab_size": vocab_size, "max_length": 99, "overlong": "truncate"}
    with PairWriter(prefix, **settings | options) as writer:
        for index, pair in enumerate(pairs):
            writer.add(pair, f"pairs.jsonl:{index + 1}", {"n": index})
        return writer.finish([INPUT])


def flat(pair: RenderedPair) -> list[Any]:
    """A pair as plain values, which compare."""
    conversations = (pair.long, *pair.short)
    branches = [branch for item in conversations for branch in (item.chosen, item.rejected)]
    return [
        pair.id,
        pair.num_removed,
        [item.trunk.tolist() for item in conversations],
        [(branch.tokens.tolist(), branch.spans.tolist()) for branch in branches],
    ]


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A small dataset of three pairs."""
    write(tmp_path / "set", make_pairs(0, [1, 3, 2]))
    return tmp_path / "set"


@given(seed=st.integers(0, 999), turns=st.lists(st.integers(1, 4), min_size=1, max_size=6), wide=st.booleans())
def test_pairs_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, seed: int, turns: list[int], wide: bool
) -> None:
    prefix = tmp_path_factory.mktemp("data") / "a.prefix"  # a dot in the name is not a suffix
    vocab_size = 100_000 if wide else 500
    pairs = make_pairs(seed, turns, vocab_size)
    manifest = write(prefix, pairs, vocab_size)
    reader = PairReader(prefix)
    assert reader.manifest == manifest
    assert manifest.dtype == ("int32" if wide else "uint16")
    assert len(reader) == len(pairs)
    assert [flat(reader[index]) for index in range(len(reader))] == [flat(pair) for pair in pairs]
    assert [reader.lengths(index)[0] for index in range(len(reader))] == [pair.long.lengths for pair in pairs]
    assert [list(reader.lengths(index)[1:]) for index in range(len(reader))] == [
        [item.lengths for item in pair.short] for pair in pairs
    ]
    shutil.rmtree(prefix.parent)


def test_a_document_is_a_pair_in_megatrons_own_format(prefix: Path) -> None:
    pairs = make_pairs(0, [1, 3, 2])
    stored = IndexedDataset(str(prefix))
    assert stored.document_indices.tolist() == [0, 6, 18, 27]
    second = (pairs[1].long, *pairs[1].short)
    expected = [tokens for item in second for tokens in (item.trunk, item.chosen.tokens, item.rejected.tokens)]
    assert [stored[index].tolist() for index in range(6, 18)] == [tokens.tolist() for tokens in expected]


def test_the_manifest_counts(prefix: Path) -> None:
    pairs = make_pairs(0, [1, 3, 2])
    manifest = PairReader(prefix).manifest
    assert (manifest.num_pairs, manifest.num_turns, manifest.num_truncated, manifest.num_removed) == (3, 6, 1, 7)
    trunks = sorted(len(pair.long.trunk) for pair in pairs)
    assert manifest.lengths["trunk"] == (trunks[0], trunks[1], trunks[2])
    assert manifest.num_tokens["trunk"] == sum(trunks)
    assert manifest.num_tokens["short_rejected"] == sum(len(s.rejected.tokens) for pair in pairs for s in pair.short)
    assert sum(count for _, count in manifest.histogram) == 3
    longest = max(pair.long.lengths.longer for pair in pairs)
    assert manifest.histogram[-1][0] / 2 < longest <= manifest.histogram[-1][0]
    assert manifest.inputs == (INPUT,)


def test_records_and_ids(prefix: Path) -> None:
    reader = PairReader(prefix)
    assert reader.record(2) == ("id 2 é", "pairs.jsonl:3", 0, {"n": 2})
    assert reader.find("id 1 é") == 1
    with pytest.raises(UserError, match="no pair has the id 'id 9'"):
        reader.find("id 9")
    for index in (-1, 3):
        with pytest.raises(IndexError):
            reader[index]


def test_arrays_own_their_memory_because_megatron_unmaps_its_file(prefix: Path) -> None:
    pair = PairReader(prefix)[1]
    for item in (pair.long, *pair.short):
        for array in (item.trunk, item.chosen.tokens, item.rejected.tokens):
            assert array.flags.owndata


def test_a_reader_survives_pickling(prefix: Path) -> None:
    reader = PairReader(prefix)
    assert flat(pickle.loads(pickle.dumps(reader))[1]) == flat(reader[1])


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    pairs = make_pairs(1, [2, 1])
    one = write(tmp_path / "one", pairs)
    assert write(tmp_path / "two", pairs, tokenizer_fingerprint="u").fingerprint == one.fingerprint
    moved = dataclasses.replace(pairs[0].long.chosen, spans=pairs[0].long.chosen.spans + np.int32([[0, 0], [0, -1]]))
    changed = dataclasses.replace(pairs[0], long=dataclasses.replace(pairs[0].long, chosen=moved))
    assert write(tmp_path / "three", [changed, pairs[1]]).fingerprint != one.fingerprint
    assert write(tmp_path / "four", pairs[::-1]).fingerprint != one.fingerprint


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with PairWriter(
            tmp_path / "set", tokenizer_fingerprint="t", vocab_size=500, max_length=9, overlong="refuse"
        ) as writer:
            writer.add(make_pairs(0, [1])[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_leaving_without_finish_leaves_nothing(tmp_path: Path) -> None:
    with PairWriter(
        tmp_path / "set", tokenizer_fingerprint="t", vocab_size=500, max_length=9, overlong="refuse"
    ) as writer:
        writer.add(make_pairs(0, [1])[0])
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_without_pairs_is_refused(tmp_path: Path) -> None:
    def skip_all() -> None:
        with PairWriter(
            tmp_path / "set", tokenizer_fingerprint="t", vocab_size=500, max_length=9, overlong="skip"
        ) as writer:
            writer.skip()
            writer.finish([])

    with pytest.raises(UserError, match=r"no pair is left \(1 skipped for their length, limit 9\)"):
        skip_all()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_dataset_is_replaced_only_on_demand(prefix: Path) -> None:
    before = {path.name: path.read_bytes() for path in prefix.parent.iterdir()}
    with pytest.raises(UserError, match="already exists"):
        write(prefix, make_pairs(5, [1]))
    assert {path.name: path.read_bytes() for path in prefix.parent.iterdir()} == before
    write(prefix, make_pairs(5, [1]), overwrite=True)
    assert len(PairReader(prefix)) == 1


def test_a_failed_replacement_keeps_the_old_dataset(prefix: Path) -> None:
    def fail() -> None:
        with PairWriter(
            prefix, tokenizer_fingerprint="t", vocab_size=500, max_length=9, overlong="refuse", overwrite=True
        ):
            raise UserError("bad line")

    with pytest.raises(UserError, match="bad line"):
        fail()
    assert len(PairReader(prefix)) == 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file_is_named(prefix: Path, suffix: str) -> None:
    path = dataset_file(prefix, suffix)
    path.unlink()
    with pytest.raises(UserError) as caught:
        PairReader(prefix)
    assert str(caught.value).startswith(f"{path}: no such file")


def test_a_truncated_bin_names_expected_and_seen_bytes(prefix: Path) -> None:
    path = dataset_file(prefix, ".bin")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(UserError) as caught:
        PairReader(prefix)
    assert str(caught.value).startswith(f"{path}: {len(whole) - 5} bytes, but the index asks for {len(whole)}")


@pytest.mark.parametrize("num_bytes", [0, 20, 33, 34, 60, -8])
def test_a_truncated_idx_is_refused(prefix: Path, num_bytes: int) -> None:
    path = dataset_file(prefix, ".idx")
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(UserError, match=r"set\.idx: \d+ bytes"):
        PairReader(prefix)


def test_a_foreign_idx_is_refused(prefix: Path) -> None:
    path = dataset_file(prefix, ".idx")
    path.write_bytes(b"something else" + path.read_bytes()[14:])
    with pytest.raises(UserError, match="not an index of Megatron's indexed format"):
        PairReader(prefix)


@pytest.mark.parametrize("num_bytes", [0, 40, 128, -4])
def test_truncated_spans_are_refused(prefix: Path, num_bytes: int) -> None:
    path = dataset_file(prefix, ".spans.npy")
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(UserError, match=r"set\.spans\.npy: truncated"):
        PairReader(prefix)


def test_truncated_records_are_refused(prefix: Path) -> None:
    path = dataset_file(prefix, ".pairs.jsonl")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(UserError, match=r"set\.pairs\.jsonl: 2 lines for 3 pairs"):
        PairReader(prefix)[0]


def test_a_damaged_record_is_named(prefix: Path) -> None:
    path = prefix.with_name(prefix.name + ".pairs.jsonl")
    path.write_bytes(path.read_bytes().replace(b"{", b"[", 1))  # as long as before, so opening does not see it
    with pytest.raises(UserError, match=r"pairs\.jsonl: cannot be read"):
        PairReader(prefix).record(0)


@pytest.mark.parametrize("suffix", [".idx", ".spans.npy", ".bin"])
def test_files_of_two_builds_are_refused(prefix: Path, suffix: str) -> None:
    write(prefix.with_name("other"), make_pairs(3, [1, 1, 2]))
    shutil.copy(dataset_file(prefix.with_name("other"), suffix), dataset_file(prefix, suffix))
    with pytest.raises(UserError, match="build the dataset again"):
        PairReader(prefix)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record | {"format_version": 2}, "format version 2, this program reads 1"),
        (lambda record: record | {"surprise": 1}, "not a manifest of a dataset"),
        (lambda record: {}, "not a manifest of a dataset"),
        (lambda record: [], "not a manifest of a dataset"),
    ],
)
def test_a_foreign_manifest_is_refused(prefix: Path, change: Any, message: str) -> None:
    path = dataset_file(prefix, ".manifest.json")
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=message):
        PairReader(prefix)


def test_lengths_are_of_the_longer_conversation() -> None:
    assert Lengths(trunk=10, chosen=3, rejected=4).longer == 14
