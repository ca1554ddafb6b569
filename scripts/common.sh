# Shared by the launchers beside it; sourced, not run.
# shellcheck shell=bash
# shellcheck disable=SC2034 # what is set here is used there

readonly EXIT_USER_ERROR=2

# macOS comes with bash 3.2, which knows no associative arrays.
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: the launchers need bash 4.4 or newer, this is $BASH_VERSION; on macOS: brew install bash" >&2
  exit $EXIT_USER_ERROR
fi
readonly EXIT_RESUMABLE=42 # dft_jax.main was signalled and has saved: the same command resumes

die() {
  echo "error: $*" >&2
  exit "$EXIT_USER_ERROR"
}

((BASH_VERSINFO[0] >= 5)) || die "bash 5 or newer is needed, this is $BASH_VERSION"

# The comment at the top of the script.
usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

declare -A opt=() # a script puts every option that it knows here, with its default

# parse VERBS ARGUMENT...: sets verb, opt[...], dry_run, flags (words for the cluster's own tool), extra (what follows
# --, for dft_jax.main) and given (all arguments but the verb and --dry-run).
parse() {
  local verbs=$1 name
  shift
  verb=start dry_run='' extra=() given=()
  if [[ " $verbs " == *" ${1-} "* ]]; then
    verb=$1
    shift
  fi
  while (($#)); do
    case $1 in
      --help | -h) usage && exit 0 ;;
      --dry-run)
        dry_run=yes
        shift
        continue
        ;;
      --)
        extra=("${@:2}")
        given+=("$@")
        break
        ;;
      --*=*)
        name=${1%%=*} name=${name#--}
        [[ $name =~ ^[a-z-]+$ && " ${!opt[*]} " == *" $name "* ]] || die "unknown option --$name; --help lists them"
        opt[$name]=${1#*=}
        ;;
      -*) die "unknown option $1; options are written --name=value, --help lists them" ;;
      *) die "unexpected argument '$1'; what dft_jax.main should get comes after --" ;;
    esac
    given+=("$1")
    shift
  done
  read -ra flags <<<"${opt[flags]}"
}

# check NAME...: these options were given, and a run can be named and stored so.
check() {
  local name
  for name; do
    [[ ${opt[$name]} ]] || die "--$name is required; --help lists the options"
  done
  [[ -z ${opt[run]} || ${opt[run]} =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] ||
    die "--run=${opt[run]}: letters, digits, '.', '_' and '-' only"
  if [[ ! ${opt[bucket]+known} ]]; then # slurm.sh: its log is beside the run
    [[ -z ${opt[mount]-} || ${opt[mount]} == /* ]] ||
      die "--mount=${opt[mount]}: an absolute path is needed, under which all hosts see the same (a bucket: gcsfuse)"
    return
  fi
  [[ -z ${opt[mount]} || ${opt[mount]} == /* || ${opt[mount]} =~ ^gs://[a-z0-9][a-z0-9._-]+(/|$) ]] ||
    die "--mount=${opt[mount]}: an absolute path is needed, under which all hosts see the same, or gs://BUCKET/FOLDER"
  ! in_bucket || [[ ! ${opt[bucket]}${opt[claim]-} ]] ||
    die "--mount=${opt[mount]} is written to without a mount; leave out --bucket and --claim, or give a path"
}

# Whether dft_jax.main writes runs to a bucket by itself: nothing is mounted.
in_bucket() {
  [[ ${opt[mount]} == gs://* ]]
}

# check_numbers NAME...: these options are whole numbers.
check_numbers() {
  local name
  for name; do
    [[ ${opt[$name]} =~ ^[0-9]+$ ]] || die "--$name=${opt[$name]}: a whole number is needed"
  done
}

# train_command PYTHON VARIABLE: sets command, with XLA's flags, if there are any, in the variable from which this
# platform's compiler takes them. A run is its folder, so the same name resumes it.
train_command() {
  command=("$1" -m dft_jax.main --distributed "--config=${opt[config]}" "--workdir=${opt[mount]%/}/${opt[run]}")
  command+=(${opt[join]+"--join_seconds=${opt[join]}"})
  if [[ ${opt[spec]-} ]]; then
    command=("$1" -m dft_jax.study run "--spec=${opt[spec]}" "--out=${opt[mount]%/}/${opt[run]}")
    ((opt[array] == 1)) || command+=("--array=${opt[array]}")
  fi
  command+=("${extra[@]}")
  [[ ! ${opt[xla]} ]] || command=(env "$2=${opt[xla]}" "${command[@]}") # env becomes python: signals reach it
}

# Whether this exit code says: start again. A process still importing dies of SIGTERM, with 128 + 15.
is_resumable() {
  (($1 == EXIT_RESUMABLE || $1 == 143))
}

# Words, as any POSIX shell reads them back.
quote() {
  local word line='' mark="'" escaped="'\\''"
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//$mark/"$escaped"}'"
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

# check_work: it is a run, with a config, or a study, with a spec and perhaps several jobs of one machine each.
check_work() {
  check_numbers array
  ((opt[array] > 0)) || die "--array=${opt[array]}: at least 1 is needed"
  if [[ ! ${opt[spec]} ]]; then
    check config
    ((opt[array] == 1)) || die "--array=${opt[array]}: only a study is done by several jobs; give --spec"
  elif [[ ${opt[config]} ]]; then
    die "--config and --spec: one job has one of them; remove the other"
  fi
}

# Runs a command, or only shows it.
run() {
  if [[ $dry_run ]]; then
    quote "$@"
  else
    "$@"
  fi
}
