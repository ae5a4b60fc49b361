#!/usr/bin/env bash
# One virtual environment for each program that bench_train.py and bench_quality.py compare with: their requirements contradict each other.
#   scripts/bench_environments.sh [DIR]        (default ~/.cache/saetool-bench)
set -euo pipefail
target="${1:-$HOME/.cache/saetool-bench}"
mkdir -p "$target"

environment() { # name, packages…
  local name="$1"; shift
  [ -f "$target/$name/.ready" ] && { echo "$name: there already"; return; }
  echo "$name: installing $*"
  python3 -m venv "$target/$name"
  "$target/$name/bin/pip" install --quiet "$@"
  touch "$target/$name/.ready"
}

environment sparsify eai-sparsify
environment overcomplete overcomplete "matplotlib<3.9" # its import fails with newer ones
environment saelens sae-lens
