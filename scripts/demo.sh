#!/usr/bin/env bash
# The whole main job on a real ViT and real images: environment, install, cache, train, index, evaluate, report.
# Usage: bash scripts/demo.sh [--out DIR] [key=value …]     Run twice, it finds everything done.
set -eu
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment demo
if grep -qsw avx2 /proc/cpuinfo && ! grep -qs avx512 /proc/cpuinfo; then
    less="images.limit=1312 images.group.block=30 training.tokens=650_000"
    echo "This processor has AVX2 only: half of the photographs and of the training, for some 7 minutes in place of 11." \
        "All of it: bash scripts/demo.sh images.limit=null images.group.block=60 training.tokens=1_300_000"
fi
case " $* " in
    *" --out"*) ;;
    *) set -- --out "$root/runs/demo" "$@" ;;
esac
# shellcheck disable=SC2086  # words of their own; what was given comes later and wins
exec saetool demo ${less:-} "$@"
