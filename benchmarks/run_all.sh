#!/usr/bin/env bash
# Every benchmark in turn, the page of results, and the whole table.
#
#   benchmarks/run_all.sh [--quick] [--runs N]     # options go to each of them; --quick writes no result
#
# Within an hour on 2 cores with nothing else running. Goes on where one fails, and says so at the end (exit code 1).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1:-} in -h | --help) sed -n '2,6s/^# \{0,1\}//p' benchmarks/run_all.sh; exit 0 ;; esac
python=${PYTHON:-.venv/bin/python}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
logs=$(mktemp -d "${TMPDIR:-/tmp}/benchmarks-XXXXXX")
failed=()
for name in schedule judge games learner step start peak_memory trl_grpo scale; do
  began=$SECONDS
  echo "== $name"
  # Only what it says while it runs goes to the console; the logs of what it started are kept for when it fails.
  if "$python" "benchmarks/$name.py" "$@" 2> >(tee "$logs/$name.log" | grep -E '^  ' >&2); then
    echo "== $name: $((SECONDS - began)) s"
  else
    code=$?
    failed+=("$name")
    echo "== $name FAILED with code $code after $((SECONDS - began)) s; the end of $logs/$name.log:" >&2
    tail -n 15 "$logs/$name.log" >&2
  fi
done
quick=0
for word in "$@"; do if [ "$word" = --quick ]; then quick=1; fi; done
if [ $quick = 0 ]; then
  "$python" benchmarks/page.py || failed+=(page)
  "$python" benchmarks/page.py --table || failed+=(table)
fi
echo "all benchmarks: $((SECONDS / 60)) min $((SECONDS % 60)) s"
if [ ${#failed[@]} -gt 0 ]; then
  echo "FAILED: ${failed[*]}" >&2
  exit 1
fi
