#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, as a JobSet (0.10 or newer); the same command again resumes an ended run.
#
#   scripts/gke.sh --run=NAME --image=IMAGE --accelerator=tpu-v5-lite-podslice --topology=4x4 --bucket=BUCKET
#       --config=FILE [options] [-- for dft_jax.main]
#   scripts/gke.sh --run=NAME … --spec=FILE --array=8 [options] [-- for dft_jax.study]
#   scripts/gke.sh stop --run=NAME
#
# A pod that is deleted gets SIGTERM and saves. What follows depends on the exit code: 42 and a lost node restart the
# set, as often as it takes; 2 (the user's error) ends it; anything else restarts it --restarts times.
#
#   --run             the name of the run and of the JobSet; it is stored in MOUNT/RUN
#   --image           this repository, installed, as the working directory
#   --accelerator     the node label cloud.google.com/gke-tpu-accelerator
#   --topology        chips of a slice, e.g. 4x4 or 2x2x4
#   --chips=4         per node
#   --slices=1        how many
#   --bucket          a bucket to mount (GKE's Cloud Storage FUSE driver); or
#   --claim           a PersistentVolumeClaim that all pods can write to
#   --mount=/runs     where, in the pods; or gs://BUCKET/FOLDER, written to without a mount (not with --spec)
#   --config          as for dft_jax.main, e.g. configs/gsm8k.py:objective=dft
#   --spec            as for dft_jax.study, in place of --config: the arms of a study, one process for each pod
#   --array=1         by how many pods, each on a slice of one node; where one is interrupted all restart, and resume
#   --account=default the Kubernetes service account, which may write to the bucket
#   --grace=300       seconds to save in; spot nodes give less
#   --join=1200       seconds in which all pods have to be there, of slices whose nodes come one after the other
#   --restarts=5      how often to restart after a crash
#   --python=python   in the image
#   --xla             flags of XLA (in LIBTPU_INIT_ARGS; none by default): docs/cluster.md
#   --flags           more for kubectl, e.g. --flags='--context=mine --namespace=team'
#   --dry-run         shows what would be run, with the manifest
#   --help
#
# The same with xpk, which restarts on 42 by itself, but counts it (--storage is attached before):
#   xpk workload create --cluster=C --workload=NAME --tpu-type=v5litepod-16 --docker-image=IMAGE --max-restarts=50 \
#       --termination-grace-period-seconds=300 --storage=STORAGE \
#       --command="exec python -m dft_jax.main --distributed --config=FILE --workdir=/runs/NAME"
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

opt=([run]='' [image]='' [accelerator]='' [topology]='' [chips]=4 [slices]=1 [bucket]='' [claim]=''
  [mount]=/runs [config]='' [spec]='' [array]=1 [account]=default [grace]=300 [join]=1200 [restarts]=5 [python]=python
  [xla]='' [flags]='')

# A string as YAML reads it back.
yaml() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  printf '"%s"' "${text//$'\n'/\\n}"
}

