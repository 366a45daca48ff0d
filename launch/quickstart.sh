#!/usr/bin/env bash
# From a fresh clone to a trained pair of players: set-up, data, four steps of self-play, a result table.
#
#   ./launch/quickstart.sh [--source FILE|FOLDER] [--policy separate|shared] [--section.key value …]
#
# Without --source (or MEDEC_DIR=<folder>) it plays on the embedded synthetic notes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,6s/^# \{0,1\}//p' launch/quickstart.sh; }
caller=${OLDPWD:-$PWD}
source=${MEDEC_DIR:-synthetic}
policy=separate
options=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --source) source=${2:?"--source needs a file or a folder"}; shift 2 ;;
    --policy) policy=${2:?"--policy needs separate or shared"}; shift 2 ;;
    --*.*) options+=("$1"); shift; while [ $# -gt 0 ] && [[ $1 != --* ]]; do options+=("$1"); shift; done ;;
    *) echo "quickstart: unknown argument '$1'" >&2; usage >&2; exit 2 ;;
  esac
done
# A relative path is relative to where the command was typed, not to the repository.
if [ "$source" != synthetic ] && [[ $source != /* ]]; then source=$caller/$source; fi

started=$SECONDS
./launch/setup.sh
echo "quickstart: set up after $((SECONDS - started)) s"

data=data/synthetic
if [ "$source" != synthetic ]; then data=data/medec; fi
.venv/bin/openrlhf-medical prepare-data --source "$source" --output-dir "$data"

# With GPUs each policy shares one with its reference and its engine: one GPU for a shared policy, two for separate.
if [ -e /proc/driver/nvidia/version ]; then
  options=(--train.colocate_all true --vllm.gpu_memory_utilization 0.3 ${options[@]+"${options[@]}"})
fi

name=quickstart-$policy-$(date +%Y%m%d-%H%M%S)
.venv/bin/openrlhf-medical train --config configs/quickstart.yaml --run.name "$name" --roles.policy "$policy" \
  --data.train "$data/train.jsonl" --data.val "$data/val.jsonl" ${options[@]+"${options[@]}"}
echo "quickstart: done after $((SECONDS - started)) s; open runs/$name/report.html"
