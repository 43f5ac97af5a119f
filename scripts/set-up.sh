#!/bin/sh
# Make the virtual environment that every make target runs in. Called by make when something it depends on changed.
#
# Arguments: the environment's folder; the checkout's absolute path (recorded, so that a moved checkout is noticed).
# Only pip's own configuration decides where packages come from; what may come is decided by the hashes in the lock.
set -eu

venv=$1
checkout=$2
oldest="(3, 11)"

complain() {
    echo "loremesh: $1" >&2
    exit 1
}

works() { # is this interpreter new enough?
    "$1" -c "import sys; sys.exit(sys.version_info < $oldest)" >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    candidates=$PYTHON
else
    candidates="python3.11 python3 python3.12 python3.13"
fi

python=
for candidate in $candidates; do
    if works "$candidate"; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || complain "Python 3.11 or newer is missing: apt-get install python3 python3-venv (or name one with PYTHON=…)"
"$python" -c "import venv, ensurepip" >/dev/null 2>&1 ||
    complain "$python cannot make virtual environments: apt-get install python3-venv"

if [ ! -x "$venv/bin/python" ] || { [ -e "$venv/.ready" ] && [ "$(cat "$venv/.ready")" != "$checkout" ]; }; then
    echo "Setting up $venv: a minute or two, once."
    rm -rf "$venv"
    "$python" -m venv "$venv"
else
    echo "Bringing $venv up to date."
fi
rm -f "$venv/.ready"

pip() {
    "$venv/bin/python" -m pip --quiet --disable-pip-version-check --no-input "$@"
}

# Minutes may pass on a slow line: a terminal sees how far it is. The status goes by a file, because a pipe keeps it back.
fetch() {
    if [ ! -t 2 ]; then
        pip install "$@"
        return
    fi
    {
        "$venv/bin/python" -m pip --disable-pip-version-check --no-input install "$@" || echo failed >"$venv/.failed"
    } | awk -v all="$(grep -c '^[a-zA-Z0-9].*==' requirements.lock)" '
        /^Collecting/ { printf "\r  fetching package %d of %d at most", ++count, all; fflush() }
        /^Installing/ { printf "\r\033[K  installing %d packages", count; fflush() }
        END { printf "\r\033[K" }' >&2
    [ ! -e "$venv/.failed" ]
}

# Two steps, because pip refuses -e together with hashes; --no-deps, because the lock is complete and overrides one pin.
rm -f "$venv/.failed"
fetch --no-deps --require-hashes --requirement requirements.lock ||
    complain "the packages in requirements.lock could not be installed; the lines above say why (is the network there?)"
pip install --no-deps --no-build-isolation -e packages/loremesh -e bin/client -e bin/executor -e bin/validator

# A dependency of libp2p brings type stubs that shadow trio's own types, and mypy would read those instead.
rm -rf "$venv"/lib/python3*/site-packages/trio-stubs

printf '%s' "$checkout" >"$venv/.ready"
echo "$venv is ready."
