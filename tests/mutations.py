"""Seeded faults that the tests must notice: ``python -m tests.mutations [NAME ...]`` (``make mutations``).

Each fault is one text replaced in one file of a temporary copy of the package, never of the checkout. The tests named
with it are run in the copy and must fail. First all of them are run unmutated and must pass.

Exit status 1 if a fault survives, if its text is not found exactly once, if its tests cannot be run (then nothing was
tested: pytest's statuses 2 to 5), or if the unmutated copy is not green.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("megatron_longpo", "tests", "examples/templates", "pyproject.toml", "LICENSE")
"""What the named tests read; LICENSE is the text that tokenizers are trained on."""

ATTENTION = "tests/unit/model/test_attention.py"
LAYOUT = "tests/unit/model/test_layout.py"
OBJECTIVES = "tests/unit/objective/test_objectives.py"
LOGPROB = "tests/unit/model/test_logprob.py::test_equals_log_softmax"
SCALING = "tests/unit/objective/test_scaling.py"
LAST_PROMPT_TOKEN = "tests/unit/data/test_last_prompt_token.py"
PUBLISHED = "tests/unit/data/test_longpo_release.py::test_trunk_branches_and_spans_are_recovered_exactly"
SENTENCEPIECE = "tests/unit/data/test_sentencepiece_model.py::test_special_tokens_and_ids"
NAMES = "tests/unit/hf/test_names.py::test_gate_comes_first"
STEP = "tests/parity/test_one_rank.py::test_equals_oracle"
ROPE = "tests/unit/model/test_rope.py::test_equals_transformers"
ANGLES = "tests/unit/model/test_rope.py::test_a_model_in_half_precision_keeps_its_angles"
OPTIMIZER = "tests/unit/test_optimizer.py"
PROCEDURE = "tests/unit/generate/test_procedure.py"
FILTER = "tests/unit/generate/test_filters.py"
RUN = "tests/unit/generate/test_run.py"
JOURNAL = "tests/unit/generate/test_journal.py"
REFERENCE = "tests/integration/test_reference.py::test_every_turn_equals_the_hugging_face_model"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutation:
    """One fault and the tests that must fail on it."""

    name: str
    file: str
    """Below the repository's root."""
    old: str
    """Occurs exactly once in the file."""
    new: str
    tests: tuple[str, ...]
    """pytest node ids; one failing is enough."""

    def apply(self, text: str) -> str:
        """The file's text with the fault; raises ValueError if ``old`` is not in it exactly once."""
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: {self.old!r} is {count} times in {self.file}, need 1; rewrite the mutation")
        return text.replace(self.old, self.new)


