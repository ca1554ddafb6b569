#!/usr/bin/env bash
# Fine-tunes a random 4-layer Qwen2 with a real vocabulary on GSM8K: SFT and DFT, one device, eight simulated
# devices (2 × 2 × 2), and four micro-batches. Six runs of 100 steps; a finished run is not repeated.
#
#   experiments/random4_gsm8k/run.sh CHECKPOINT_FOLDER gsm8k_train.jsonl gsm8k_test.jsonl OUTPUT_FOLDER
set -euo pipefail
checkpoint=$1 train=$2 heldout=$3 out=$4
here=$(cd "$(dirname "$0")/../.." && pwd)
cd "$here"

run() { # name, objective, number of devices, trained tokens a chunk (on each device), then overrides
  local name=$1 objective=$2 devices=$3 chunk=$4
  shift 4
  [ -d "$out/$name/export" ] && return
  echo "== $name"
  local start=$SECONDS
  XLA_FLAGS="--xla_force_host_platform_device_count=$devices" JAX_PLATFORMS=cpu python -m dft_jax.main \
    --config=configs/gsm8k.py:objective="$objective" --workdir="$out/$name" \
    --config.model.path="$checkpoint" --config.model.compute_dtype=float32 \
    --config.data.train="$train" --config.data.heldout="$heldout" --config.data.subset= --config.data.max_length=640 \
    --config.eval.max_examples=32 --config.eval.every=50 \
    --config.train.global_batch=4 --config.train.steps=100 --config.train.loss_chunk_tokens="$chunk" \
    --config.optimizer.learning_rate=5e-4 --config.optimizer.warmup_from=zero "$@" 2>"$out/$name.log"
  echo "$name $((SECONDS - start))" >>"$out/wall_s.txt"
}

mkdir -p "$out"
for objective in sft dft; do
  run "${objective}_1device" "$objective" 1 256
  run "${objective}_8devices" "$objective" 8 128 --config.mesh.data=2 --config.mesh.fsdp=2 --config.mesh.tensor=2
  run "${objective}_4micro" "$objective" 1 128 --config.train.accumulation=4
done
