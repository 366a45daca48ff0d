#!/usr/bin/env bash
# Trains as a job of a running Ray cluster, or asks about such a job: openrlhf-medical submit from this checkout.
#
#   ./launch/ray_submit.sh --config FILE [--address http://HOST:8265] [--section.key value …]
#   ./launch/ray_submit.sh status|logs|stop JOB [--address http://HOST:8265]
#   ./launch/ray_submit.sh list | --help
#
# This checkout travels as the working directory. Relative paths are those of the folder in which it is called.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program=$root/.venv/bin/python
if [ ! -x "$program" ]; then
  echo "ray_submit: no $program: run ./launch/setup.sh first" >&2
  exit 2
fi
case " $* " in
  *" --config"*) set -- "$@" --working-dir "$root" ;;
esac
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$program" -m openrlhf_medical submit "$@"
