"""What import-hf writes loads into a stock GPTModel and computes what the Hugging Face model computes.

Stock Megatron is the other side of the door here: ``dist_checkpointing.load`` reads what we wrote, at several
(tp, pp) and paddings of the vocabulary, and export-hf reads what ``dist_checkpointing.save`` wrote.

Not covered: the Transformer Engine spec, which needs a GPU. That its names load is shown as far as the local spec can:
`sharded_state_dict` maps the local norm names to them.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_longpo.hf import names
from megatron_longpo.hf.export_hf import export_hf
from megatron_longpo.hf.import_hf import import_hf
from tests.ranks import run_ranks
from tests.unit.hf.models import SHAPES, save_model
from tests.unit.hf.on_ranks import Job, logits

pytestmark = pytest.mark.ranks

TOKENS = torch.randint(2, 101, (24,), generator=torch.Generator().manual_seed(0)).tolist()
# (tp, pp), vocabulary padded to a multiple of: 101 tokens become 102 and 128.
LAYOUTS = [(2, 1, 1), (1, 2, 128)]


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
    """1e-5: logits of size 1 to 10 in fp32, products of at most 72 terms summed in another order."""
    saved = {name: imported / name / f"trained-{tp}-{pp}" for name in SHAPES}
    jobs = [
        Job(str(imported / name / "imported"), vocab_multiple, save_as=str(saved[name] / "iter_0000003"))
        for name in SHAPES
    ]
    results = run_ranks(logits, tp * pp, jobs, TOKENS, tp, pp)
    for name, found in zip(SHAPES, results[-1], strict=True):
        assert found.abs().max() > 1.0, name
        assert difference(found, imported / name / "hf") < 1e-5, name
        (saved[name] / "latest_checkpointed_iteration.txt").write_text("3", encoding="ascii")
        (saved[name] / "hf").symlink_to(imported / name / "imported" / "hf")
        export_hf(saved[name], tmp_path / name)
        before, after = (
            load_file(folder / "model.safetensors") for folder in (imported / name / "hf", tmp_path / name)
        )
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before), name


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
    jobs = [Job(str(folder), 1) for folder in folders] + [Job(str(right), 1, rotary_base=1e6)]
    differences = [difference(found, hf) for found in run_ranks(logits, 1, jobs, TOKENS, 1, 1)[0]]
    assert differences[0] < 1e-5
    assert min(differences[1:]) > 1e-2, differences
