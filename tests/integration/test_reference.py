"""score-reference against the Hugging Face model on each short conversation; killed runs; caches of something else."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from megatron_longpo.data.indexed import PairReader
from megatron_longpo.data.render import TrunkAndBranches
from megatron_longpo.errors import UserError
from megatron_longpo.hf.sidecar import read_identity, write_identity
from megatron_longpo.model.rope_parameters import RopeParameters
from megatron_longpo.reference.cache import ReferenceCache, default_path
from megatron_longpo.reference.journal import Journal
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


def hf_sums(model: PreTrainedModel, turn: TrunkAndBranches) -> list[float]:
    """[chosen, rejected]: each branch behind its own copy of the trunk, a sequence of its own."""
    sums = []
    for branch in (turn.chosen, turn.rejected):
        tokens = torch.tensor([*turn.trunk.tolist(), *branch.tokens.tolist()])
        with torch.no_grad():
            logp = model(tokens[None]).logits[0].double().log_softmax(-1)
        ((start, stop),) = (branch.spans + len(turn.trunk)).tolist()
        sums.append(sum(logp[place - 1, tokens[place]].item() for place in range(start, stop)))
    return sums


def test_every_turn_equals_the_hugging_face_model(work: Workspace, cache: ReferenceCache) -> None:
    """With the RoPE of the reference's own config.json, whatever the policy will be trained with."""
    model = AutoModelForCausalLM.from_pretrained(work.hf, attn_implementation="eager", dtype=torch.float32).eval()
    reader = PairReader(work.data)
    assert len(cache) == len(reader) == NUM_PAIRS
    for index in range(NUM_PAIRS):
        expected = np.array([hf_sums(model, turn) for turn in reader[index].short])
        np.testing.assert_allclose(cache[index], expected, rtol=TOLERANCE, atol=0, err_msg=f"pair {index}")


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_rope_would_show(work: Workspace, cache: ReferenceCache, other: RopeParameters) -> None:
    """It moves the sums far beyond the tolerance, so the test above can fail."""
    assert cache.manifest.rope == YARN
    wrong = AutoModelForCausalLM.from_pretrained(
        work.hf, attn_implementation="eager", dtype=torch.float32, rope_parameters=other.as_dict()
    ).eval()
    expected = np.array([hf_sums(wrong, turn) for turn in PairReader(work.data)[0].short])
    assert np.abs(cache[0] / expected - 1).min() > 10 * TOLERANCE


def test_a_killed_scoring_goes_on(work: Workspace, cache: ReferenceCache, tmp_path: Path) -> None:
    """What two ranks had journalled is not scored again; the line that the kill cut short is, and all others are.

    The journalled sums are positive, which no log-probability is: in the cache they can only come from the journal.
    """
    output = tmp_path / "again.npz"
    folder = tmp_path / ".again.npz.journal"
    done = {index: [(1.0 + index, 2.0 + index)] * len(cache[index]) for index in (0, 3, 4, 9)}
    for rank, indices in enumerate(((0, 4), (3, 9))):
        journal = Journal(folder, asdict(cache.manifest), rank)
        for index in indices:
            journal.append(index, done[index])
        journal.flush()
    with (folder / "rank00001.jsonl").open("ab") as file:
        file.write(b'{"pair": 7, "logp": [[1.0, 2')
    score = ("score-reference", "--data", work.data, "--checkpoint", work.imported, "--output", output)
    finished = verb(*score, num_ranks=2)
    assert finished.status == 0, finished.output
    again = ReferenceCache.open(output)
    assert again.manifest == cache.manifest
    assert not folder.exists()
    for index in range(NUM_PAIRS):
        np.testing.assert_array_equal(again[index], done.get(index, cache[index]), err_msg=f"pair {index}")


def test_an_unfinished_scoring_of_something_else_is_refused(
    work: Workspace, cache: ReferenceCache, tmp_path: Path
) -> None:
    folder = tmp_path / ".again.npz.journal"
    Journal(folder, asdict(replace(cache.manifest, rope=OTHERS["another factor"])), 0).flush()
    output = tmp_path / "again.npz"
    finished = verb("score-reference", "--data", work.data, "--checkpoint", work.imported, "--output", output)
    (line,) = [line for line in finished.output.splitlines() if "error" in line]
    assert finished.status == 2, finished.output
    assert f"{folder} is an unfinished scoring of something else; remove it to start over" in line
    assert folder.exists() and not output.exists()


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
    ],
)
def test_a_cache_of_something_else_is_refused(
    cache: ReferenceCache, field: str, other: str | RopeParameters, message: str
) -> None:
    own = {name: getattr(cache.manifest, name) for name in ("dataset_fingerprint", "weights_sha256", "rope")}
    cache.check(**own)
    with pytest.raises(UserError, match=message) as refused:
        cache.check(**own | {field: other})
    assert str(refused.value).startswith(f"{cache.path}: ") and "\n" not in str(refused.value)
