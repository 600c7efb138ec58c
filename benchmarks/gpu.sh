#!/usr/bin/env bash
# A quarter of an hour on one GPU: its tests, the autotune, the benchmarks and training. Every part writes into $OUT
# and is skipped once it has finished; the autotune also writes stochastic_bottleneck/kernels/nt_xent_blocks.json. Start
# again to run the rest, or to train on. Nothing is installed or downloaded.
#
#   OUT=runs/gpu DATA=FOLDER_OR_TAR_OF_CIFAR10 bash benchmarks/gpu.sh
#   bash benchmarks/gpu.sh --dry    # the same parts on the CPU with tiny sizes, into a temporary folder
#
# Without DATA nothing is trained. LIMIT is the time in seconds, WORKERS the number of processes that run tests.
set -uo pipefail
cd "$(dirname "$0")/.."
dry=0
[ "${1:-}" = --dry ] && dry=1
[ $dry = 1 ] && OUT=${OUT:-$(mktemp -d)}
OUT=$(realpath -m "${OUT:-runs/gpu}")
PYTHON=${PYTHON:-python} LIMIT=${LIMIT:-900} WORKERS=${WORKERS:-4} failed=()
mkdir -p "$OUT"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

part() { # FILE SECONDS COMMAND...: run for as long as that, and no longer than LIMIT, unless it has written the file
    local file=$1 most=$2 left=$((LIMIT - SECONDS)) begin=$SECONDS
    shift 2
    [ -e "$OUT/$file" ] && { echo "$file: done before"; return; }
    [ $left -lt 10 ] && { echo "$file: no time left"; failed+=("$file"); return; }
    timeout -k 10 $((most < left ? most : left)) "$@" >"$OUT/$file.log" 2>&1
    local code=$?
    [ $code = 0 ] && touch "$OUT/$file" || failed+=("$file")
    echo "$file: exit code $code after $((SECONDS - begin)) s, output in $OUT/$file.log"
}

tests() { # each test's outcome as it ends, so that those of an interrupted run have names too
    "$PYTHON" -m pytest -m gpu -v --tb=short -p no:cacheprovider "$@" >"$OUT/gpu_tests.txt" 2>&1
    local code=$?
    grep -E '(FAILED|ERROR) +tests/|tests/.* (FAILED|ERROR)' "$OUT/gpu_tests.txt" >"$OUT/gpu_tests_failed.txt"
    tail -n 1 "$OUT/gpu_tests.txt"
    [ $code -le 1 ] # 1: some failed, which is a result
}
export -f tests
export PYTHON OUT

if [ $dry = 1 ]; then
    export CUDA_VISIBLE_DEVICES=
    LIMIT=${DRY_LIMIT:-3000}
    part tests.done 600 bash -c 'tests tests/kernels/test_cuda.py'
    part autotune.done 600 env TRITON_INTERPRET=1 "$PYTHON" -m benchmarks.autotune --dry --output "$OUT"
    part info_nce.done 600 "$PYTHON" -m benchmarks.info_nce_gpu --dry --output "$OUT/info_nce.jsonl"
    for name in bernoulli gaussian step; do
        part $name.done 600 "$PYTHON" -m benchmarks $name --quick --output "$OUT"
    done
    part training.done 600 "$PYTHON" examples/cifar10_full.py quick --models simclr bern --resume --dry-run \
        --finetune-epochs 0 --out "$OUT/training"
else
    part tests.done 240 bash -c "tests -n $WORKERS"
    part autotune.done 180 "$PYTHON" -m benchmarks.autotune --output "$OUT"
    part info_nce.done 260 "$PYTHON" -m benchmarks.info_nce_gpu --output "$OUT/info_nce.jsonl" --seconds 240
    for name in bernoulli gaussian step; do
        part $name.done 90 "$PYTHON" -m benchmarks $name --device cuda --rounds 3 --output "$OUT"
    done
    if [ -n "${DATA:-}" ]; then
        part training.done "$LIMIT" "$PYTHON" examples/cifar10_full.py resnet18 --data "$DATA" --models simclr bern \
            --resume --compile --finetune-epochs 0 --out "$OUT/training"
    fi
fi
[ -s "$OUT/gpu_tests_failed.txt" ] && { echo "failed tests:"; cat "$OUT/gpu_tests_failed.txt"; }
[ ${#failed[@]} = 0 ] || { echo "not finished: ${failed[*]}"; exit 1; }