MUTATIONS = (
    Mutation(
        name="rejected-sees-chosen",
        file="megatron_longpo/model/layout.py",
        old="for branch in layout.branch_slices:",
        new="for branch in (slice(layout.padded_trunk, layout.branch_slices[1].stop),):",
        tests=(ATTENTION,),
    ),
    Mutation(
        name="branch-attends-trunk-padding",
        file="megatron_longpo/model/layout.py",
        old="return sum(min(max(layout.trunk - start, 0), half) for start in starts)",
        new="return sum(half for start in starts)",
        tests=(ATTENTION,),
    ),
    Mutation(
        name="start-of-the-branch-lost-in-backward",
        file="megatron_longpo/model/branches.py",
        old="for keys, causal in ((own, True), (before, False)):",
        new="for keys, causal in ((own, True),):",
        tests=(ATTENTION,),
    ),
    Mutation(
        name="branches-waited-for-at-once",
        file="megatron_longpo/model/exchange.py",
        old="""    arriving = _Arriving(parts_CHRD, own_1HRD, [work])
    yield
""",
        new="""    arriving = _Arriving(parts_CHRD, own_1HRD, [work])
    arriving.wait()
    yield
""",
        tests=("tests/unit/model/test_overlap.py",),
    ),
    Mutation(
        name="branch-gradients-of-other-ranks-lost",
        file="megatron_longpo/model/branches.py",
        old=".float().sum(0)",
        new=".float()[cp.rank()]",
        tests=(ATTENTION,),
    ),
    Mutation(
        name="trunk-blocks-merged-without-rescaling",
        file="megatron_longpo/model/kernels.py",
        old="    out_HTD.mul_(torch.exp(lse_HT - after_HT).unsqueeze(-1))\n",
        new="",
        tests=(ATTENTION,),
    ),
    Mutation(
        name="zigzag-order-lost",
        file="megatron_longpo/model/exchange.py",
        old="second.flip(1)",
        new="second",
        tests=(ATTENTION,),
    ),
    Mutation(
        name="key-gradient-goes-to-the-wrong-rank",
        file="megatron_longpo/model/exchange.py",
        old="_pass_on(found, self._group, arriving, -self._step)",
        new="_pass_on(found, self._group, arriving, self._step)",
        tests=(ATTENTION,),
    ),
    Mutation(
        name="cp-reduction-missing",
        file="megatron_longpo/model/targets.py",
        old="dist.all_reduce(total, group=group)",
        new="assert dist",
        tests=(STEP + "[two-context-parallel]",),
    ),
    Mutation(
        name="cp-reduction-doubled",
        file="megatron_longpo/model/targets.py",
        old="return grad, None",
        new="return 2 * grad, None",
        tests=(STEP + "[two-context-parallel]",),
    ),
    Mutation(
        name="every-cp-rank-counts-the-pair",
        file="megatron_longpo/objective/scaling.py",
        old="if cp_rank == 0 else",
        new="if cp_rank >= 0 else",
        tests=(STEP + "[two-context-parallel]",),
    ),
    Mutation(
        name="partial-attentions-merged-without-rescaling",
        file="megatron_longpo/model/kernels.py",
        old="torch.exp(lse.float() - lse_HT).unsqueeze(-1) * out.float()",
        new="out.float() / len(parts)",
        tests=(ATTENTION,),
    ),
    Mutation(
        name="branch-positions-shifted",
        file="megatron_longpo/model/tree_tokens.py",
        old="[(layout.trunk, length) for length in layout.branches]",
        new="[(layout.trunk + 1, length) for length in layout.branches]",
        tests=(STEP + "[one-rank]",),
    ),
    Mutation(
        name="rejected-positions-follow-chosen",
        file="megatron_longpo/model/tree_tokens.py",
        old="[(layout.trunk, length) for length in layout.branches]",
        new="[(layout.trunk + i * layout.branches[0], n) for i, n in enumerate(layout.branches)]",
        tests=(LAYOUT,),
    ),
    Mutation(
        name="label-shifted",
        file="megatron_longpo/model/targets.py",
        old="torch.roll(tokens_S, -1)",
        new="torch.roll(tokens_S, -2)",
        tests=(LAYOUT,),
    ),
    Mutation(
        name="padding-is-the-trunks-last-label",
        file="megatron_longpo/model/targets.py",
        old="next_token_S[layout.trunk - 1] = tokens_S[layout.padded_trunk]",
        new="pass",
        tests=(LAYOUT,),
    ),
    Mutation(
        name="nll-counts-padding",
        file="megatron_longpo/model/targets.py",
        old="in_nll_S[: layout.trunk] = True",
        new="in_nll_S[: layout.padded_trunk] = True",
        tests=(LAYOUT,),
    ),
    Mutation(
        name="gradient-not-divided-by-pairs",
        file="megatron_longpo/objective/scaling.py",
        old="num_pairs.to(torch.int32), dict(",
        new="torch.zeros_like(num_pairs, dtype=torch.int32), dict(",  # finalize_model_grads then divides by 1
        tests=(STEP + "[one-rank]",),
    ),
    Mutation(
        name="micro-batch-factor-wrong",
        file="megatron_longpo/objective/scaling.py",
        old="num_pairs.to(torch.int32), dict(",
        new="2 * num_pairs.to(torch.int32), dict(",
        tests=(STEP + "[one-rank]",),
    ),
    Mutation(
        name="divided-by-pairs-twice",
        file="megatron_longpo/objective/scaling.py",
        old="return (loss_P * weight_P).sum(), ",
        new="return (loss_P * weight_P).sum() / num_pairs, ",
        tests=(SCALING,),
    ),
    Mutation(
        name="data-parallel-factor-applied-twice",
        file="megatron_longpo/objective/scaling.py",
        old="return (loss_P * weight_P).sum(), ",
        new="return (loss_P * weight_P).sum() / torch.distributed.get_world_size(), ",
        tests=(STEP + "[two-data-parallel]",),
    ),
    Mutation(
        name="pair-that-fills-a-batch-counts",
        file="megatron_longpo/objective/scaling.py",
        old="return (loss_P * weight_P).sum(), ",
        new="return loss_P.sum(), ",
        tests=(SCALING,),
    ),
    Mutation(
        name="attention-factor-on-one-side",
        file="megatron_longpo/model/build.py",
        old="attention_factor**2",
        new="attention_factor",
        tests=(ROPE,),
    ),
    Mutation(
        name="frequencies-rounded-with-the-weights",
        file="megatron_longpo/model/rope.py",
        old="inv_freq.clone()",
        new="inv_freq",
        tests=(ANGLES,),
    ),
    Mutation(
        name="reference-with-the-policys-rope",
        file="megatron_longpo/reference/frozen.py",
        old="        read_identity(checkpoint).rope,\n",
        new="        type(read_identity(checkpoint).rope)(rope_theta=7.0),\n",
        tests=(REFERENCE,),
    ),
    Mutation(
        name="reference-not-summed-over-cp",
        file="megatron_longpo/reference/frozen.py",
        old="tree_logps(token_logp_N, batch.targets, cp_group)",
        new="tree_logps(token_logp_N, batch.targets)",
        tests=(STEP + "[online-reference]",),
    ),
    Mutation(
        name="online-turns-shifted-by-a-pair",
        file="megatron_longpo/reference/online.py",
        old="for sample, of_pair in zip(samples, trees, strict=True)",
        new="for sample, of_pair in zip(samples[1:] + samples[:1], trees, strict=True)",
        tests=(STEP + "[online-reference]",),
    ),
    Mutation(
        name="reference-of-turns-reversed",
        file="megatron_longpo/reference/score.py",
        old="for turn in _rows(next(logp))])",
        new="for turn in _rows(next(logp))][::-1])",
        tests=(REFERENCE,),
    ),
    Mutation(
        name="branches-see-the-first-tree-of-the-pack",
        file="megatron_longpo/model/attention.py",
        old="branches_forward(q_HRD, k_GRD, v_GRD, k_GTD, v_GTD, tree",
        new="branches_forward(q_HRD, k_GRD, v_GRD, k_GLD[:, :, : tree.rank_trunk], v_GTD, tree",
        tests=(ATTENTION + "::test_a_pack_is_its_trees", STEP + "[packed]"),
    ),
    Mutation(
        name="targets-of-the-first-tree-for-all-of-the-pack",
        file="megatron_longpo/model/forward.py",
        old="part.start + tree.targets.rows_N",
        new="tree.targets.rows_N",
        tests=(STEP + "[packed]",),
    ),
    Mutation(
        name="nll-of-the-second-branch",
        file="megatron_longpo/model/targets.py",
        old="first = layout.branch_slices[0]",
        new="first = layout.branch_slices[-1]",
        tests=(LAYOUT,),
    ),
    Mutation(
        name="tree-without-an-nll-counts-in-it",
        file="megatron_longpo/model/targets.py",
        old="(num_turns if nll_tokens else 0)",
        new="num_turns",
        tests=(LAYOUT,),
    ),
    Mutation(
        name="branches-numbered-by-branches",
        file="megatron_longpo/model/targets.py",
        old="number * num_turns + turn",
        new="number * num_branches + turn",
        tests=(LAYOUT, STEP + "[two-data-parallel]"),
    ),
    Mutation(
        name="answers-of-a-tree-swapped",
        file="megatron_longpo/step.py",
        old="for branch, answer in enumerate(kind.answers):",
        new="for branch, answer in enumerate(reversed(kind.answers)):",
        tests=(STEP + "[one-rank]",),
    ),
    Mutation(
        name="first-turn-for-all-short-trees",
        file="megatron_longpo/step.py",
        old="torch.cat([tree.logp_BK[branch] for tree in trees])",
        new="torch.cat([trees[0].logp_BK[branch] for tree in trees])",
        tests=(STEP + "[solopo-dpo]",),
    ),
    Mutation(
        name="trees-of-a-pair-in-the-wrong-order",
        file="megatron_longpo/step.py",
        old="numbers = [(kind, len(conversations(sample, kind))) for kind in objective.reads]",
        new="numbers = [(kind, len(conversations(sample, kind))) for kind in reversed(objective.reads)]",
        tests=(STEP + "[solopo-dpo]",),
    ),
    Mutation(
        name="solopo-preference-on-the-long-context",
        file="megatron_longpo/objective/objectives.py",
        old='terms.solopo(terms.simpo("short"), terms.simpo_reward)',
        new='terms.solopo(terms.simpo("long"), terms.simpo_reward)',
        tests=(STEP + "[solopo-simpo]",),
    ),
    Mutation(
        name="solopo-without-the-absolute-value",
        file="megatron_longpo/objective/terms.py",
        old='reward(policy, reference, "long", c)).abs()',
        new='reward(policy, reference, "long", c))',
        tests=(OBJECTIVES,),
    ),
    Mutation(
        name="solopo-reference-reads-the-other-context",
        file="megatron_longpo/objective/terms.py",
        old='reads = long_reference if context == "long" else "short"',
        new="reads = long_reference",
        tests=(OBJECTIVES,),
    ),
    Mutation(
        name="mean-log-prob-over-turns-in-place-of-tokens",
        file="megatron_longpo/objective/preferences.py",
        old="self.logp_K.sum() / self.num_tokens_K.sum()",
        new="(self.logp_K / self.num_tokens_K).mean()",
        tests=(OBJECTIVES,),
    ),
    Mutation(
        name="odds-without-the-complement",
        file="megatron_longpo/objective/preferences.py",
        old="return mean - torch.log(-torch.expm1(mean))",
        new="return mean",
        tests=(OBJECTIVES,),
    ),
    Mutation(
        name="work-of-a-branch-that-is-not-read",
        file="megatron_longpo/data/trees.py",
        old="lengths_C3[chosen_C] * read_3",
        new="lengths_C3[chosen_C]",
        tests=("tests/unit/data/test_trees.py",),
    ),
    Mutation(
        name="micro-batch-counts-as-one-pair",
        file="megatron_longpo/objective/scaling.py",
        old="num_pairs = counted_P.sum()",
        new="num_pairs = counted_P[:1].sum()",
        tests=(STEP + "[packed]",),
    ),
    Mutation(
        name="zigzag-lost-in-backward",
        file="megatron_longpo/model/exchange.py",
        old="total[0][:, :, : dk_GTD.shape[2]] += dk_GTD",
        new="total[0][:, :, total.shape[3] - dk_GTD.shape[2] :] += dk_GTD",
        tests=(ATTENTION,),
    ),
    Mutation(
        name="gathered-gradients-of-one-rank-only",
        file="megatron_longpo/model/exchange.py",
        old="self._gradient[:, :, :, : arrived.shape[3]] += arrived",
        new="self._gradient[:, :, :, : arrived.shape[3]] = arrived",
        tests=(ATTENTION,),
    ),
    Mutation(
        name="last-prompt-token-is-one-token-earlier",
        file="megatron_longpo/data/render.py",
        old="return Branch(tokens.ids[last_prompt :",
        new="return Branch(np.r_[tokens.ids[last_prompt - 1], tokens.ids[last_prompt + 1 :]][:",
        tests=(LAST_PROMPT_TOKEN,),
    ),
    Mutation(
        name="branch-starts-one-token-early",
        file="megatron_longpo/data/render.py",
        old="last_prompt = int(chosen.spans[0, 0]) - 1",
        new="last_prompt = int(chosen.spans[0, 0]) - 2",
        tests=(LAST_PROMPT_TOKEN,),
    ),
    Mutation(
        name="sentencepiece-merges-by-id",
        file="megatron_longpo/data/sentencepiece_model.py",
        old="(-processor.get_score(vocabulary[piece]), vocabulary[piece])",
        new="(0.0, vocabulary[piece])",
        tests=(SENTENCEPIECE,),
    ),
    Mutation(
        name="gate-and-up-swapped",
        file="megatron_longpo/hf/names.py",
        old="return torch.cat(list(parts))",
        new="return torch.cat(list(parts)[::-1])",
        tests=(NAMES,),
    ),
    Mutation(
        name="vocabulary-padding-gets-probability",
        file="megatron_longpo/model/logprob.py",
        old="num_real = max(0, min(weight_VE.shape[0], vocab_size - first))",
        new="num_real = weight_VE.shape[0]",
        tests=(LOGPROB + "[1]",),
    ),
    Mutation(
        name="hidden-gradient-not-summed-over-tp",
        file="megatron_longpo/model/logprob.py",
        old="hidden_S1E = copy_to_tensor_model_parallel_region(hidden_S1E, group=tp_group)",
        new="assert copy_to_tensor_model_parallel_region",
        tests=(LOGPROB + "[2]",),
    ),
    Mutation(
        name="tied-embedding-gradient-lost",
        file="megatron_longpo/model/forward.py",
        old="output_layer.weight if output_weight is None else output_weight,",
        new="output_layer.weight if output_weight is None else output_weight.detach(),",
        tests=(STEP + "[one-rank]",),
    ),
    Mutation(
        name="rmsprop-with-bias-correction",
        file="megatron_longpo/optimizer.py",
        old='lr=group["lr"],',
        new='lr=group["lr"] * (1 - group["alpha"] ** next(group.setdefault("steps", iter(range(1, 99))))) ** 0.5,',
        tests=(OPTIMIZER,),
    ),
    Mutation(
        name="import-border-from-common-prefix",
        file="megatron_longpo/data/longpo_release.py",
        old="last_prompt = int(chosen.spans[0, 0]) - 1",
        new="last_prompt = num_equal(chosen.ids, rejected.ids) - 1",
        tests=(PUBLISHED,),
    ),
    Mutation(
        name="import-response-as-wide-as-its-labels",
        file="megatron_longpo/data/labels.py",
        old="return first + int(ends[0]) + 1",
        new="return end",
        tests=(PUBLISHED,),
    ),
    Mutation(
        name="import-turns-in-the-order-of-the-row",
        file="megatron_longpo/data/longpo_release.py",
        old="RenderedPair(pair_id, long, _in_order_of_turns(long, short))",
        new="RenderedPair(pair_id, long, tuple(short))",
        tests=(PUBLISHED,),
    ),
    Mutation(
        name="rejected-answer-from-the-chunk",
        file="megatron_longpo/generate/procedure.py",
        old="user_message(self._context.text.strip(), instruction)\n",
        new="user_message(chunk, instruction)\n",
        tests=(PROCEDURE,),
    ),
    Mutation(
        name="every-attempt-with-one-seed",
        file="megatron_longpo/generate/procedure.py",
        old='f"{number} questions {attempt}"',
        new='f"{number} questions"',
        tests=(PROCEDURE,),
    ),
    Mutation(
        name="only-chosen-is-filtered",
        file="megatron_longpo/generate/filters.py",
        old="answers = (turn.chosen, turn.rejected)",
        new="answers = (turn.chosen, turn.chosen)",
        tests=(FILTER,),
    ),
    Mutation(
        name="answers-used-but-not-remembered",
        file="megatron_longpo/generate/run.py",
        old="            journal.add_answer(key, completion)\n",
        new="            journal.answers[key] = completion\n",
        tests=(RUN,),
    ),
    Mutation(
        name="torn-line-left-in-the-journal",
        file="megatron_longpo/journal.py",
        old="            os.ftruncate(self._lock.descriptor, end)\n",
        new="            pass\n",
        tests=(JOURNAL,),
    ),
    Mutation(
        name="pairs-in-the-order-of-the-journals",
        file="megatron_longpo/generate/merge.py",
        old="for position in sorted(places):",
        new="for position in places:",
        tests=(RUN,),
    ),
)


