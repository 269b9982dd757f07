"""The miniature through the project's verbs, against plain PyTorch: the loss and the gradient of ten steps.

SGD without momentum, a checkpoint a step: the difference of two checkpoints is the gradient. The oracle is a Hugging
Face model in float64 with the weights that the step began with; every conversation is a full sequence of its own.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from examples.miniature import make_texts
from examples.miniature.evaluate import load
from examples.miniature.methods import METHODS, build_options, generate_options, train_options
from examples.miniature.model import POLICY_THETA
from examples.miniature.run import BASE
from megatron_longpo.commands.main import main as run_verb
from megatron_longpo.data.dataset import PairOrder
from megatron_longpo.data.indexed import PairReader
from megatron_longpo.data.render import RenderedPair, TrunkAndBranches
from tests.ranks import launch
from tests.workspace import read_metrics, train_main, verb

STEPS, PAIRS, LEARNING_RATE = 10, 4, 0.125
BETA, PREF = 0.1, 0.1
TRIAL = {"lr": LEARNING_RATE, "longpo-beta": BETA, "longpo-pref-coef": PREF}
SEED = 1


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, dataset, imported base and scores, by the verbs."""
    work = tmp_path_factory.mktemp("miniature")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["make_texts", "--output", str(work / "texts"), "--num-texts", "48"])
        make_texts.main()
    assert run_verb(["generate", *generate_options(BASE, work / "texts"), "--output", str(work / "pairs.jsonl")]) == 0
    for words in (
        ["build", *build_options(work / "pairs.jsonl", BASE, work / "data")],
        ["import-hf", "--hf", BASE, "--output", work / "imported"],
        ["score-reference", "--data", work / "data", "--checkpoint", work / "imported"],
    ):
        finished = verb(*words)
        assert finished.status == 0, finished.output
    return work


def test_ten_steps_are_those_of_plain_pytorch(work: Path) -> None:
    options = ["--load", work / "imported", "--longpo-data", work / "data", "--save", work / "run"]
    options += [*train_options(METHODS["longpo"], TRIAL), "--global-batch-size", PAIRS, "--train-iters", STEPS]
    options += ["--optimizer", "sgd", "--sgd-momentum", "0", "--clip-grad", "0"]
    options += ["--lr-decay-style", "constant", "--lr-warmup-fraction", "0", "--save-interval", "1"]
    finished = launch(train_main, [str(word) for word in options])
    assert finished.status == 0, finished.output
    reported = read_metrics(work / "run" / "metrics.jsonl")
    reader, frozen = PairReader(work / "data"), load(BASE).double()
    order = PairOrder(range(len(reader)), SEED)
    before = load(BASE, POLICY_THETA).double()
    for step in range(STEPS):
        pairs = [reader[order(step * PAIRS + place)] for place in range(PAIRS)]
        loss = torch.stack([pair_loss(before, frozen, pair) for pair in pairs]).mean()
        loss.backward()
        assert reported[step]["loss"] == pytest.approx(loss.item(), rel=1e-5)
        after = checkpoint(work, step + 1)
        for (name, one), other in zip(before.named_parameters(), after.parameters(), strict=True):
            assert one.grad is not None
            gradient = (one - other).detach() / LEARNING_RATE
            # A weight of 2 is rounded to 1.2e-7 and its gradient so to 1e-6.
            assert (gradient - one.grad).abs().max() <= 1e-5 * max(1.0, one.grad.abs().max().item()), (step, name)
        before = after


def checkpoint(work: Path, step: int) -> LlamaForCausalLM:
    """The weights after a step."""
    folder = work / f"step-{step}"
    words = ["export-hf", "--checkpoint", work / "run", "--iteration", str(step), "--output", folder]
    finished = verb(*words)
    assert finished.status == 0, finished.output
    return load(folder).double()


def pair_loss(policy: LlamaForCausalLM, frozen: LlamaForCausalLM, pair: RenderedPair) -> Tensor:
    """-mean log p over trunk and chosen branch, + PREF * -log sigmoid(BETA * margin)."""
    (long,) = pair.conversations("long")
    gaps = []
    for side in ("chosen", "rejected"):
        logp, response = token_logps(policy, long, side)
        with torch.no_grad():
            reference = [token_logps(frozen, short, side) for short in pair.conversations("short")]
        gaps.append(logp[response].sum() - sum(logp[response].sum() for logp, response in reference))
        if side == "chosen":
            nll = -logp.mean()
    return nll - PREF * torch.nn.functional.logsigmoid(BETA * (gaps[0] - gaps[1]))


def token_logps(model: LlamaForCausalLM, conversation: TrunkAndBranches, side: str) -> tuple[Tensor, Tensor]:
    """(log-probs of all tokens but the first, which of them are a response's)."""
    branch = getattr(conversation, side)
    ids = torch.tensor([*map(int, conversation.trunk), *map(int, branch.tokens)])
    logp = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    response, offset = torch.zeros(len(logp), dtype=torch.bool), len(conversation.trunk) - 1
    for start, stop in branch.spans:
        response[offset + start : offset + stop] = True
    return logp, response
