"""score-reference against the Hugging Face model on each short conversation; killed runs; caches of something else."""

import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from megatron_longpo.data.indexed import PairReader
from megatron_longpo.data.render import TrunkAndBranches
from megatron_longpo.errors import UserError
from megatron_longpo.hf.sidecar import read_identity, write_identity
from megatron_longpo.model.rope_parameters import RopeParameters
from megatron_longpo.reference.cache import ReferenceCache, default_path
from megatron_longpo.reference.journal import lock_folder, open_journal, pair_line
from tests.workspace import Workspace, make_workspace, verb

YARN = RopeParameters(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=16)
"""The reference's own; its short contexts are longer than 16 tokens."""
NUM_PAIRS = 10  # more than score.py journals at once, so that a second call of the schedule takes part
OTHERS = {
    "another base": replace(YARN, rope_theta=1e5),
    "another factor": replace(YARN, factor=2.0),
    "no scaling": RopeParameters(rope_theta=1e4),
}
TOLERANCE = 1e-5
"""Relative: fp32 on both sides, kernels that sum in another order through 4 layers, sums of up to 30 log-probs."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("reference"), NUM_PAIRS, rope_parameters=YARN.as_dict())


@pytest.fixture(scope="module")
def cache(work: Workspace) -> ReferenceCache:
    return ReferenceCache.open(default_path(work.data))


@pytest.fixture(scope="module")
def long_cache(work: Workspace, cache: ReferenceCache) -> ReferenceCache:
    """Beside the one on the short contexts."""
    finished = verb("score-reference", "--data", work.data, "--checkpoint", work.imported, "--context", "long")
    assert finished.status == 0, finished.output
    return ReferenceCache.open(work.folder / "data.reference-long.npz")


def hf_sums(model: PreTrainedModel, conversation: TrunkAndBranches) -> NDArray[np.float64]:
    """[turns, 2], chosen and rejected: each branch behind its own copy of the trunk, a sequence of its own."""
    columns = []
    for branch in (conversation.chosen, conversation.rejected):
        tokens = torch.tensor([*conversation.trunk.tolist(), *branch.tokens.tolist()])
        with torch.no_grad():
            logp = model(tokens[None]).logits[0].double().log_softmax(-1)
        spans = (branch.spans + len(conversation.trunk)).tolist()
        columns.append([sum(logp[at - 1, tokens[at]].item() for at in range(start, stop)) for start, stop in spans])
    return np.array(columns).T


def test_every_turn_equals_the_hugging_face_model(work: Workspace, cache: ReferenceCache) -> None:
    """With the RoPE of the reference's own config.json, whatever the policy will be trained with."""
    model = AutoModelForCausalLM.from_pretrained(work.hf, attn_implementation="eager", dtype=torch.float32).eval()
    reader = PairReader(work.data)
    assert len(cache) == len(reader) == NUM_PAIRS
    for index in range(NUM_PAIRS):
        expected = np.concatenate([hf_sums(model, turn) for turn in reader[index].short])
        np.testing.assert_allclose(cache[index], expected, rtol=TOLERANCE, atol=0, err_msg=f"pair {index}")


