#!/bin/sh
# Runs the Solidity tests: fuzz and invariants with forge from npm. Needs node and npm, and their registry once.
#   contracts/test.sh [forge test options]
set -eu
cd "$(dirname "$0")"
if ! command -v npm >/dev/null 2>&1; then
  echo "SKIPPED: npm missing"
  [ "${REQUIRE_TOOLS:-0}" = 1 ] && exit 1
  exit 0
fi
# Installed again only when the lock file changed.
if ! cmp -s package-lock.json node_modules/.installed-lock 2>/dev/null; then
  # Not `npm ci`: forge and anvil have optional packages for platforms that not every registry mirror carries, and it refuses a
  # lock file without them.
  npm install --no-save --no-audit --no-fund --ignore-scripts
  cp package-lock.json node_modules/.installed-lock
fi
node build.mjs --check
exec node_modules/.bin/forge test "$@"
