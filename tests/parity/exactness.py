"""Write docs/exactness.md: the measured differences between a training step and the oracle, case by case.

python -m tests.parity.exactness
"""

import tempfile
from pathlib import Path

import torch

from tests.parity.pairwise import SEED, all_cases
from tests.parity.test_step import TOLERANCE, measure

OUTPUT = Path(__file__).parents[2] / "docs" / "exactness.md"
COLUMNS = (
    "loss",
    "nll",
    "margin",
    "policy_chosen_logp",
    "policy_rejected_logp",
    "gradient",
    "fp32 loss",
    "fp32 gradient",
)
HEAD = f"""# Exactness

One training step through the product (import, shared pass, objective, schedules, gradient reduction, optimizer) against
an oracle that shares no code with it: the Hugging Face model, two separate full sequences a pair, plain autograd
(`tests/parity/oracle.py`). Numbers are relative differences: of the reported means, and of the worst element of the
worst weight's gradient over the largest element of that gradient; the margin's is held against the size of the sums it
is a difference of. The product runs in fp32, the oracle in float64. The columns marked fp32 compare with an fp32
oracle, whose own rounding comes on top.

Limit in the tests, against the float64 oracle: {TOLERANCE:.0e}.

Four pairs of uneven lengths, 4 layers, 8 query heads on 4 key/value heads, vocabulary 131 (padded under tensor
parallelism), reference log-probs given; beta 0.5, preference weight 2.0, NLL weight 0.7, so that an error in the
preference term shows.

Eight cases for every layout of tensor, pipeline, context (cp) and data parallelism of at most 8 ranks; together they
meet every possible pair of switches (`tests/parity/pairwise.py`, seed {SEED}).

Written by `python -m tests.parity.exactness` with torch {torch.__version__} on CPU.

"""


def main() -> None:
    """Measure all cases and write the table; the last row is the worst of each column."""
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(all_cases(), Path(folder))
    lines = ["| case | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, found in measured.items():
        lines.append(f"| {name} | " + " | ".join(f"{found[column]:.1e}" for column in COLUMNS) + " |")
    worst = {column: max(found[column] for found in measured.values()) for column in COLUMNS}
    lines.append("| **worst** | " + " | ".join(f"**{worst[column]:.1e}**" for column in COLUMNS) + " |")
    OUTPUT.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote docs/exactness.md: {len(measured)} cases, worst gradient {worst['gradient']:.1e}")


if __name__ == "__main__":
    main()
