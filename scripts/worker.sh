#!/usr/bin/env bash
# One worker's half of tpu_pod.sh, which calls it over ssh; everything about a run is in ~/dft_jax/runs/NAME.
#
#   worker.sh start NAME COMMAND...   starts the command in this checkout, detached, unless the run is alive
#   worker.sh status NAME             prints "dft_jax: running", "exit CODE" or, after end or stop, "ended CODE" or
#                                     "stopped CODE"; CODE is "lost" where the whole session, or machine, was killed
#   worker.sh last NAME               prints the log's last lines
#   worker.sh end NAME SECONDS        SIGTERM; SIGKILL to what is still there after so long
#   worker.sh stop NAME SECONDS       the same, and the run is not to be started again
set -euo pipefail

verb=$1 folder=$HOME/dft_jax/runs/$2
shift 2
mkdir -p "$folder"

# The training inherits the lock, so it tells whether that lives, whatever became of ssh, its parents or the machine.
is_running() {
  ! flock --shared --nonblock "$folder/lock" true
}

start() {
  exec 8>"$folder/start"
  flock 8 # one at a time
  if is_running; then
    echo "$(hostname): attached to what is running"
    return
  fi
  rm -f "$folder"/{pid,group,code,asked,stopped}
  export folder
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  # A session of its own, without a terminal, led by flock: the end of ssh does not reach it.
  # shellcheck disable=SC2016 # the inner shell expands
  setsid flock "$folder/lock" bash -c \
    'echo $PPID >"$folder/group"; "$@" & echo $! >"$folder/pid"; wait $!; echo $? >"$folder/code"' \
    bash "$@" </dev/null >>"$folder/log" 2>&1 8>&- &
  until [[ -s $folder/pid ]]; do sleep 0.05; done
}

status() {
  if is_running; then
    echo "dft_jax: running"
    return
  fi
  local code=lost word=exit
  [[ ! -s $folder/code ]] || code=$(<"$folder/code")
  [[ ! -e $folder/asked ]] || word=ended
  [[ ! -e $folder/stopped ]] || word=stopped
  echo "dft_jax: $word $code"
}

last() {
  tail -n 5 "$folder/log" | sed "s/^/$(hostname): /"
}

end() {
  is_running || return 0
  if [[ ! -e $folder/asked ]]; then # once: a third signal ends a run without saving
    touch "$folder/asked"
    kill -TERM "$(<"$folder/pid")" || true
  fi
  flock --shared --wait "$1" "$folder/lock" true || kill -KILL -- "-$(<"$folder/group")"
}

stop() {
  touch "$folder/stopped"
  end "$1"
}

"$verb" "$@"
