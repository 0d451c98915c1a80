#!/bin/sh
# Node 2 of site b in network east. BESU names the program; arguments are passed on to it.
set -eu
dir=$(cd "$(dirname "$0")" && pwd)
besu=${BESU:-besu}
if [ ! -f "$dir/key" ]; then
    # Besu would make another one, which has no seat.
    echo "$dir/key is missing: put the folder of \"pacs-bridge network key --engine qbft\" in its place" >&2
    exit 1
fi
exec "$besu" --config-file="$dir/besu.toml" --data-path="$dir/data" --genesis-file="$dir/../genesis.json" \
    --node-private-key-file="$dir/key" --static-nodes-file="$dir/static-nodes.json" "$@"