def main() -> int:
    """Run the mutations named on the command line, or all; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="run these only")
    names = parser.parse_args().names
    if unknown := set(names) - {mutation.name for mutation in MUTATIONS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(m.name for m in MUTATIONS)}")
    chosen = [mutation for mutation in MUTATIONS if not names or mutation.name in names]
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        return run_all(chosen, Path(folder))


def copy_tree(tree: Path) -> None:
    """Copy what the tests need into the empty folder ``tree``."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, tree / name)


def run_all(mutations: list[Mutation], tree: Path) -> int:
    """Print the table, a row as soon as it is known; 0 if all mutations are caught."""
    every_test = list(dict.fromkeys(test for mutation in mutations for test in mutation.tests))
    start = time.monotonic()
    status, output = run_tests(tree, every_test)
    if status:
        print(f"{output}\nthe unmutated copy is not green", file=sys.stderr)
        return 1
    width = max(len(mutation.name) for mutation in mutations)
    print(f"{'mutation':{width}}  result    seconds  tests")
    _print_row(width, "(none)", "green", start, ["all of those below"])
    num_failed = 0
    for mutation in mutations:
        start = time.monotonic()
        result, output = try_mutation(mutation, tree)
        _print_row(width, mutation.name, result, start, mutation.tests)
        if result != "caught":
            num_failed += 1
            print(output, file=sys.stderr)
    print(f"{len(mutations) - num_failed} of {len(mutations)} caught")
    return int(num_failed > 0)


