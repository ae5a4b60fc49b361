#!/usr/bin/env bash
# The tests, 4 to 6 minutes on 2 cores; --all adds those marked slow (18 to 23 in all). Other arguments go to pytest.
set -eu
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment test
marks="not slow"
if [ "${1:-}" = "--all" ]; then
    marks=""
    export SAETOOL_CHECK_SHAPES=all
    shift
fi
cd "$root"
# The tests' tensors are tiny and several start processes: more threads would only wait for each other.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
ruff check --quiet .
ruff format --quiet --check .
# Files are shared out among processes, each as a whole: its tests share what they make. One process more than cores, as
# some tests wait for others or for a browser.
processes=$(python -c "import os; print(min(4, 1 + (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())))")
exec python -m pytest -n "$processes" --dist loadfile -m "$marks" "$@"
