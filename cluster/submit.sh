#!/usr/bin/env bash
# Submit a training run to a Ray cluster that is already there (KubeRay, a cluster launcher, `ray start` by hand):
#
#   cluster/submit.sh dasd /shared/runs/first experiment=qwen3_4b_dapo hardware=4xh100
#
# RAY_API_SERVER_ADDRESS names the dashboard (default http://127.0.0.1:8265). This package must be installed on the cluster.
# The run directory lies on storage that every node sees: the driver runs on one of them. Submit again to resume.
set -euo pipefail

if (($# < 2)) || [[ $2 != /* ]]; then
    echo "usage: cluster/submit.sh METHOD /ABSOLUTE/RUN/DIRECTORY [OVERRIDE...]" >&2
    exit 2
fi
method=$1
run_dir=$2
shift 2

exec ray job submit --no-wait -- python -m "recipes.$method.main" "hydra.run.dir=$run_dir" "$@"
