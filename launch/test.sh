#!/usr/bin/env bash
# All tests: unit tests (about two minutes on 2 cores), then the real stack with a tiny model (about 40).
#
#   ./launch/test.sh            what CI runs
#   ./launch/test.sh --unit     unit tests only
#   ./launch/test.sh --all      also what is too long for CI
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
  "") stack='stack and not slow' ;;
  --unit) stack='' ;;
  --all) stack='stack or slow' ;;
  *) echo "test: unknown argument '$1'; allowed: --unit, --all" >&2; exit 2 ;;
esac

./launch/setup.sh --dev
.venv/bin/python -m pytest -q tests/unit -m 'not slow' -n 2 --dist loadfile
if [ -n "$stack" ]; then
  .venv/bin/python -m pytest -v tests -m "$stack" --durations=15
fi
