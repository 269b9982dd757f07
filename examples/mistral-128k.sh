#!/usr/bin/env bash
# The released LongPO run, option for option: Mistral-7B-Instruct-v0.2 at 131,072 tokens on one machine with 8 GPUs.
#
#   MODEL=models/mistral PAIRS=pairs.jsonl bash examples/mistral-128k.sh
#
# The word behind an option is its source: "released run" is what the published model was trained with, "released code"
# a default of the code it was trained by, "ours" what this package has in the place of ZeRO-3 and sequence parallelism.
# What is not here keeps its default, which is the released one too: one epoch, nothing held out, epsilon 1e-8.
set -euo pipefail

MODEL=${MODEL:?Hugging Face folder of Mistral-7B-Instruct-v0.2}
PAIRS=${PAIRS:?JSONL file of preference pairs}
WORK=${WORK:-runs/mistral-128k} # everything made here
LENGTH=${LENGTH:-131072}        # released run
ROPE_BASE=${ROPE_BASE:-10000000} # released run: 1e7, where the model has 1e6
REFERENCE=${REFERENCE:-$WORK/imported} # an imported checkpoint; examples/iterate.sh keeps the first model in later rounds
GPUS=${GPUS:-8}

# ours: lengths differ from pair to pair, and blocks of fixed sizes would leave gaps that no tensor fits into
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}

launch=(torchrun --standalone --nproc-per-node "$GPUS")

build=(
    --input "$PAIRS" --tokenizer "$MODEL" --output "$WORK/data/pairs"
    --max-length "$LENGTH" --overwrite # of what a stopped build left
    --overlong truncate # ours: tokens from the middle of the context
)

train=(
    --load "$WORK/imported" --save "$WORK/run" --save-interval 100
    --longpo-data "$WORK/data/pairs" --longpo-metrics "$WORK/metrics.jsonl"
    --longpo-reference-checkpoint "$REFERENCE"

    --max-position-embeddings "$LENGTH" # released run
    --rotary-base "$ROPE_BASE"

    --longpo-objective longpo  # released code: one sigmoid a pair
    --longpo-beta 0.01         # released code
    --longpo-pref-coef 0.01    # released code: dpo_lambda
    --longpo-nll-coef 1        # released code
    --longpo-nll-tokens all    # released code: every token of trunk + chosen branch

    --longpo-optimizer rmsprop  # released run
    --longpo-rmsprop-alpha 0.99 # released run: torch's default
    --lr 5e-7                   # released run
    --lr-decay-style cosine     # released run
    --min-lr 0                  # released run: Hugging Face's cosine ends at 0
    --lr-warmup-fraction 0.1    # released run
    --weight-decay 0            # released run
    --clip-grad 1.0             # released run: max_grad_norm of the Hugging Face Trainer
    --global-batch-size 8       # released run
    --seed 42                   # released run
    --bf16                      # released run, with fp32 main weights

    --context-parallel-size "$GPUS"     # ours: one pair on all GPUs
    --use-distributed-optimizer         # ours: main weights and RMSprop's state shared between the GPUs
    --longpo-recompute keep-attention   # ours: gradient checkpointing that computes attention once
)

# What is there is not made again, so that the script goes on where it was stopped.
have() { [[ -e $1 ]]; }

have "$WORK/data/pairs.manifest.json" || megatron-longpo build "${build[@]}"
have "$WORK/imported" || megatron-longpo import-hf --hf "$MODEL" --output "$WORK/imported"
# With the reference's own RoPE.
have "$WORK/data/pairs.reference.npz" ||
    "${launch[@]}" -m megatron_longpo.reference.score --data "$WORK/data/pairs" --checkpoint "$REFERENCE"
if have "$WORK/run/latest_checkpointed_iteration.txt"; then
    train+=(--load "$WORK/run") # the last one counts
fi
"${launch[@]}" -m megatron_longpo.train "${train[@]}"
megatron-longpo export-hf --checkpoint "$WORK/run" --output "$WORK/exported"
