#!/usr/bin/env bash
# LongPO in rounds: the model of one round writes the pairs of the next, at a greater length (docs/iterate.md).
#
#   MODEL=models/mistral DOCUMENTS="corpus/*.jsonl.zst" bash examples/iterate.sh
#
# Every round makes its own folder: pairs.jsonl, then what examples/mistral-128k.sh makes. A round whose exported folder
# is there is not repeated; one that was stopped while it generated goes on where it was.
set -euo pipefail

MODEL=${MODEL:?Hugging Face folder of the chat model to begin with}
DOCUMENTS=${DOCUMENTS:?files, folders or globs of long documents, separated by blanks}
WORK=${WORK:-runs/iterate}
# length:rope base of every round, in order. The released 128K run has 1e7; later rounds keep it here, as their models
# were trained with it. Give others where you know better.
ROUNDS=${ROUNDS:-131072:10000000 262144:10000000 524288:10000000}
# The frozen reference: the first model in every round (as in the paper), or "previous" for that of the round before.
REFERENCE_MODEL=${REFERENCE_MODEL:-first}
GENERATE=${GENERATE:-} # further options of generate, like: --engine openai --endpoint http://localhost:8000/v1

set -f # $DOCUMENTS and $GENERATE are lists of words; generate itself expands the globs
here=$(dirname "${BASH_SOURCE[0]}")
reference=
for round in $ROUNDS; do
    length=${round%%:*} base=${round##*:} work=$WORK/$length
    if [[ ! -e $work/exported ]]; then
        if [[ ! -e $work/pairs.jsonl ]]; then
            # shellcheck disable=SC2086
            megatron-longpo generate --documents $DOCUMENTS --model "$MODEL" --output "$work/pairs.jsonl" \
                --length "$length" --policy-rope "{\"rope_type\": \"default\", \"rope_theta\": $base}" $GENERATE
        fi
        MODEL=$MODEL PAIRS=$work/pairs.jsonl WORK=$work LENGTH=$length ROPE_BASE=$base \
            REFERENCE=${reference:-$work/imported} bash "$here/mistral-128k.sh"
    fi
    MODEL=$work/exported
    if [[ $REFERENCE_MODEL == first ]]; then
        reference=${reference:-$work/imported}
    fi
done
echo "the last round's model: $MODEL"