def try_mutation(mutation: Mutation, tree: Path) -> tuple[str, str]:
    """(caught, SURVIVED or BROKEN; what there is to read about it)."""
    try:
        with applied(mutation, tree):
            status, output = run_tests(tree, mutation.tests)
    except (ValueError, OSError, subprocess.TimeoutExpired) as error:
        return "BROKEN", str(error)
    # pytest: 0 all passed, 1 a test failed, more than that: it could not run them.
    return {0: "SURVIVED", 1: "caught"}.get(status, "BROKEN"), output


@contextmanager
def applied(mutation: Mutation, tree: Path) -> Iterator[None]:
    """The mutation stands in ``tree`` inside the block, the original after it."""
    path = tree / mutation.file
    original = path.read_text(encoding="utf-8")
    path.write_text(mutation.apply(original), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(original, encoding="utf-8")


def run_tests(tree: Path, tests: Iterable[str]) -> tuple[int, str]:
    """(pytest's status, its output), up to the first failure.

    No bytecode is written: that of a mutation of the same size within the same second would pass for the original's.
    """
    environment = {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
        cwd=tree,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    return finished.returncode, finished.stdout


def _print_row(width: int, name: str, result: str, start: float, tests: Iterable[str]) -> None:
    shown = ", ".join(test.removeprefix("tests/") for test in tests)
    print(f"{name:{width}}  {result:8}  {time.monotonic() - start:7.1f}  {shown}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
