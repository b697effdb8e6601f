#!/usr/bin/env bash
# Fetches Prometheus' checker from Debian's package, without installing the package: that would
# start a server. Only the tests of the alert rules use it, and are skipped without.
#
#   scripts/promtool.sh FILE      where to put it
set -euo pipefail

file=$1
[ -x "$file" ] && exit 0

command -v apt-get >/dev/null || {
  echo "promtool: needs apt-get; or put a promtool on the PATH" >&2
  exit 1
}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -o APT::Sandbox::User=root download -qq prometheus >/dev/null || {
  echo "promtool: Debian's package prometheus cannot be fetched; as root: apt-get update" >&2
  exit 1
}
dpkg-deb --fsys-tarfile prometheus_*.deb | tar --extract ./usr/bin/promtool
cd - >/dev/null
mkdir -p "$(dirname "$file")"
mv "$folder/usr/bin/promtool" "$file"
