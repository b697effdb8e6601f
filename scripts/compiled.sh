#!/usr/bin/env bash
# Makes a virtual environment with the package compiled, from what lies in the checkout now.
#
#   scripts/compiled.sh VENV
#
# Built in a copy: compiled modules beside the sources would hide every later change of these.
#
#   PYTHON        the interpreter to build with            (python3.11)
set -euo pipefail

venv=$1
python=${PYTHON:-python3.11}
root=$(cd "$(dirname "$0")/.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT

command -v cc >/dev/null || {
  echo "compiled: no C compiler; on Debian: apt-get install gcc" >&2
  exit 1
}
(cd "$root" && git ls-files -z --cached --others --exclude-standard |
  tar --create --null --ignore-failed-read --files-from=-) | tar --extract --directory="$copy"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
CONSERVE_SGLANG_COMPILE=1 "$venv/bin/pip" install --quiet --disable-pip-version-check "$copy"
echo "compiled: $venv has $("$venv/bin/python" -I "$venv/bin/conserve-sglang" --version)"
