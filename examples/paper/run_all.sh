#!/usr/bin/env bash
# Train the runs that the claims need, then measure every claim. Runs that are finished are not trained again.
#
#     examples/paper/run_all.sh DATA [OPTIONS OF cifar10_full.py]
#
# DATA is what cifar10_full.py takes as --data. Three seeds take an estimated four days on 2 CPU cores. RUNS and
# RESULTS set the folders (runs/paper, examples/results/paper), SEEDS the seeds ("0 1 2"), EPOCHS those of short
# pretraining (5), DIMS the latent dimensions to compare. ADD=1 keeps the numbers of other seeds in the results.
set -euo pipefail
data=$(realpath "${1:?give the folder or archive of images, as cifar10_full.py takes it with --data}")
cd "$(dirname "$0")/../.."
more=("${@:2}")
runs=${RUNS:-runs/paper}
seeds=(${SEEDS:-0 1 2})

train() { # FOLDER PRESET SEED OPTIONS...
    python examples/cifar10_full.py "$2" --seed "$3" --out "$runs/$1-seed$3" --resume "${@:4}" "${more[@]}"
}
cpu() { # FOLDER SEED OPTIONS...
    train "$1" cpu "$2" --data "$data" --epochs "${EPOCHS:-5}" "${@:3}"
}
held_out() { # FOLDER SEED OPTIONS...
    cpu "$1" "$2" --held-out --finetune-epochs 0 "${@:3}"
}
both=(--models bern gauss)
algorithm_1=(--no-symmetric --location-std 2 --deterministic 0 --covariance 0) # to the letter

for seed in "${seeds[@]}"; do
    cpu base "$seed" --models simclr penalized bern gauss supervised --finetune-epochs 2 --supervised-epochs 12
    cpu long "$seed" --epochs 40 --models simclr penalized bern gauss supervised
    cpu algorithm1 "$seed" "${both[@]}" "${algorithm_1[@]}"
    cpu own "$seed" --models gauss --variance-from own --finetune-epochs 0
    cpu own-long "$seed" --epochs 40 --models gauss --variance-from own --finetune-epochs 0
    for dim in ${DIMS:-8 16 32 64 256 512}; do
        cpu "dim$dim" "$seed" "${both[@]}" --dim "$dim" --finetune-epochs 0
    done
    cpu dim8-long "$seed" --epochs 40 --models gauss --dim 8 --finetune-epochs 0
    held_out start "$seed" "${algorithm_1[@]}" --models simclr bern gauss
    held_out chosen "$seed" --models penalized bern gauss
done
held_out try-pair "${seeds[0]}" "${both[@]}" --covariance 0
held_out try-covariance-0.5 "${seeds[0]}" --models penalized bern gauss --covariance 0.5
held_out try-location-2 "${seeds[0]}" "${both[@]}" --location-std 2
held_out try-plain "${seeds[0]}" "${both[@]}" --location-std None
held_out try-temperature-0.5 "${seeds[0]}" --models bern --temperature 0.5
held_out try-whiten "${seeds[0]}" --models bern --covariance 0 --normalization whiten
held_out try-codes "${seeds[0]}" --models bern --codes 0.5
held_out try-detached "${seeds[0]}" --models bern --detach-encoder
held_out try-samples "${seeds[0]}" "${both[@]}" --samples 4
held_out try-no-noise "${seeds[0]}" "${both[@]}" --samples 0

measure() { # CLAIM FOLDERS...
    python "examples/paper/$1.py" "${@:2}" ${ADD:+--add} --out "${RESULTS:-examples/results/paper}"
}
for claim in table codes counting uncertainty; do measure "$claim" "$runs"/base-* "$runs"/long-*; done
for claim in bits capacity; do measure "$claim" "$runs"/base-* "$runs"/long-* "$runs"/dim512-*; done
measure compression "$runs"/base-* "$runs"/long-* "$runs"/dim*
measure dims "$runs"/base-* "$runs"/long-* "$runs"/dim*
measure collapse "$runs"/base-* "$runs"/long-* "$runs"/own-*
measure settings "$runs"/chosen-* "$runs"/start-* "$runs"/try-*
