#!/usr/bin/env bash
# The whole main job on a real ViT and real images: environment, install, cache, train, index, evaluate, report.
# Usage: bash scripts/demo.sh [--out DIR] [key=value …]     Run twice, it finds everything done.
set -eu
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment demo
case " $* " in
    *" --out"*) exec saetool demo "$@" ;;
    *) exec saetool demo --out "$root/runs/demo" "$@" ;;
esac
