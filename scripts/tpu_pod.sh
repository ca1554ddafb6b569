#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU VM and watches until the run has ended; the same command again attaches to the
# run, or resumes it.
#
#   scripts/tpu_pod.sh --name=TPU --zone=ZONE --run=NAME --mount=FOLDER --config=FILE [options] [-- for dft_jax.main]
#   scripts/tpu_pod.sh stop --name=TPU --zone=ZONE --run=NAME
#   scripts/tpu_pod.sh request --name=TPU --zone=ZONE --type=v5litepod-16 --runtime=v2-alpha-tpuv5-lite [--tier=spot]
#   scripts/tpu_pod.sh release --name=TPU --zone=ZONE
#
# On every worker it installs this checkout's commit once (it has to be pushed) and starts dft_jax.main detached: the
# run outlives ssh and this script. Ctrl-C and SIGTERM here are forwarded: the workers save, and this script exits
# with 42. So does `stop`, from anywhere. A run that was pre-empted (42), or whose machine died, is started again; an
# error (2, say) is not.
#
# `request` puts the TPU into Google's queue (a queued resource of the TPU's own name) and waits until it is there; one
# that failed, or was taken away, is asked for anew. Ctrl-C leaves it in the queue, and the same command waits on.
# `release` gives TPU and request back, with all that is on the TPU's own disks. With --type the first form requests
# too: before it starts, and again when the TPU was taken away.
#
#   --name, --zone    the TPU VM
#   --run             the name of the run; it is stored in MOUNT/RUN
#   --mount           a folder that all workers share, or gs://BUCKET/FOLDER, which needs no mount
#   --bucket          mounts this bucket at the folder (gcsfuse), where it is not mounted yet
#   --config          as for dft_jax.main, e.g. configs/gsm8k.py:objective=dft
#   --type            of the TPU to request, e.g. v5litepod-16 (gcloud compute tpus accelerator-types list)
#   --runtime         the TPU's software, e.g. v2-alpha-tpuv5-lite (gcloud compute tpus tpu-vm versions list)
#   --tier            spot (cheaper, may be taken away), reserved, or nothing for on demand
#   --queue-flags     more for the request, e.g. --queue-flags='--valid-until-duration=6h'
#   --xla             flags of XLA (in LIBTPU_INIT_ARGS; none by default): docs/cluster.md
#   --restarts=50     how often to start again
#   --grace=300       seconds to save in, before what is left is killed
#   --poll=30         seconds between looks at the workers
#   --python=python3  makes the environment on the workers: 3.11 or newer
#   --repo, --commit  where to clone from (this checkout's origin), and what (its HEAD)
#   --flags           more for gcloud, e.g. --flags='--project=mine --internal-ip'
#   --dry-run         shows what would be run
#   --help
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
opt=([name]='' [zone]='' [run]='' [mount]='' [bucket]='' [config]='' [restarts]=50 [grace]=300 [poll]=30
  [type]='' [runtime]='' [tier]='' [queue-flags]='' [xla]='' [python]=python3 [repo]='' [commit]='' [flags]='')
readonly PATIENCE=10 # polls: longer than the 100 s after which JAX gives up a silent process

on_workers() {
  run gcloud compute tpus tpu-vm ssh "${opt[name]}" "--zone=${opt[zone]}" --worker=all --quiet "${flags[@]}" \
    "--command=$1" </dev/null
}

queued() {
  local verb=$1 flag wide=()
  shift
  for flag in "${flags[@]}"; do # not those of ssh
    [[ ! $flag =~ ^--(project|account|billing-project|configuration|impersonate-service-account)= ]] || wide+=("$flag")
  done
  run gcloud compute tpus queued-resources "$verb" "$@" "--zone=${opt[zone]}" --quiet "${wide[@]}" </dev/null
}

# Prints the request's state, nothing where there is none; fails where the queue does not answer.
queue_state() {
  local list
  list=$(queued list "--format=value(name.basename(),state.state)") || return
  awk -v name="${opt[name]}" '$1 == name {print $2}' <<<"$list"
}

