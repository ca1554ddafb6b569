"""Which processes are one job, as JAX finds out or variables name them; and joining them."""

import dataclasses
import os
import sys
import warnings
from typing import Any

import jax

from dft_jax.runtime import errors, meeting

HEARTBEAT_S = 30  # after which a silent process counts as dead, and ends the others
JOIN_S = 300  # JAX's own; a host whose packages are still being installed is late by minutes

_NAMES = "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID"
_NOT_FOUND = "the job's processes were not found"
_ALONE = "--distributed=false lets each process work alone"


@dataclasses.dataclass(frozen=True)
class Found:
    """Where this process runs: JAX's name of the kind of cluster, the number of processes, and that
    of this one.
    """

    cluster: str
    count: int
    index: int
    # JAX's class, which knows the address as well.
    kind: Any = dataclasses.field(default=None, compare=False, repr=False)

    def address(self, join_s: int) -> str:
        """host:port of process 0, whose name may take time to be known."""
        port = os.environ.get("JAX_COORDINATOR_PORT")
        return self.kind.get_coordinator_address(
            timeout_secs=join_s, override_coordinator_port=port
        )


class CannotJoin(errors.UserError):
    """The others were not met. JAX has not been asked for devices, which alone it may not have."""

    ends_at_once = True


def join(wanted: bool | None, join_s: int = JOIN_S) -> None:
    """Makes one job of the processes that were started for it, and says so in a line on stderr.

    They are named by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or found by JAX
    itself: TPU pods, Slurm steps (srun), Open MPI, Kubernetes.

    Args:
      wanted: None joins where there are more than one, True in any case, False never.
      join_s: seconds in which all have to be there.

    Raises:
      UserError: there is no job to be found, JAX cannot say how many processes it has, or not all
        of them were there in time.
    """
    if wanted is False:
        return
    address = os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    if address:
        count, index = _named(address)
        _say(f"one of {count} processes, as JAX_NUM_PROCESSES says", index == 0)
        _connect(address, count, index, join_s)
        return
    found = detect()
    if found is not None and (wanted or found.count > 1):
        what = f"one of {found.count} processes, found by JAX ({found.cluster}); {_ALONE}"
        _say(what, found.index == 0)
        with errors.user_errors(_NOT_FOUND, f"see that process 0 runs, or {_ALONE}", (Exception,)):
            address = found.address(join_s)
        _connect(address, found.count, found.index, join_s)
    elif wanted:
        remedy = f"start them with srun or on a TPU pod, or set {_NAMES}"
        raise errors.UserError(f"{_NOT_FOUND}; {remedy}")


def detect() -> Found | None:
    """What JAX's own detection says of this process; None where there is no sign of a cluster.

    Raises:
      UserError: signs of a cluster, of which JAX cannot say how many processes it has.
    """
    for kind in _kinds():
        name = kind.name or kind.__name__
        if kind.opt_in_only_method or not _may_be(kind):
            continue
        remedy = f"fix that, or {_ALONE}"
        problem = f"--distributed=auto: this looks like a process of {name}, but JAX cannot tell"
        # Packages that it needs, the network, variables: anything may be missing.
        with errors.user_errors(problem, remedy, (Exception,)):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                is_there = kind.is_env_present()
            if is_there:
                count = _count(kind)
                return Found(name, count, kind.get_process_id() if count > 1 else 0, kind)
        for warning in caught:
            _say(f"works alone: {' '.join(str(warning.message).split())}")
    return None


def _kinds() -> list[Any]:
    """JAX's kinds of clusters, in the order in which it looks for them."""
    try:
        from jax._src.clusters import ClusterEnv

        return list(ClusterEnv._cluster_types)
    # JAX has no public name for them.
    except (ImportError, AttributeError):
        _say(
            f"this JAX does not let itself be asked for other processes; to have them, set {_NAMES}"
        )
        return []


def _may_be(kind: Any) -> bool:
    """Whether it is worth asking.

    In Kubernetes a pod of an Indexed Job can have others beside it, and only of those JAX can tell.
    Any other pod would be warned that a package is missing, or be refused by the cluster's API.
    """
    return kind.__name__ != "K8sCluster" or "JOB_COMPLETION_INDEX" in os.environ


def _count(kind: Any) -> int:
    """The number of processes, as JAX says where there can be more than one."""
    if kind.name == "slurm" and os.environ.get("SLURM_STEP_NUM_TASKS") == "1":
        # Of a shell within an allocation (salloc, srun --pty) JAX says the number of the job's
        # tasks.
        return 1
    if kind.name == "gketpu" and "MEGASCALE_NUM_SLICES" not in os.environ:
        hosts = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES", ""))
        # Notebook services have TPUs of one host, and no server that JAX could ask for slices.
        if hosts and "," not in hosts:
            return 1
    return kind.get_process_count()


def _named(address: str) -> tuple[int, int]:
    """Number of processes and index of this one, from the variables."""
    example = "host:port of process 0, as in 10.0.0.1:8476"
    with errors.user_errors(
        f"JAX_COORDINATOR_ADDRESS={address!r} should be {example}", "correct it", (ValueError,)
    ):
        meeting.split(address)
    with errors.user_errors(_NOT_FOUND, f"set {_NAMES}", (KeyError, ValueError)):
        count, index = int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
        if not 0 <= index < count:
            raise ValueError(f"there is no process {index} of {count}")
        return count, index


def _connect(address: str, count: int, index: int, join_s: int) -> None:
    """All meet, then JAX connects them.

    Raises:
      CannotJoin: some were not there in time.
    """
    bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", "")
    remedy = "start all of them, see that the others reach process 0's port"
    try:
        meeting.meet(address, count, index, join_s, bind)
    except meeting.Absent as absent:
        raise CannotJoin(
            f"the job's processes did not meet at {address} in {join_s} s ({absent}); {remedy}, or"
            " give them longer (--join_seconds)"
        ) from absent
    except OSError as error:
        cause = os.strerror(error.errno or 0)
        raise CannotJoin(
            f"process 0 cannot listen at {bind or address} ({cause}); end what has the port, or"
            " give another one"
        ) from error
    with errors.user_errors(_NOT_FOUND, f"set {_NAMES}", (ValueError,)):
        jax.distributed.initialize(
            address,
            count,
            index,
            initialization_timeout=join_s,
            heartbeat_timeout_seconds=HEARTBEAT_S,
        )


def _say(text: str, is_first: bool = True) -> None:
    if is_first:
        print(f"note: {text}", file=sys.stderr, flush=True)
