"""The SmolLM2 example from nothing but the fetched model: seconds and peak memory of every stage, held-out numbers.

python -m benchmarks.smollm2
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import write_result


def main() -> None:
    """Fetch the model if need be, run all stages in a fresh folder and write the raw numbers."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    subprocess.run([sys.executable, "-m", "examples.smollm2.fetch_model"], check=True)
    with tempfile.TemporaryDirectory() as work:
        subprocess.run([sys.executable, "-m", "examples.smollm2.run", "--work", work], check=True)
        summary = json.loads(Path(work, "summary.json").read_text(encoding="utf-8"))
    write_result("smollm2", summary)


if __name__ == "__main__":
    main()