def test_on_the_long_context_too(work: Workspace, cache: ReferenceCache, long_cache: ReferenceCache) -> None:
    """One conversation a pair; as many turns as on the short contexts, but other numbers."""
    model = AutoModelForCausalLM.from_pretrained(work.hf, attn_implementation="eager", dtype=torch.float32).eval()
    reader = PairReader(work.data)
    assert long_cache.manifest == replace(cache.manifest, context="long")
    for index in range(NUM_PAIRS):
        expected = hf_sums(model, reader[index].long)
        np.testing.assert_allclose(long_cache[index], expected, rtol=TOLERANCE, atol=0, err_msg=f"pair {index}")
        assert np.abs(cache[index] / expected - 1).max() > 100 * TOLERANCE


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(["--context-parallel-size", "2"], marks=pytest.mark.slow),
        ["--context-parallel-size", "2", "--cp-comm-type", "a2a", "--pipeline-model-parallel-size", "2"],
        pytest.param(["--tensor-model-parallel-size", "2", "--sequence-parallel"], marks=pytest.mark.slow),
    ],
    ids=["cp2", "cp2-a2a-pp2", "tp2-sp"],
)
def test_every_layout_gives_the_same(
    work: Workspace, long_cache: ReferenceCache, layout: list[str], tmp_path: Path
) -> None:
    """1e-6: fp32 sums in another order. Every pair has one writer, or the journal would hold it twice."""
    score = ("score-reference", "--data", work.data, "--checkpoint", work.imported, "--context", "long")
    finished = verb(*score, "--output", tmp_path / "cache.npz", *layout, num_ranks=4 if "a2a" in layout else 2)
    assert finished.status == 0, finished.output
    found = ReferenceCache.open(tmp_path / "cache.npz")
    assert found.manifest == long_cache.manifest
    for index in range(NUM_PAIRS):
        np.testing.assert_allclose(found[index], long_cache[index], rtol=1e-6, atol=0, err_msg=f"pair {index}")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--context-parallel-size", "2"], "1 ranks are not a multiple of tensor x pipeline x context = 2"),
        (["--context-parallel-size", "4", "--cp-comm-type", "a2a"], "at most 2 ranks can swap here"),
        (["--context-parallel-size", "2", "--cp-comm-type", "ring"], "choose p2p, all_gather"),
    ],
)
def test_context_parallelism_that_cannot_be(work: Workspace, options: list[str], expected: str, tmp_path: Path) -> None:
    score = ("score-reference", "--data", work.data, "--checkpoint", work.imported, "--output", tmp_path / "cache.npz")
    finished = verb(*score, *options)
    (line,) = [line for line in finished.output.splitlines() if "error" in line]
    assert finished.status == 2 and expected in line, finished.output


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_rope_would_show(work: Workspace, cache: ReferenceCache, other: RopeParameters) -> None:
    """It moves the sums far beyond the tolerance, so the test above can fail."""
    assert cache.manifest.rope == YARN
    wrong = AutoModelForCausalLM.from_pretrained(
        work.hf, attn_implementation="eager", dtype=torch.float32, rope_parameters=other.as_dict()
    ).eval()
    expected = np.concatenate([hf_sums(wrong, turn) for turn in PairReader(work.data)[0].short])
    assert np.abs(cache[0] / expected - 1).min() > 10 * TOLERANCE


def test_a_killed_scoring_goes_on(work: Workspace, cache: ReferenceCache, tmp_path: Path) -> None:
    """What two ranks had journalled is not scored again; the line that the kill cut short is, and all others are.

    The journalled sums are positive, which no log-probability is: in the cache they can only come from the journal.
    """
    output = tmp_path / "again.npz"
    folder = tmp_path / ".again.npz.journal"
    done = {index: [(1.0 + index, 2.0 + index)] * len(cache[index]) for index in (0, 3, 4, 9)}
    for rank, indices in enumerate(((0, 4), (3, 9))):
        with open_journal(folder, asdict(cache.manifest), rank) as journal:
            for index in indices:
                journal.append(pair_line(index, done[index]))
    with (folder / "rank00001.journal").open("ab") as file:
        file.write(b'01234567 {"pair": 7, "logp": [[1.0, 2')
    score = ("score-reference", "--data", work.data, "--checkpoint", work.imported, "--output", output)
    finished = verb(*score, num_ranks=2)
    assert finished.status == 0, finished.output
    again = ReferenceCache.open(output)
    assert again.manifest == cache.manifest
    assert not folder.exists()
    for index in range(NUM_PAIRS):
        np.testing.assert_array_equal(again[index], done.get(index, cache[index]), err_msg=f"pair {index}")


