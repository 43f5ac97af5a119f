#!/bin/sh
# The demo in tmux: four peers in four panes of tmux, one of which starts as the tracker, and a reader below them.
#
#     examples/demo-tmux.sh [FOLDER]
#
# Each pane shows what its peer says: the peers it meets, the blocks, and when it is the tracker of a round and when a
# peer again. FOLDER (a new one under /tmp without it) keeps the keys and the story. `make demo` is the same without tmux.
set -eu
cd "$(dirname "$0")/.."
bin=$PWD/.venv/bin
session=loremesh-demo

if ! command -v tmux >/dev/null; then
    echo "$0: tmux is missing: apt-get install tmux" >&2
    exit 2
fi
if [ ! -x "$bin/loremesh" ]; then
    echo "$0: loremesh is not set up: make setup" >&2
    exit 2
fi
if tmux has-session -t "$session" 2>/dev/null; then
    echo "$0: it runs already: tmux attach -t $session, or tmux kill-session -t $session" >&2
    exit 2
fi

folder=${1:-$(mktemp -d -t loremesh-tmux-XXXXXX)}
mkdir -p "$folder"
for peer in 1 2 3 4; do
    "$bin/loremesh" key new "$folder/peer-$peer/key" >/dev/null
done
tracker=$("$bin/loremesh" key show "$folder/peer-1/key" | awk '/^peer id/ {print $3}')
"$bin/loremesh" new --title "The Reef Light" --tracker "$tracker" \
    --premise "A lighthouse keeper finds a map that redraws itself with every tide." >"$folder/genesis.toml"

# The first peer is both the first tracker and the address through which the others join.
address=/ip4/127.0.0.1/tcp/${PORT:-4001}
peer() {
    echo "exec '$bin/loremesh-executor' --data-dir '$folder/peer-$1' --genesis '$folder/genesis.toml' --latency 0.5,3 $2"
}
local=/ip4/127.0.0.1/tcp/0
tmux new-session -d -s "$session" -x 200 -y 50 "$(peer 1 "--listen-address $address")"
for peer in 2 3 4; do
    tmux split-window -t "$session" "$(peer $peer "--listen-address $local --bootstrap-nodes $address")"
    tmux select-layout -t "$session" tiled >/dev/null
done
tmux split-window -t "$session" \
    "until '$bin/loremesh' canon --follow --bootstrap-nodes $address; do sleep 1; done"
tmux select-layout -t "$session" tiled >/dev/null

echo "$folder keeps the story; tmux kill-session -t $session ends it"
if [ -t 1 ] && [ -z "${DETACHED:-}" ]; then
    # Inside of tmux there is a terminal of it already, which can only be switched.
    if [ -n "${TMUX:-}" ]; then exec tmux switch-client -t "$session"; fi
    exec tmux attach -t "$session"
fi
echo "attach with: tmux attach -t $session"