# Asks for the TPU unless that was done, and waits until it is there.
request() {
  local state='' before=none is_asked='' silent=0 words more
  words=("--node-id=${opt[name]}" "--accelerator-type=${opt[type]}" "--runtime-version=${opt[runtime]}")
  words+=(${opt[tier]:+"--${opt[tier]}"})
  read -ra more <<<"${opt[queue-flags]}"
  if [[ $dry_run ]]; then
    queued list "--format=value(name.basename(),state.state)"
    queued create "${opt[name]}" "${words[@]}" "${more[@]}"
    return
  fi
  # Nothing runs that could be asked to save; the request stays in the queue. Without a trap bash forgets a signal
  # that comes while gcloud works.
  trap 'exit 130' INT
  trap 'exit 143' TERM
  while :; do
    if ! state=$(queue_state); then # gcloud has said why
      [[ $before != none ]] && ((++silent < PATIENCE)) || exit 1
      pause
      continue
    fi
    silent=0
    [[ $state == "$before" ]] || echo "${opt[name]}: ${state:-not requested yet}" >&2
    before=$state
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDED)
        [[ $state != FAILED || ! $is_asked ]] || queue_failed
        queued delete "${opt[name]}" --force
        ;;
      '')
        queued create "${opt[name]}" "${words[@]}" "${more[@]}" || exit
        is_asked=yes
        ;;
    esac
    pause # CREATING, ACCEPTED, WAITING_FOR_RESOURCES, PROVISIONING; SUSPENDING, DELETING
  done
}

queue_failed() {
  echo "error: the request for ${opt[name]} failed; gcloud compute tpus queued-resources describe ${opt[name]}" \
    "--zone=${opt[zone]} says why" >&2
  exit 1
}

worker() {
  quote bash dft_jax/current/scripts/worker.sh "$@"
}

# What a worker runs before a start: nothing of it is done twice. The lock is against a second launcher.
setup() {
  local mount commit=${opt[commit]}
  mount=$(quote "${opt[mount]}")
  cat <<EOF
set -eu; mkdir -p dft_jax; cd dft_jax; exec 9>lock; flock 9
if ! test -e $commit/.ready; then
  rm -rf $commit
  git clone --quiet $(quote "${opt[repo]}") $commit
  git -C $commit checkout --quiet $commit
  $(quote "${opt[python]}") -m venv $commit/.venv
  $commit/.venv/bin/pip install --quiet -e './${commit}[tpu]'
  touch $commit/.ready
fi
ln -sfn $commit current
EOF
  [[ -z ${opt[bucket]} ]] || cat <<EOF
if ! mountpoint -q $mount; then
  sudo mkdir -p $mount; sudo chown "\$(id -u)" $mount
  gcsfuse --implicit-dirs --rename-dir-limit=200000 $(quote "${opt[bucket]}") $mount 9>&-
fi
EOF
  in_bucket || cat <<EOF
if ! test -d $mount || test "\$(stat -c %d $mount)" = "\$(stat -c %d /)"; then
  echo "error: --mount="$mount" is no folder that workers share: mount one there, or give --bucket" >&2
  exit 2
fi
EOF
}

# Sets states, a line per worker; fails where one was not reached.
poll() {
  states=$(on_workers "$(worker status "${opt[run]}")" | sed -n 's/^.*dft_jax: //p') && [[ $states ]]
}

has() {
  grep -Eqx "$1" <<<"$states"
}

pause() {
  sleep "${opt[poll]}" &>/dev/null &
  wait $! # unlike sleep, it lets a trap run at once
}

end_workers() {
  on_workers "$(worker end "${opt[run]}" "${opt[grace]}")" || true
}

# Waits until no worker runs. Those that outlive a failed one hang; they get some time to notice, then they are ended.
watch() {
  local silent=0 hung=0
  while :; do
    if ! poll; then
      ((++silent < PATIENCE)) || return 0 # out of reach for long: a machine is gone
    else
      silent=0
      has running || return 0
      ! has '(exit|stopped) (lost|[1-9].*)' || ((++hung % PATIENCE)) || end_workers
    fi
    pause
  done
}

