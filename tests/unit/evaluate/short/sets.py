"""Small sets of the Hub's layout, tiny random models, and what is told of both by hand."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval
import pyarrow
import pyarrow.parquet
import torch
from tokenizers import processors
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_longpo.evaluate.mirror import PLACES, Mirror, record_set
from megatron_longpo.evaluate.short.engines import local_short_model
from megatron_longpo.evaluate.short.run import ShortResult, run_short
from megatron_longpo.evaluate.short.tasks import ShortModel
from tests.tokenizers import VOCABULARY_SIZE
from tests.workspace import WORDS

LM_EVAL_TASKS = Path(lm_eval.__file__).parent / "tasks"
SUBJECTS = sorted(path.stem.removeprefix("mmlu_") for path in LM_EVAL_TASKS.glob("mmlu/default/mmlu_*.yaml"))
CONTEXT = 4096
NUM = 12
"""Questions of a set; MMLU: 2 of each subject."""
_draw = random.Random(5)


def words(low: int, high: int) -> str:
    return " ".join(_draw.choices(WORDS, k=_draw.randint(low, high)))


def arc_row(number: int) -> dict[str, Any]:
    choices = {"text": [words(1, 6) for _ in range(4)], "label": list("ABCD")}
    return {"id": str(number), "question": words(4, 8) + "?", "choices": choices, "answerKey": "ABCD"[number % 4]}


def mmlu_row(subject: str, number: int) -> dict[str, Any]:
    return {
        "question": words(3, 6),
        "subject": subject,
        "choices": [words(1, 2) for _ in range(4)],
        "answer": number % 4,
    }


def hellaswag_row(number: int) -> dict[str, Any]:
    texts = {"activity_label": words(1, 2), "ctx_a": words(3, 5) + ".", "ctx_b": words(1, 2)}
    return {**texts, "endings": [words(2, 4) for _ in range(4)], "label": str(number % 4)}


def winogrande_row(number: int) -> dict[str, Any]:
    sentence = f"{words(2, 4)} _ {words(2, 4)}"
    return {"sentence": sentence, "option1": "river", "option2": "city", "answer": str(number % 2 + 1)}


def write_set(folder: Path, configs: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Lay a set out as `hf download` leaves it: a file a split, and which is which in README.md."""
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            path = folder / config / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
            lines += [f"  - split: {split}", f"    path: {config}/{split}.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


def record(root: Path, name: str) -> None:
    record_set(root, name, "made up", [path for path in (root / PLACES[name]).rglob("*") if path.is_file()])


def tiny_model() -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=VOCABULARY_SIZE, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT, initializer_range=0.3,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def adding(tokenizer: Any, template: str) -> Any:
    names = [part for part in template.split() if part != "$A"]
    specials = [(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=specials)
    return tokenizer


def local(model: Any, tokenizer: Any, batch_size: int = 4, context_limit: int = CONTEXT) -> ShortModel:
    return local_short_model(model, tokenizer, batch_size=batch_size, context_limit=context_limit)


def run(model: ShortModel, task: str, mirror: Mirror, kept: Path, limit: int | None = None) -> ShortResult:
    return run_short(model, task, mirror=mirror, limit=limit, kept_answers=kept, on_progress=lambda done, all_: None)


def logps_by_hand(model: Any, tokenizer: Any, prompt: str, options: Sequence[str]) -> list[float]:
    """Log-probability of each option after the prompt, one pass each, in fp64."""
    found: list[float] = []
    for option in options:
        ids, num_prompt = tokenizer(f"{prompt} {option}").input_ids, len(tokenizer(prompt).input_ids)
        with torch.no_grad():
            logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        found.append(sum(float(logp[place - 1, ids[place]]) for place in range(num_prompt, len(ids))))
    return found


def rows_of(mirror: Mirror, name: str, config: str, split: str) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(mirror.folder / PLACES[name] / config / f"{split}.parquet").to_pylist()
