#!/usr/bin/env bash
# One evaluation in five arrangements: as it is, in another order with other slots, killed and resumed, on 8 devices.
# experiments/sampling/invariance.sh MODEL BENCHMARK_DATA OUT     (python: the one with dft_jax installed)
set -euo pipefail
model=$1 data=$2 out=$3
mkdir -p "$out/reversed"
tac "$data/amc23.jsonl" > "$out/reversed/amc23.jsonl"
evaluate() {
    python -m dft_jax.evaluate --model="$model" --benchmarks=amc23 --prompt=qwen-boxed --samples=16 \
        --temperature=1.0 --max_new_tokens=192 --out="$out/run" "$@"
}
keep() { rm -rf "${out:?}/$1" && mv "$out/run" "$out/$1"; }

evaluate --benchmark_data="$data" --compute_dtype=float32
keep one_device
evaluate --benchmark_data="$data" --compute_dtype=float32 & sleep "${KILL_AFTER_S:-150}"
pkill -9 -f "dft_jax.evaluate.*$out/run" || true
wait || true
echo "killed with $(wc -l < "$out/run/journal.jsonl") completions in the journal"
evaluate --benchmark_data="$data" --compute_dtype=float32
keep killed_and_resumed
evaluate --benchmark_data="$out/reversed" --compute_dtype=float32 --slots=24
keep other_order_and_slots
XLA_FLAGS=--xla_force_host_platform_device_count=8 evaluate --benchmark_data="$data" --compute_dtype=float32 --tensor=2
keep eight_devices