# Sets code from states: 42 where to go on makes sense, and is_stopped where that should wait for a person. What was
# ended because another worker had failed says nothing.
judge() {
  is_stopped=''
  ! has 'stopped .*' || is_stopped=yes
  code=$(sed -En 's/^(exit|stopped) ([0-9]+)$/\2/p' <<<"$states" | sort -n | tail -n 1)
  : "${code:=$EXIT_RESUMABLE}"
  if has "(exit|stopped) $EXIT_USER_ERROR"; then
    code=$EXIT_USER_ERROR
  elif has "(exit|stopped) (lost|$EXIT_RESUMABLE|143)"; then
    code=$EXIT_RESUMABLE
  fi
}

stop() {
  trap '' INT TERM # the workers are asked once, and then awaited
  echo "stopping ${opt[run]}: its workers save, for ${opt[grace]} seconds at most" >&2
  on_workers "$(worker stop "${opt[run]}" "${opt[grace]}")" || true
  [[ -z $dry_run ]] || exit 0
  if ! poll; then
    echo "error: not every worker answers" >&2
    exit 1
  fi
  judge
  ((code != EXIT_RESUMABLE)) || echo "stopped; the same command resumes" >&2
  exit "$code"
}

start_workers() {
  on_workers "$(setup)" && on_workers "$(worker start "${opt[run]}" "${command[@]}")"
}

start() {
  local attempt
  train_command .venv/bin/python LIBTPU_INIT_ARGS
  if [[ $dry_run ]]; then
    [[ ! ${opt[type]} ]] || request
    start_workers
    on_workers "$(worker status "${opt[run]}")"
    return
  fi
  for ((attempt = 0; attempt <= opt[restarts]; attempt++)); do
    ((attempt == 0)) || echo "interrupted; starting again, ${attempt} of at most ${opt[restarts]} times" >&2
    [[ ! ${opt[type]} ]] || request
    trap stop INT TERM
    if ! start_workers; then
      ((attempt)) || exit 1 # of a first time the reason is above; later the machine may be coming back
      pause
      continue
    fi
    echo "${opt[run]} runs; the log is dft_jax/runs/${opt[run]}/log in each worker's home" >&2
    watch
    judge
    if [[ $code != "$EXIT_RESUMABLE" || $is_stopped ]]; then
      ((code == 0)) || on_workers "$(worker last "${opt[run]}")" >&2 || true
      exit "$code"
    fi
    end_workers # what was not reached before must not meet the next start
  done
  echo "error: interrupted ${attempt} times; the same command resumes" >&2
  exit "$EXIT_RESUMABLE"
}

main() {
  parse "start stop request release" "$@"
  check name zone
  check_numbers restarts grace
  [[ ${opt[poll]} =~ ^[0-9]+([.][0-9]+)?$ ]] || die "--poll=${opt[poll]}: seconds are needed"
  [[ ${opt[tier]} =~ ^(spot|reserved|)$ ]] || die "--tier=${opt[tier]}: spot or reserved, or nothing for on demand"
  [[ ! ${opt[type]} || ${opt[runtime]} ]] || die "--runtime is required with --type; --help lists the options"
  case $verb in
    request)
      check type
      request
      return
      ;;
    release)
      queued delete "${opt[name]}" --force
      return
      ;;
  esac
  check run
  [[ $verb == start ]] || stop
  check mount config
  : "${opt[repo]:=$(git -C "$root" remote get-url origin 2>/dev/null || true)}"
  : "${opt[commit]:=$(git -C "$root" rev-parse HEAD 2>/dev/null || true)}"
  check repo commit
  [[ ${opt[commit]} =~ ^[0-9a-f]{7,40}$ ]] || die "--commit=${opt[commit]}: a commit's hash is needed"
  start
}

main "$@"
