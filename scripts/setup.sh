#!/usr/bin/env bash
# Builds a virtual environment in which real SGLang serves on the CPU.
#
#   scripts/setup.sh VENV REQUIREMENTS
#
# Every package but torch is listed in REQUIREMENTS with its version, SGLang included, and goes in
# without its dependencies: SGLang's own are CUDA packages that a CPU does not need.
#
#   PYTHON        the interpreter to build with            (python3.11)
#   TORCH         what to install as torch                 (torch==2.13.0)
#   TORCH_INDEX   an index that offers the CPU build       (none: pip's own)
#   TORCH_WHEELS  a folder of wheels with the CPU build    (none)
set -euo pipefail

venv=$1
requirements=$2
python=${PYTHON:-python3.11}
torch=${TORCH:-torch==2.13.0}
here=$(dirname "$0")

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }

make_venv() {
  [ -x "$venv/bin/python" ] && return
  command -v "$python" >/dev/null ||
    fail "$python not found; install it or name another one: make setup PYTHON=python3"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$("$python" --version) is too old; Python 3.10 or newer is needed, 3.11 is tested"
  say "making $venv with $("$python" --version)"
  "$python" -m venv "$venv" ||
    fail "no virtual environment; on Debian: apt-get install python3-venv"
}

install_torch() {
  local source=()
  [ -n "${TORCH_INDEX:-}" ] && source+=(--extra-index-url "$TORCH_INDEX")
  [ -n "${TORCH_WHEELS:-}" ] && source+=(--find-links "$TORCH_WHEELS")
  "$pip" install "${quiet[@]}" "${source[@]}" "$torch"
  "$venv/bin/python" "$here/which_torch.py"
}

"$here/system_libraries.sh"
"$here/redis_server.sh"
make_venv
pip=$venv/bin/pip
# Not compiled on installation: most of these files are never imported.
quiet=(-qq --disable-pip-version-check --no-compile)
say "installing $torch"
install_torch
say "installing $(basename "$requirements")"
"$pip" install "${quiet[@]}" --no-deps -r "$requirements"
"$pip" install "${quiet[@]}" --no-deps --no-build-isolation -e .
# Of what is imported the bytecode is kept, once here instead of in each server's three processes.
say "importing SGLang once"
PYTHONDONTWRITEBYTECODE= SGLANG_USE_CPU_ENGINE=1 "$venv/bin/python" -W ignore -c '
from conserve_sglang.plugin.cpu import apply_cpu_cures
apply_cpu_cures()
import sglang.srt.entrypoints.http_server, sglang.srt.managers.scheduler
import sglang.srt.managers.detokenizer_manager' >/dev/null 2>&1 ||
  say "that failed; the first server to start will say why"
touch "$venv/.stamp"
say "done"
