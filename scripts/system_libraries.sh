#!/usr/bin/env bash
# Makes sure of the shared libraries that Mooncake's transfer engine loads.
set -euo pipefail

declare -A package_of=(
  [libcurl.so.4]=libcurl4
  [libibverbs.so.1]=libibverbs1
  [libnuma.so.1]=libnuma1
)

# ldconfig lies outside an ordinary user's PATH.
known=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null || true)
missing=()
for library in "${!package_of[@]}"; do
  [[ $known == *"$library "* ]] || missing+=("${package_of[$library]}")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "setup: system libraries are missing; as root: apt-get install ${missing[*]}" >&2
  exit 1
fi
echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
