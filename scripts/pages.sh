#!/usr/bin/env bash
# Builds the scripts of the pages from web/ into the files that are part of the program; with a folder, into that one instead. They are committed, so that
# `cargo build` needs neither Node.js nor this; a test compares them.
set -eu
cd "$(dirname "$0")/.."
esbuild="${TOOLS:-.tools}/browser/esbuild/bin/esbuild"
for script in pages key; do
    "$esbuild" "web/$script.ts" --bundle --format=esm --target=es2022 --minify-whitespace --minify-syntax --charset=utf8 --log-level=warning \
        --legal-comments=none "--outfile=${1:-bridge/src/web/assets}/$script.js"
done
