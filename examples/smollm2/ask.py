"""Ask Hugging Face models the same questions, in transformers, greedily.

Usage: python -m examples.smollm2.ask --pairs pairs.jsonl --output FILE NAME=DIR...

The question is the first instruction of the last pair of the file, which a split such as 80,20,0 holds out of
training, with its whole long context before it.
"""

import argparse
import json
import sys
from pathlib import Path

from megatron_longpo.files import atomic_file


def main() -> int:
    """Ask every model; returns the exit status."""
    parser = argparse.ArgumentParser(description="Ask Hugging Face models one long-context question.")
    parser.add_argument("--pairs", type=Path, required=True, help="JSONL file whose last pair gives the question")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("models", nargs="+", metavar="NAME=DIR", help="Hugging Face folders and what to call them")
    args = parser.parse_args()
    pair = json.loads(args.pairs.read_text(encoding="utf-8").splitlines()[-1])
    instruction = pair["turns"][0]["instruction"]
    answers: dict[str, str] = {}
    for name, folder in (model.split("=", 1) for model in args.models):
        answers[name] = ask(Path(folder), f"{pair['context']}\n\n{instruction}")
        print(f"{name}: {answers[name]}", flush=True)
    with atomic_file(args.output) as partial:
        text = json.dumps({"pair": pair["id"], "instruction": instruction, "answers": answers}, indent=1)
        partial.write_text(text + "\n", encoding="utf-8")
    return 0


def ask(folder: Path, content: str, max_new_tokens: int = 80) -> str:
    """The greedy answer, in fp32, of the Hugging Face model in ``folder`` to one user message."""
    # Imported here: fetch_model imports this file and often has nothing to do.
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedModel

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: PreTrainedModel = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    messages = [{"role": "user", "content": content}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        output = model.generate(**prompt, max_new_tokens=max_new_tokens, do_sample=False)  # type: ignore[operator]
    return tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()


if __name__ == "__main__":
    sys.exit(main())
