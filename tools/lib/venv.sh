# Makes and keeps the repository's virtual environment, .venv; sourced by the tools beside it, knows nothing of what they run.

# The first Python that is new enough: $PYTHON alone if it is set, else python3, else a newer one beside an old python3.
find_python() {
    local candidate found
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python3.10}; do
        found=$(command -v "$candidate") || continue
        if "$found" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$found"
            return
        fi
    done
    found=$(${PYTHON:-python3} --version 2>/dev/null) || found="no ${PYTHON:-python3}"
    echo "$0: needs Python 3.10 or newer, found $found;" \
        "on Debian or Ubuntu: apt-get install python3 python3-venv" >&2
    return 1
}

# make_venv EXTRAS: .venv with this repository installed in it, editable, with `.[EXTRAS]` (EXTRAS may be empty).
# Every version is the one that tools/constraints.txt names: what is green today is so next month. What was installed, for
# which pyproject.toml and versions, stands in .venv/installed: a second call is done at once.
make_venv() {
    local extras=$1 venv=.venv python wanted
    wanted="$PWD $(cat pyproject.toml tools/constraints.txt | sha256sum)"
    if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then  # none yet, half made, or its Python is gone
        python=$(find_python) || return 1
        if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$0: $python cannot make virtual environments; on Debian or Ubuntu: apt-get install python3-venv" >&2
            return 1
        fi
        echo "$0: making $PWD/$venv with $("$python" --version)" >&2
        "$python" -m venv --clear "$venv" || return 1
    fi
    if ! grep -qsxF "$wanted [$extras]" "$venv/installed"; then
        echo "$0: installing flexref${extras:+ with its extras $extras} into $PWD/$venv (minutes, the first time)" >&2
        # The build's own environment reads its constraints from variables, of one name in old pips and another in new.
        PIP_CONSTRAINT="tools/constraints.txt${PIP_CONSTRAINT:+ $PIP_CONSTRAINT}" \
            PIP_BUILD_CONSTRAINT="tools/constraints.txt${PIP_BUILD_CONSTRAINT:+ $PIP_BUILD_CONSTRAINT}" \
            "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input --no-compile \
            --editable ".${extras:+[$extras]}" || return 1
        # pip would compile 18,000 files one after another; some packages have a few that no Python of today compiles.
        # A third of the text is their own tests, and models and tasks of which ours import a few.
        "$venv/bin/python" -m compileall -qq -j 0 -x '/tests?/|/transformers/models/|/lm_eval/tasks/' "$venv/lib" || true
        # What was installed for other versions is void; and whoever has extras has what goes without them.
        {
            grep -sF "$wanted [" "$venv/installed" || true
            printf '%s\n' "$wanted []" "$wanted [$extras]"
        } | sort -u >"$venv/installed.new"
        mv "$venv/installed.new" "$venv/installed"
    fi
}

# Names for find_python, the oldest first, those that pyenv keeps included.
oldest_pythons() {
    local minor
    for minor in 10 11 12 13 14; do
        echo "python3.$minor"
        compgen -G "${PYENV_ROOT:-$HOME/.pyenv}/versions/3.$minor.*/bin/python" || true
    done
    echo python3
}