# Without a shell around it, python is the pod's first process and hears SIGTERM itself. Kubernetes would expand $(...).
container_command() {
  local word
  for word in "${command[@]}"; do
    printf '                    - %s\n' "$(yaml "${word//'$'/'$$'}")"
  done
}

volume() {
  if [[ ${opt[bucket]} ]]; then
    echo "csi: {driver: gcsfuse.csi.storage.gke.io, volumeAttributes:" \
      "{bucketName: $(yaml "${opt[bucket]}"), mountOptions: \"implicit-dirs,rename-dir-limit=200000\"}}"
  else
    echo "persistentVolumeClaim: {claimName: $(yaml "${opt[claim]}")}"
  fi
}

# Where the container finds its runs; nothing where it writes to a bucket by itself.
volume_mounts() {
  in_bucket || cat <<EOF
                  volumeMounts:
                    - name: runs
                      mountPath: $(yaml "${opt[mount]}")
              volumes:
                - name: runs
                  $(volume)
EOF
}

# Any failed pod fails its Job, and so the set decides; message patterns tell the first rule from the other two.
manifest() {
  cat <<EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(yaml "${opt[run]}")
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: ${opt[restarts]}
    rules:
      - name: userError
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
        onJobFailureMessagePatterns: [".*exit code $EXIT_USER_ERROR matching.*"]
      - name: resumable
        action: RestartJobSetAndIgnoreMaxRestarts
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: ${opt[slices]}
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes: {containerName: train, operator: In, values: [$EXIT_USER_ERROR]}
              - action: FailJob
                onExitCodes: {containerName: train, operator: In, values: [$EXIT_RESUMABLE, 143]}
              - action: FailJob
                onPodConditions: [{type: DisruptionTarget, status: "True"}]
          template:
            metadata:
              annotations:
                gke-gcsfuse/volumes: "$([[ ${opt[bucket]} ]] && echo true || echo false)"
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: ${opt[grace]}
              serviceAccountName: $(yaml "${opt[account]}")
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $(yaml "${opt[accelerator]}")
                cloud.google.com/gke-tpu-topology: $(yaml "${opt[topology]}")
              containers:
                - name: train
                  image: $(yaml "${opt[image]}")
                  command:
$(container_command)
                  resources:
                    requests: {google.com/tpu: ${opt[chips]}}
                    limits: {google.com/tpu: ${opt[chips]}}
$(volume_mounts)
EOF
}

kube() {
  run kubectl "${flags[@]}" "$@"
}

start() {
  local found get=(get jobset "${opt[run]}" --ignore-not-found "--output=jsonpath={.kind} {.status.terminalState}")
  if [[ $dry_run ]]; then
    kube "${get[@]}"
    echo "$(kube apply --filename=-) <<'EOF'"
    manifest
    echo EOF
    return
  fi
  found=$(kube "${get[@]}")
  case ${found% } in
    '') ;;
    JobSet)
      echo "${opt[run]} is running already" >&2
      return
      ;;
    *) kube delete jobset "${opt[run]}" ;; # ended: a JobSet cannot be started twice, its run can
  esac
  manifest | kube apply --filename=-
  local pods="jobset.sigs.k8s.io/jobset-name=${opt[run]}"
  echo "its log: kubectl logs --follow --container=train --selector=$pods" >&2
}

# Sets hosts: the nodes of a slice.
count_hosts() {
  [[ ${opt[topology]} =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || die "--topology=${opt[topology]}: e.g. 4x4 or 2x2x4"
  local chips=$((${opt[topology]//x/*}))
  ((opt[chips] > 0 && chips % opt[chips] == 0)) ||
    die "--topology=${opt[topology]} has $chips chips, which is no multiple of --chips=${opt[chips]} per node"
  hosts=$((chips / opt[chips]))
  [[ ${opt[spec]} ]] || return 0
  ((hosts == 1 && opt[slices] == 1)) || die "--spec: a study's pods have one node each; give a --topology of one node"
  hosts=${opt[array]} # pods of one job, which Kubernetes numbers
}

main() {
  parse "start stop" "$@"
  check run
  [[ ${opt[run]} =~ ^[a-z]([a-z0-9-]{0,43}[a-z0-9])?$ ]] ||
    die "--run=${opt[run]}: Kubernetes wants a small letter, then small letters, digits and '-', 45 at most"
  if [[ $verb == stop ]]; then
    kube delete jobset "${opt[run]}" --ignore-not-found # waits until the pods have saved
    return
  fi
  check image accelerator topology mount
  check_work
  check_numbers chips slices grace join restarts
  if in_bucket; then
    [[ ! ${opt[spec]} ]] || die "--mount=${opt[mount]}: a study's folder has to be mounted; give --bucket or --claim"
  else
    [[ ${opt[bucket]} && ! ${opt[claim]} || ! ${opt[bucket]} && ${opt[claim]} ]] ||
      die "give --bucket or --claim, or --mount=gs://BUCKET/FOLDER: where runs are stored"
  fi
  count_hosts
  train_command "${opt[python]}" LIBTPU_INIT_ARGS
  start
}

main "$@"
