#!/usr/bin/env bash
# Trains on a Slurm cluster, one process a host. From the checkout's folder, which every host sees:
#
#   sbatch --nodes=4 --gpus-per-node=8 --job-name=joint launch/slurm.sh \
#       --config=configs/joint.py --workdir=/shared/runs/joint
#
# Options of sbatch go before the script (its own, below, are defaults), flags of the program after
# it. The log is joint-JOB.log. Preempted, or three minutes before its time limit, the program
# saves; the job is queued again and goes on. `scancel JOB` saves and ends it.
# `bash launch/slurm.sh --dry_run FLAGS` prints the command that every host would run.
# PYTHON names another interpreter than .venv/bin/python.
#
#SBATCH --job-name=diffusionrl
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=TERM@180
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -euo pipefail

die() {
    echo "error: $*" >&2
    exit 1
}

dry_run=no
if [[ ${1:-} == --dry_run ]]; then
    dry_run=yes
    shift
fi
[[ -d diffusionrl_jax ]] || die "submit from the checkout's folder; $PWD holds no diffusionrl_jax."
[[ " $*" == *" --config="* ]] || die "give the program's --config=... after the script."
[[ " $*" =~ \ --workdir=(/|gs://) ]] ||
    die "give the program's --workdir=..., a full path that every host sees, after the script."

# Hosts end at slightly different times: the first must not have the others killed as they save.
command=(srun --ntasks-per-node=1 --label --wait=180 launch/until_complete.sh
    "${PYTHON:-.venv/bin/python}" -u -m diffusionrl_jax.main "$@")
if [[ $dry_run == yes ]]; then
    printf '%q ' "${command[@]}"
    echo
    exit
fi

# JAX gives a process of Slurm one GPU unless told otherwise.
if ((${SLURM_GPUS_ON_NODE:-0} > 0)); then
    JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
    export JAX_LOCAL_DEVICE_IDS
fi
status=0
"${command[@]}" || status=$?
if ((status == 143)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
