#!/usr/bin/env bash
# Submits a training job to Slurm; it goes back to the queue, and resumes when its time is up or it is pre-empted.
#
#   scripts/slurm.sh --run=NAME --mount=FOLDER --config=FILE --nodes=2 --gpus=8 [options] [-- for dft_jax.main]
#   scripts/slurm.sh --run=NAME --mount=FOLDER --spec=FILE --array=8 --gpus=1 [options] [-- for dft_jax.study]
#   scripts/slurm.sh stop --run=NAME
#
# One process per GPU. Before the time limit, and when pre-empted (PreemptParameters=send_user_signal), Slurm sends
# SIGTERM: the run saves and exits with 42, and the job is requeued; other exit codes end it. `stop` lets it save and
# ends it, which plain `scancel` does not. The same name again resumes; while it is in the queue, it is refused.
#
#   --run             the name of the run and of the job; it is stored in MOUNT/RUN, its log in MOUNT/RUN.log
#   --mount           a folder that all nodes share
#   --config          as for dft_jax.main, e.g. configs/gsm8k.py:objective=dft
#   --spec            as for dft_jax.study, in place of --config: the arms of a study, one process for each job
#   --array=1         by how many jobs, of one node each; when all are done the last one writes the report
#   --nodes=1         how many
#   --gpus=8          per node; 0 for one process per node without GPUs
#   --time            the limit of one go, e.g. 12:00:00 (the partition's own)
#   --grace=300       seconds to save in, before the limit
#   --restarts=50     how often to requeue
#   --python=FILE     an environment with dft_jax (this checkout's .venv/bin/python)
#   --xla             flags of XLA (in XLA_FLAGS; none by default): docs/cluster.md
#   --flags           more for sbatch, e.g. --flags='--partition=gpu --account=mine --cpus-per-task=8'
#   --dry-run         shows what would be run
#   --help
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
opt=([run]='' [mount]='' [config]='' [spec]='' [array]=1 [nodes]=1 [gpus]=8 [time]='' [grace]=300 [restarts]=50
  [python]="$root/.venv/bin/python" [xla]='' [flags]='')

start() {
  local jobs log="${opt[mount]%/}/${opt[run]}.log" per_node=(--ntasks-per-node=1) turns=(--dependency=singleton)
  ((opt[gpus] == 0)) || per_node=("--ntasks-per-node=${opt[gpus]}" "--gpus-per-node=${opt[gpus]}")
  [[ ! ${opt[spec]} ]] || per_node[0]=--ntasks-per-node=1 # a study is one process with all the GPUs
  if ((opt[array] > 1)); then
    log="${log%.log}.%a.log" turns=("--array=0-$((opt[array] - 1))") # singleton would run one after the other
  fi
  local queue=(squeue --noheader "--user=$(id -un)" "--name=${opt[run]}" --format=%i)
  if [[ $dry_run ]]; then
    quote "${queue[@]}"
  else
    [[ -d ${opt[mount]} ]] || die "--mount=${opt[mount]}: no such folder here"
    command -v "${opt[python]}" >/dev/null || die "--python=${opt[python]}: no such program here"
    jobs=$("${queue[@]}")
    [[ ! $jobs ]] || die "run ${opt[run]} is in the queue already, as job ${jobs//$'\n'/, }; \`stop\` ends it"
  fi
  # The job is this command line again, as `batch`. exec: --signal=B: reaches the batch shell alone. singleton: two
  # that were submitted at the same moment still run one after the other.
  run sbatch "--job-name=${opt[run]}" "--nodes=${opt[nodes]}" "${per_node[@]}" ${opt[time]:+"--time=${opt[time]}"} \
    "--signal=B:TERM@${opt[grace]}" --requeue "${turns[@]}" --open-mode=append \
    "--output=$log" "--chdir=$root" "${flags[@]}" \
    "--wrap=exec $(quote "$root/scripts/slurm.sh" batch "${given[@]}")"
}

# The batch shell hears SIGINT; what is not running yet just leaves the queue.
stop() {
  local mine=("--user=$(id -un)" "--name=${opt[run]}")
  run scancel --state=PENDING "${mine[@]}"
  run scancel --state=RUNNING --batch --signal=INT "${mine[@]}"
}

# Sent to the step by Slurm, since srun answers SIGTERM by killing its tasks; and once, since a third signal ends them
# without saving.
forward() {
  is_interrupted=yes
  [[ $is_asked ]] || scancel --signal=TERM "$job" || true
  is_asked=yes
}

batch() {
  local code=0 pid step=(srun --kill-on-bad-exit=0) # one that has saved must not kill those that still do
  step+=(${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"}) # srun does not take it over from sbatch
  train_command "${opt[python]}" XLA_FLAGS
  if [[ $dry_run ]]; then
    quote "${step[@]}" "${command[@]}"
    return
  fi
  # The number of one job of an array may be that of the whole array.
  job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  job=${job:-$SLURM_JOB_ID}
  is_asked='' is_ending=''
  trap forward TERM
  trap 'is_ending=yes; forward' INT
  "${step[@]}" "${command[@]}" &
  pid=$!
  is_interrupted=yes
  while [[ $is_interrupted ]]; do # a trap ends wait, not srun
    is_interrupted='' code=0
    wait "$pid" || code=$?
  done
  if is_resumable "$code" && [[ ! $is_ending ]]; then
    if ((${SLURM_RESTART_COUNT:-0} < opt[restarts])); then
      trap '' TERM # requeueing ends this shell
      scontrol requeue "$job"
    else
      echo "error: requeued ${opt[restarts]} times; the same command resumes" >&2
    fi
  fi
  exit "$code"
}

main() {
  parse "start stop batch" "$@"
  check run
  if [[ $verb == stop ]]; then
    stop
    return
  fi
  check mount
  check_work
  check_numbers nodes gpus grace restarts
  [[ ! ${opt[spec]} || ${opt[nodes]} == 1 ]] ||
    die "--nodes=${opt[nodes]}: a study's jobs have one each; --array says how many"
  "$verb"
}

main "$@"
