"""What import-hf writes loads into a stock GPTModel and computes what the Hugging Face model computes.

Stock Megatron is the other side of the door here: ``dist_checkpointing.load`` reads what we wrote, at several
(tp, pp) and paddings of the vocabulary, and export-hf reads what ``dist_checkpointing.save`` wrote.

Not covered: the Transformer Engine spec, which needs a GPU. That its names load is shown as far as the local spec can:
`sharded_state_dict` maps the local norm names to them.
"""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from examples.smollm2.fetch_model import default_folder, fetch
from megatron_longpo.hf import names
from megatron_longpo.hf.export_hf import export_hf
from megatron_longpo.hf.import_hf import import_hf
from tests.ranks import run_ranks
from tests.unit.hf.models import SHAPES, save_model
from tests.unit.hf.on_ranks import Job, logits

pytestmark = pytest.mark.ranks

TOKENS = torch.randint(2, 101, (24,), generator=torch.Generator().manual_seed(0)).tolist()
# (tp, pp), vocabulary padded to a multiple of: 101 tokens become 102 and 128.
LAYOUTS = [(1, 1, 1), (2, 1, 1), (1, 2, 128), (2, 2, 1)]
TOLERANCE = 1e-5
"""Logits of size 1 to 10 in fp32, products of at most 72 terms summed in another order; seen are up to 7e-6."""


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``NAME/hf`` and ``NAME/imported`` for every shape."""
    folder = tmp_path_factory.mktemp("imported")
    for name in SHAPES:
        import_hf(save_model(folder / name / "hf", name), folder / name / "imported")
    return folder


def hf_logits(folder: Path) -> Tensor:
    """``[S, vocab]`` of the Hugging Face model, fp32, eager attention."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0]


def difference(found: Tensor, folder: Path) -> float:
    expected = hf_logits(folder)
    assert found.shape == expected.shape
    return (found - expected).abs().max().item()


@pytest.mark.parametrize(("tp", "pp", "vocab_multiple"), LAYOUTS)
def test_stock_model_computes_the_same_and_exports_the_same(
    imported: Path, tmp_path: Path, tp: int, pp: int, vocab_multiple: int
) -> None:
    results = run_ranks(logits, tp * pp, jobs(imported, "imported", f"at-{tp}-{pp}", vocab_multiple), TOKENS, tp, pp)
    for name, found in zip(SHAPES, results[-1], strict=True):
        assert found.abs().max() > 1.0, name
        assert difference(found, imported / name / "hf") < TOLERANCE, name
        assert_exports_every_bit(imported / name, f"at-{tp}-{pp}", tmp_path / name)


def test_saved_in_one_layout_loads_in_another_and_exports_the_same(imported: Path, tmp_path: Path) -> None:
    run_ranks(logits, 2, jobs(imported, "imported", "first", 1), TOKENS, 2, 1)
    run_ranks(logits, 2, jobs(imported, "first", "second", 128), TOKENS, 1, 2)
    for name in SHAPES:
        assert_exports_every_bit(imported / name, "second", tmp_path / name)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_real_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    """SmolLM2-135M with its 9 heads and tied embeddings: (tp, pp) = (3, 1), then (1, 2); fetched if need be."""
    hf = fetch(default_folder())
    import_hf(hf, tmp_path / "model" / "imported")
    (tmp_path / "model" / "hf").symlink_to(hf)
    for source, target, tp, pp in (("imported", "first", 3, 1), ("first", "second", 1, 2)):
        results = run_ranks(logits, tp * pp, jobs(tmp_path, source, target, 128, ["model"]), TOKENS, tp, pp)
        assert difference(results[-1][0], hf) < 1e-4  # logits of size 20 after 30 layers, fp32
    assert_exports_every_bit(tmp_path / "model", "second", tmp_path / "out")


def jobs(
    folder: Path, source: str, target: str, vocab_multiple: int, names: Iterable[str] = tuple(SHAPES)
) -> list[Job]:
    """Load ``NAME/source`` and save it as ``NAME/target``, a whole checkpoint folder, for every name."""
    found = []
    for name in names:
        checkpoint = folder / name / target
        checkpoint.mkdir()
        (checkpoint / "latest_checkpointed_iteration.txt").write_text("3", encoding="ascii")
        (checkpoint / "hf").symlink_to(folder / name / "imported" / "hf")
        iteration = "release" if source == "imported" else "iter_0000003"
        save_as = str(checkpoint / "iter_0000003")
        found.append(Job(str(folder / name / source), vocab_multiple, iteration, save_as))
    return found


def assert_exports_every_bit(folder: Path, checkpoint: str, output: Path) -> None:
    """``folder/checkpoint`` exports to the tensors of ``folder/hf``."""
    export_hf(folder / checkpoint, output)
    before, after = (load_file(side / "model.safetensors") for side in (folder / "hf", output))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before), folder.name


def test_a_wrong_conversion_shows(imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fault moves the logits by more than 1e-2, a thousand times what the right conversion may."""
    hf = imported / "mistral-wide-heads" / "hf"
    with monkeypatch.context() as patch:
        patch.setattr(names, "join_qkv", lambda parts, num_query_groups: torch.cat(list(parts)))
        import_hf(hf, tmp_path / "plain-qkv")
    with monkeypatch.context() as patch:
        patch.setattr(names, "join_gate_up", lambda parts: torch.cat([parts[1], parts[0]]))
        import_hf(hf, tmp_path / "up-gate")
    right = imported / "mistral-wide-heads" / "imported"
    folders = [right, tmp_path / "plain-qkv", tmp_path / "up-gate"]
    faults = [Job(str(folder), 1) for folder in folders]
    faults += [Job(str(right), 1, rotary_base=1e6), Job(str(right), 1, rotary_interleaved=True)]
    differences = [difference(found, hf) for found in run_ranks(logits, 1, faults, TOKENS, 1, 1)[0]]
    assert differences[0] < TOLERANCE
    assert min(differences[1:]) > 1e-2, differences


def test_a_dropped_scaling_shows(tmp_path: Path) -> None:
    """Stock Megatron without the checkpoint's llama3 scaling: the size of what model/rope.py is there for."""
    llama3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 16}
    hf = save_model(tmp_path / "hf", rope_parameters={**llama3, "low_freq_factor": 1.0, "high_freq_factor": 4.0})
    import_hf(hf, tmp_path / "imported")
    assert difference(run_ranks(logits, 1, [Job(str(tmp_path / "imported"), 1)], TOKENS, 1, 1)[0][0], hf) > 1e-2
