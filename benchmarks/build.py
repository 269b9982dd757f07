"""``megatron-longpo build`` against Megatron's own preprocess_data.py: tokens a second of one core.

    python -m benchmarks.build --megatron CHECKOUT [--documents 40] [--repeats 3]

CHECKOUT is one of Megatron-LM with tools/preprocess_data.py. Documents are Python's own sources and those of the
installed packages, joined to about 512 KB each; both sides have the same byte-level BPE of 32,768 tokens, trained on
some of them. Megatron's side is its Encoder and its IndexedDatasetBuilder: a line of JSON, tokenised and added. Ours is
what `build` does with a line: a pair on the same document, with one part of it as the short context, and two answers,
is read, put through the chat template, tokenised as trunk, branches and spans, and added. Tokens are those that are
written, seconds those of the processor, in one process; the sides take turns document by document, so both have the
same machine.
"""

import argparse
import json
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.common import write_result
from megatron_longpo.data.indexed import PairWriter
from megatron_longpo.data.parallel import RenderSettings, render_lines
from tests.tokenizers import CHATML_TEMPLATE

DOCUMENT, PART = 512 * 1024, 16 * 1024
"""Characters of a document, and of the part of it that is a short context."""
VOCAB_SIZE = 32768
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def main() -> None:
    """Measure and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megatron", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = list(documents(args.documents))
        tokenizer = train_tokenizer(folder / "tokenizer", texts[:4])
        runs = [one_run(folder / str(number), texts, tokenizer, args.megatron) for number in range(args.repeats)]
    ratio = statistics.median(run["ratio"] for run in runs)
    print(f"ours / Megatron's, tokens a second of the processor: median {ratio:.3f}")
    found = {"documents": args.documents, "runs": runs, "median_ratio": ratio}
    write_result("build", found, "python -m benchmarks.build --megatron CHECKOUT")


def one_run(folder: Path, texts: list[str], tokenizer: Path, checkout: Path) -> dict[str, Any]:
    """Both sides over all documents; the first document is not counted."""
    folder.mkdir()
    sides = {"ours": ours(folder / "ours", tokenizer), "megatron": megatron(folder / "megatron", tokenizer, checkout)}
    totals = {side: {"seconds": 0.0, "tokens": 0} for side in sides}
    for add in sides.values():
        next(add)
    for number, text in enumerate(texts):
        for side, add in sides.items():
            began = time.process_time()
            tokens = add.send((number, text))
            if number:
                totals[side]["seconds"] += time.process_time() - began
                totals[side]["tokens"] += tokens
    for add in sides.values():
        add.close()
    rates = {side: {**one, "tokens_per_s": one["tokens"] / one["seconds"]} for side, one in totals.items()}
    run = {**rates, "ratio": rates["ours"]["tokens_per_s"] / rates["megatron"]["tokens_per_s"]}
    print(run, flush=True)
    return run


def documents(number: int) -> Iterator[str]:
    """Texts of the installed Python and packages."""
    text: list[str] = []
    size = 0
    roots = (Path(json.__file__).parents[1], Path(np.__file__).parents[1])
    for path in (path for root in roots for path in sorted(root.rglob("*.py"))):
        try:
            one = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):  # what is meant to be no UTF-8, in tests
            continue
        if any(token in one for token in SPECIAL):
            continue
        text.append(one)
        size += len(one)
        if size >= DOCUMENT:
            yield "".join(text)[:DOCUMENT]
            text, size, number = [], 0, number - 1
            if number == 0:
                return


def train_tokenizer(folder: Path, texts: list[str]) -> Path:
    """A byte-level BPE with ChatML."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=CHATML_TEMPLATE, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(str(folder))
    return folder


Adding = Generator[int, tuple[int, str]]
"""Takes (number, text) of a document, gives the tokens that it wrote."""


def ours(output: Path, tokenizer: Path) -> Adding:
    """What `build` does."""
    settings = RenderSettings(tokenizer=tokenizer, chat_template=None, max_length=10**6, overlong="refuse")
    fields: dict[str, Any] = {
        "max_length": settings.max_length,
        "overlong": settings.overlong,
        "vocab_size": VOCAB_SIZE,
    }
    tokens = 0
    with PairWriter(output, tokenizer_fingerprint="none", **fields) as writer:
        while True:
            number, text = yield tokens
            line = json.dumps(pair(number, text)).encode()
            (rendered,) = render_lines([(f"pairs.jsonl:{number + 1}", line)], settings, num_workers=1)
            assert rendered.rendered is not None
            writer.add(rendered.rendered, rendered.where, rendered.meta)
            tokens = sum(sum(one.lengths) for one in (rendered.rendered.long, *rendered.rendered.short))


def pair(name: int, text: str) -> dict[str, Any]:
    """A pair on a document."""
    answers = {"chosen": "It defines the functions of a module.", "rejected": "It says nothing of the kind."}
    turn = {"instruction": "What does this source do?", "short_context": text[:PART], **answers}
    return {"id": f"pair-{name}", "context": text, "turns": [turn]}


def megatron(output: Path, tokenizer: Path, checkout: Path) -> Adding:
    """What Megatron's program does in its worker and in the process that writes."""
    from megatron.core.datasets import indexed_dataset

    program = runpy.run_path(str(checkout / "tools" / "preprocess_data.py"), run_name="preprocess_data")
    sys.argv = [
        "preprocess_data.py", "--input", "none", "--output-prefix", str(output), "--workers", "1", "--append-eod",
        "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(tokenizer),
    ]  # fmt: skip
    encoder = program["Encoder"](program["get_args"]())
    encoder.initializer()
    builder = indexed_dataset.IndexedDatasetBuilder(f"{output}.bin", dtype=np.uint16)
    tokens = 0
    while True:
        _, text = yield tokens
        ids, lengths, _ = encoder.encode(json.dumps({"text": text}))
        builder.add_document(ids["text"], lengths["text"])
        tokens = len(ids["text"])


if __name__ == "__main__":
    main()
