"""A policy trained with another RoPE than its checkpoint's: what is exported, and what transformers computes with it.

The reference was scored with the checkpoint's own RoPE, and training takes it.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_longpo.data.indexed import PairReader
from megatron_longpo.hf.rope import rope_parameters
from megatron_longpo.hf.sidecar import read_identity
from megatron_longpo.hf.training_record import training_record_at
from tests.workspace import Workspace, make_workspace, read_metrics, train, verb

NUM_PAIRS = 4
LLAMA3 = {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "attention_factor": 1.3}
OWN = {"rope_type": "llama3", "rope_theta": 1e4, **LLAMA3}
TRAINED = {
    "base": (["--rotary-base", "10000000", "--seq-length", "131072"], {**OWN, "rope_theta": 1e7}),
    "yarn": (["--rotary-base", "50000", "--longpo-rope-scaling", json.dumps(YARN)], {**YARN, "rope_theta": 5e4}),
    "no scaling": (["--longpo-rope-scaling", '{"type": "default"}'], {"rope_type": "default", "rope_theta": 1e4}),
}
TOLERANCE = 1e-5
"""Relative: fp32 on both sides, kernels that sum in another order through 4 layers, sums of up to 60 log-probs."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("rope"), NUM_PAIRS, rope_parameters=OWN)


def hf_sums(folder: Path, data: Path) -> dict[str, float]:
    """Means over the pairs of the summed log-probs of their answers, each branch a conversation of its own."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    sums = {"policy_chosen_logp": 0.0, "policy_rejected_logp": 0.0}
    for index in range(NUM_PAIRS):
        long = PairReader(data)[index].long
        for name, branch in zip(sums, (long.chosen, long.rejected), strict=True):
            tokens = torch.tensor([*long.trunk.tolist(), *branch.tokens.tolist()])
            with torch.no_grad():
                logp = model(tokens[None]).logits[0].double().log_softmax(-1)
            for start, stop in (branch.spans + len(long.trunk)).tolist():
                places = torch.arange(start, stop)
                sums[name] += logp[places - 1, tokens[places]].sum().item() / NUM_PAIRS
    return sums


def older_form(imported: Path, folder: Path) -> Path:
    """The same checkpoint, its config.json as transformers 4 wrote it."""
    shutil.copytree(imported, folder)
    path = folder / "hf" / "config.json"
    config = json.loads(path.read_text())
    scaling = config.pop("rope_parameters")
    path.write_text(json.dumps({**config, "rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}))
    return folder


@pytest.mark.parametrize("name", TRAINED)
def test_exports_what_was_trained(work: Workspace, tmp_path: Path, name: str) -> None:
    """After two steps the policy of the third, in which every pair takes part, is the export in transformers."""
    options, rope = TRAINED[name]
    is_older, num_positions = name == "base", 131072 if name == "base" else 512
    paths = ["--save", tmp_path / "run", "--longpo-metrics", tmp_path / "m.jsonl"]
    if is_older:
        paths += ["--load", older_form(work.imported, tmp_path / "older")]
    finished = train(work, *options, *paths, "--train-iters", "3", "--save-interval", "2")
    assert finished.status == 0, finished.output
    exported = verb("export-hf", "--checkpoint", tmp_path / "run", "--output", tmp_path / "hf", "--iteration", "2")
    assert exported.status == 0, exported.output
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    if is_older:
        assert {
            **config["rope_scaling"],
            "rope_theta": config["rope_theta"],
        } == rope and "rope_parameters" not in config
    else:
        assert config["rope_parameters"] == rope and "rope_scaling" not in config and "rope_theta" not in config
    assert config["max_position_embeddings"] == num_positions
    assert f"contexts of up to {num_positions} tokens" in (tmp_path / "hf" / "README.md").read_text()
    policy = read_metrics(tmp_path / "m.jsonl")[2]
    for field, expected in hf_sums(tmp_path / "hf", work.data).items():
        assert policy[field] == pytest.approx(expected, rel=TOLERANCE), field
    before, after = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (work.hf, tmp_path / "hf"))
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_a_run_keeps_its_rope_and_its_reference(work: Workspace, tmp_path: Path) -> None:
    """Loaded from its own folder it needs no option, and the reference stays that of the imported model."""
    options, rope = TRAINED["yarn"]
    paths = ["--save", tmp_path / "run", "--longpo-metrics", tmp_path / "m.jsonl"]
    finished = train(work, *options, *paths, "--train-iters", "2", "--save-interval", "1", "--exit-interval", "1")
    assert finished.status == 0, finished.output
    assert read_identity(tmp_path / "run").rope.as_dict() == OWN
    again = ["--load", tmp_path / "run", "--train-iters", "2", "--save-interval", "1", "--longpo-beta", "0.5"]
    finished = train(work, *paths, *again, "--longpo-allow-changes")
    assert finished.status == 0, finished.output
    (stage,) = training_record_at(tmp_path / "run", 2)
    first, second = stage.stretches
    assert (first.after_step, second.after_step) == (0, 1)
    assert (first.settings["objective"]["beta"], second.settings["objective"]["beta"]) == (0.01, 0.5)
    assert first.settings["model"] == second.settings["model"] and first.settings["model"]["rope"] == rope
    assert first.settings["reference"]["rope"] == OWN
    assert training_record_at(tmp_path / "run", 1)[0].stretches == (first,)
    config = json.loads((tmp_path / "run" / "hf" / "config.json").read_text())
    assert rope_parameters(config).as_dict() == rope
    assert [step["step"] for step in read_metrics(tmp_path / "m.jsonl")] == [1, 2]
