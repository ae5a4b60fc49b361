# Sourced by demo.sh and test.sh: makes or refreshes the repository's own environment, .venv, with the extras asked for.
# Nothing outside the repository (and pip's cache) is touched. Works with bash 3.2 (macOS) and Linux.
# pip compiles no modules: of the libraries' thousands, a start needs a tenth, and keeps what it compiles for the next.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

find_python() {
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3.14 python3; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "saetool needs Python 3.11 or newer; set PYTHON=/path/to/python." >&2
    return 2
}

# use_environment EXTRA: .venv with `pip install -e .[EXTRA]`; done again only when pyproject.toml or EXTRA changed.
use_environment() {
    local extra="$1" stamp wanted python
    stamp="$root/.venv/installed-$extra"
    wanted="$(cksum < "$root/pyproject.toml") $root"
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
        python="$(find_python)" || exit 2
        if ! "$root/.venv/bin/python" -m pip --version >/dev/null 2>&1; then
            "$python" -m venv --clear "$root/.venv" || {
                echo "No virtual environment could be made; on Debian and Ubuntu: apt install python3-venv." >&2
                exit 1
            }
        fi
        echo "Installing saetool[$extra] into $root/.venv (a minute where torch is at hand, longer where pip fetches it)."
        "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile -e "$root[$extra]" ||
            exit 1
        echo "$wanted" > "$stamp"
    fi
    export PATH="$root/.venv/bin:$PATH" VIRTUAL_ENV="$root/.venv"
    unset PYTHONDONTWRITEBYTECODE
}
