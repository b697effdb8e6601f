#!/usr/bin/env bash
# Makes sure of the Redis server that the tests of router replicas start; nothing else needs it.
set -euo pipefail

command -v redis-server >/dev/null && exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "setup: redis-server is missing, the tests that need it are skipped;" \
    "as root: apt-get install redis-server" >&2
  exit 0
fi
echo "setup: installing redis-server"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq -y --no-install-recommends redis-server >/dev/null