@pytest.mark.parametrize("fault", ["other", "old", "damaged", "running"])
def test_an_unfinished_scoring_that_is_not_ours_to_go_on_with(
    work: Workspace, cache: ReferenceCache, tmp_path: Path, fault: str
) -> None:
    """Of another model, an older version, damaged, or just now written by another process: one line, nothing lost."""
    folder, output = tmp_path / ".again.npz.journal", tmp_path / "again.npz"
    lock = lock_folder(folder)
    scored = asdict(replace(cache.manifest, rope=OTHERS["another factor"]) if fault == "other" else cache.manifest)
    with open_journal(folder, scored, 0) as journal:
        journal.append(*(pair_line(index, [(-1.0, -2.0)]) for index in range(2)))
    if fault == "old":
        (folder / "scored.json").write_text("{}")
    if fault == "damaged":
        journal.path.write_bytes(journal.path.read_bytes().replace(b"-1.0", b"-3.0", 1))
    if fault != "running":
        lock.close()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    finished = verb("score-reference", "--data", work.data, "--checkpoint", work.imported, "--output", output)
    (line,) = [line for line in finished.output.splitlines() if "error" in line]
    assert finished.status == 2, finished.output
    assert {
        "other": "begun with other settings (scored.rope",
        "old": "an unfinished scoring by an older version; remove the folder",
        "damaged": "rank00000.journal:2: damaged",
        "running": f"in use by process {os.getpid()}",
    }[fault] in line
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before and not output.exists()
    if fault == "running":
        lock.close()


def test_a_dataset_of_another_tokenizer_is_refused(work: Workspace, tmp_path: Path) -> None:
    shutil.copytree(work.imported, tmp_path / "other")
    identity = read_identity(tmp_path / "other")
    write_identity(tmp_path / "other", replace(identity, tokenizer_fingerprint="0" * 64))
    output = tmp_path / "cache.npz"
    finished = verb("score-reference", "--data", work.data, "--checkpoint", tmp_path / "other", "--output", output)
    (line,) = [line for line in finished.output.splitlines() if "error" in line]
    assert finished.status == 2, finished.output
    assert f"--data {work.data} was built with another tokenizer" in line
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_bf16_is_near_fp32(work: Workspace, cache: ReferenceCache, tmp_path: Path) -> None:
    """2%: 8 bits of mantissa through 4 layers, and not the same number, which would be fp32 after all."""
    output = tmp_path / "bf16.npz"
    finished = verb(
        "score-reference", "--data", work.data, "--checkpoint", work.imported, "--output", output, "--dtype", "bf16"
    )
    assert finished.status == 0, finished.output
    bf16 = ReferenceCache.open(output)
    for index in range(NUM_PAIRS):
        np.testing.assert_allclose(bf16[index], cache[index], rtol=2e-2, err_msg=f"pair {index}")
        assert not np.array_equal(bf16[index], cache[index])


@pytest.mark.parametrize(
    ("field", "other", "message"),
    [
        ("dataset_fingerprint", "0" * 64, "another dataset .* score the dataset again"),
        ("weights_sha256", "0" * 64, "another model .* --longpo-reference-checkpoint"),
        (
            "rope",
            OTHERS["another base"],
            r"another RoPE \(yarn, rope_theta 10000.0, .*, need .* 100000.0, ",
        ),
        ("rope", OTHERS["another factor"], r"another RoPE \(.* factor 4.0, .* factor 2.0, .*\); score it again"),
        ("context", "long", r"another context \(short, need long\); score the dataset with --context long"),
    ],
)
def test_a_cache_of_something_else_is_refused(
    cache: ReferenceCache, field: str, other: str | RopeParameters, message: str
) -> None:
    own = {name: getattr(cache.manifest, name) for name in ("dataset_fingerprint", "weights_sha256", "rope", "context")}
    cache.check(**own)
    with pytest.raises(UserError, match=message) as refused:
        cache.check(**own | {field: other})
    assert str(refused.value).startswith(f"{cache.path}: ") and "\n" not in str(refused.value)
