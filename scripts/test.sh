#!/usr/bin/env bash
# The tests, under 10 minutes on 2 cores; --all adds those marked slow (under 60). Other arguments go to pytest.
set -eu
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment test
marks="not slow"
if [ "${1:-}" = "--all" ]; then
    marks=""
    shift
fi
cd "$root"
ruff check --quiet .
ruff format --quiet --check .
exec python -m pytest -m "$marks" "$@"
