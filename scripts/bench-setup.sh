#!/usr/bin/env bash
# What only the measurements need: Orthanc's DICOMweb plugin, beside which ours is measured.
set -u
plugin=/usr/share/orthanc/plugins/libOrthancDicomWeb.so
[ -e "$plugin" ] && exit 0
root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
echo "bench: installing the Debian package orthanc-dicomweb"
if ! { root apt-get update -qq && root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends orthanc-dicomweb; } >/dev/null; then
    echo "bench: it could not be installed; Orthanc's part of the DICOMweb tables stays empty" >&2
fi
