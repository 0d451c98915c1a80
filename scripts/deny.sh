#!/usr/bin/env bash
# Licences, sources and duplicate bans of all dependencies. The advisory database lives outside the package registries,
# so advisories are checked only where it can be reached.
set -u
cd "$(dirname "$0")/.." || exit 1
deny="$TOOLS/bin/cargo-deny"
if [ ! -x "$deny" ]; then
    echo "deny: building cargo-deny into .tools (once, several minutes)"
    # Not optimised: it runs for a second.
    cargo install --debug --quiet --locked --root "$TOOLS" cargo-deny@0.20.2 || exit 1
fi
# It reads the manifests of all dependencies, also of those that no build on this machine needs and none has brought here.
cargo fetch --locked --quiet || exit 1
"$deny" --offline check licenses bans sources || exit 1
if timeout 20 "$deny" fetch db >/dev/null 2>&1; then
    "$deny" check advisories
else
    echo "deny: the advisory database cannot be reached from here; advisories were NOT checked"
fi
