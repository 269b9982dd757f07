#!/usr/bin/env bash
# The paper's three tables (RULER, InfiniteBench, short tasks) for a base model and what was trained from it:
#
#   MODELS="base=models/mistral longpo=runs/mistral-128k/exported" bash examples/evaluate.sh
#
# The first model is the one that the others are compared with. What is there is not made again, so the same command
# goes on after a stop. The first step, alone, needs network: megatron-longpo evaluate prepare --mirror "$MIRROR"
set -euo pipefail

MODELS=${MODELS:?models as NAME=DIR, separated by blanks; the first is the baseline}
MIRROR=${MIRROR:-data/mirror} # made by evaluate prepare
OUTPUT=${OUTPUT:-runs/evaluate}
LENGTHS=${LENGTHS:-4096,8192,16384,32768,65536,131072} # of RULER, in tokens
SAMPLES=${SAMPLES:-500}                                # of each of RULER's tasks, at each length
SUITE=${SUITE:-all}
RUN=${RUN:-} # further options of evaluate run, like: --engine openai --endpoint http://localhost:8000/v1 --only longpo

set -f # $MODELS and $RUN are lists of words
if [[ $SUITE == all || $SUITE == *ruler* ]]; then
    for model in $MODELS; do # models that share a tokenizer share its prompts
        megatron-longpo evaluate make-ruler --tokenizer "${model#*=}" --mirror "$MIRROR" \
            --lengths "$LENGTHS" --samples "$SAMPLES"
    done
fi
# shellcheck disable=SC2086
megatron-longpo evaluate run --models $MODELS --suite "$SUITE" --lengths "$LENGTHS" --mirror "$MIRROR" \
    --output "$OUTPUT" $RUN
megatron-longpo evaluate report "$OUTPUT"
