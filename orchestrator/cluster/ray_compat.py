"""All use of Ray's private interfaces and undocumented settings, checked with Ray 2.60."""

import contextlib
import json
import os
import queue
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.job_config import JobConfig
from ray.job_submission import JobSubmissionClient

from orchestrator.config.paths import RAY_UPLOADS
from orchestrator.import_path import PACKAGE_ROOT
from orchestrator.redaction import mask

TRAIN_SETTINGS: Mapping[str, str] = {
    # Seconds between two health checks of the workers; 2 by default, which a restart waits for.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    # supervisor.py does what Ray's watcher would, which takes a process in each worker group.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
ELASTIC_TRAIN_SETTINGS: Mapping[str, str] = {
    # Seconds that Ray waits to place as many workers as it has planned; 60 by default. It may have
    # counted in a draining node, where it places none.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
}
TUNE_SETTINGS: Mapping[str, str] = {
    # The storage keeps all of a sweep that is needed; nothing reads Tune's own files again.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints tables whatever `verbose` is
    "TUNE_WARN_THRESHOLD_S": "5",
}
_LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Environment variable; "0" makes Ray use loopback addresses alone, on any system."""
_JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable in which Ray hands a submitted job's runtime environment to its driver."""
_ERROR_LINE = re.compile(r"^(\w+\.)*\w*(Error|Exception|Exit|Interrupt)(:|$)")
_PID = re.compile(r"^\s*pid: (\d+)$", re.M)


def set_defaults(settings: Mapping[str, str]) -> None:
    """Set environment variables that the user has not set."""
    for name, value in settings.items():
        os.environ.setdefault(name, value)


class PackageJobConfig(JobConfig):
    """Job config that puts only this package on the workers' import path.

    Ray would put the driver's current folder and the folder of its script first, where a user's
    ``random.py`` or ``models/`` would be imported for a library's.
    """

    def _serialize(self) -> Any:
        installed = Path(PACKAGE_ROOT).name in ("site-packages", "dist-packages")
        self._py_driver_sys_path = [] if installed else [PACKAGE_ROOT]
        self._cached_pb = None
        return super()._serialize()


def use_loopback_addresses() -> None:
    """Reach a head that was started on loopback alone; by default Ray asks for this machine's IP.

    The variable is for child processes: Ray has read it when it was imported.
    """
    os.environ[_LOOPBACK_VARIABLE] = "0"
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False


@contextlib.contextmanager
def masked_command_line() -> Iterator[None]:
    """Mask passwords in what Ray records as the command line of a driver that connects.

    Everybody who reaches the cluster can list its jobs and their command lines.
    """
    utils: Any = ray._private.utils
    original = utils.get_entrypoint_name
    utils.get_entrypoint_name = lambda: mask(original())
    try:
        yield
    finally:
        utils.get_entrypoint_name = original


def keep_credentials_from_trials() -> None:
    """Have Tune give its trials no AWS_* variables of the driver.

    It would put them into the runtime environment of each trial, which the command lines of its
    processes, Ray's logs and Ray's dashboard show. Trials have the environment of the cluster.
    """
    from ray.tune.execution import class_cache

    names = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in names if not name.startswith("AWS_")}


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Have a head that is started within the block listen on loopback, where Ray takes all."""
    variable, constant = os.environ.get(_LOOPBACK_VARIABLE), ray._private.ray_constants
    before = constant.ENABLE_RAY_CLUSTER
    use_loopback_addresses()
    try:
        yield
    finally:
        constant.ENABLE_RAY_CLUSTER = before
        os.environ.pop(_LOOPBACK_VARIABLE)
        if variable is not None:
            os.environ[_LOOPBACK_VARIABLE] = variable


def set_torch_variables() -> None:
    """Set LOCAL_RANK, RANK, WORLD_SIZE and the like in a worker of Ray Train."""
    from ray.train.torch.config import _set_torch_distributed_env_vars

    _set_torch_distributed_env_vars()


def ask_head(address: str, timeout_s: float) -> str | None:
    """Return the refusal of a head at ``host:port``, "" if it accepts; None if it does not answer.

    ``ray.init`` would retry for minutes, and not repeat why it was refused.
    """
    answers: queue.Queue[str] = queue.Queue()

    def ask() -> None:
        try:
            ray._raylet.GcsClient(address=address)  # type: ignore[attr-defined]  # compiled
            answers.put("")
        except Exception as error:
            answers.put(str(error) or type(error).__name__)

    threading.Thread(target=ask, daemon=True).start()
    with contextlib.suppress(queue.Empty):
        return answers.get(timeout=timeout_s)
    return None


class BoundedJobClient(JobSubmissionClient):
    """Client of the Jobs API whose requests time out; Ray's own wait forever."""

    CONNECT_TIMEOUT_S = 10.0
    ANSWER_TIMEOUT_S = 30.0
    UPLOAD_TIMEOUT_S = 600.0

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        answer_s = self.UPLOAD_TIMEOUT_S if method == "PUT" else self.ANSWER_TIMEOUT_S
        options.setdefault("timeout", (self.CONNECT_TIMEOUT_S, answer_s))
        return super()._do_request(method, endpoint, **options)


def leave_out_uploaded_folder(environ: MutableMapping[str, str]) -> None:
    """Keep the uploaded working directory off the workers' import path.

    Ray puts it first on the PYTHONPATH of all processes of a job. The driver has read the job file,
    and the workers need nothing from that folder unless the package itself was uploaded in it.
    """
    config = json.loads(environ.get(_JOB_CONFIG_VARIABLE, "{}"))
    if RAY_UPLOADS in Path(PACKAGE_ROOT).parts:
        return
    if (config.get("runtime_env") or {}).pop("working_dir", None):
        environ[_JOB_CONFIG_VARIABLE] = json.dumps(config)


def free_resources_of_nodes() -> Mapping[str, Mapping[str, float]]:
    """Free resources of each node, by node id."""
    free: Mapping[str, Mapping[str, float]] = ray._private.state.available_resources_per_node()
    return free


def draining_nodes() -> set[str]:
    """Ids of the nodes that are being drained, as on a preemption notice; as Ray Train does it."""
    return set(ray._private.state.state.get_draining_nodes() or ())


def make_torch_trainer(train_function: Callable[[dict[str, Any]], None], **arguments: Any) -> Any:
    """Make Ray Train's trainer without three helper processes.

    Each of them imports for 2 to 4 s of a core, just when the workers do. One is for Ray Data's
    sets. One frees what a lost controller leaves, which the driver does; it outlives its job. With
    a fixed number of workers the third, which asks Ray's autoscaler for nodes, has nothing to add:
    the autoscaler sees the placement group that waits for them.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback,
    )
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    from orchestrator.cluster.placement_group_policy import PlacementGroupPolicy

    class LeanTorchTrainer(TorchTrainer):
        def _initialize_and_run_controller(self, **arguments: Any) -> Any:
            policy = arguments["scaling_policy"]
            if type(policy) is FixedScalingPolicy:
                arguments["scaling_policy"] = PlacementGroupPolicy(policy.scaling_config)
            return super()._initialize_and_run_controller(**arguments)  # type: ignore[misc]

        def _create_default_callbacks(self) -> list[Any]:
            unneeded = (DatasetsCallback, PlacementGroupCleanerCallback)
            callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # Train v2's
            return [callback for callback in callbacks if not isinstance(callback, unneeded)]

    return LeanTorchTrainer(train_function, **arguments)


class ClusterMemory:
    """A few bytes in the cluster's control store, which outlive a process of the cluster."""

    def __init__(self) -> None:
        self._key = f"orchestrator/{uuid.uuid4().hex}".encode()

    def save(self, content: bytes) -> None:
        """Replace the bytes."""
        ray.experimental.internal_kv._internal_kv_put(self._key, content, overwrite=True)

    def load(self) -> bytes | None:
        """Return the bytes; None before the first ``save``."""
        content: bytes | None = ray.experimental.internal_kv._internal_kv_get(self._key)
        return content

    def delete(self) -> None:
        """Delete the bytes."""
        ray.experimental.internal_kv._internal_kv_del(self._key)


class StartupErrors:
    """Errors of Ray's processes on this node that end before they can report anything.

    Ray starts them again and again, and only the log of the node's raylet says why.
    """

    def __init__(self) -> None:
        self._log = _log_folder() / "raylet.err"
        self._offset = self._log.stat().st_size if self._log.is_file() else 0

    def newest(self) -> str:
        """Last error line since this object was made; "" if there is none."""
        try:
            with self._log.open(errors="replace") as log:
                log.seek(self._offset)
                return last_error_line(log.read())
        except OSError:
            return ""


class NodeProcesses:
    """Ray's processes on this node without which this process cannot stay connected."""

    def __init__(self) -> None:
        self._raylet: psutil.Process | None = None
        self._was_searched = False

    def ended(self) -> str | None:
        """Return which one has ended; None if none has, or if this process is not connected."""
        node: Any = ray._private.worker._global_node
        if node is None or not ray.is_initialized():
            return None
        vital = {"gcs_server": "GCS", "raylet": "raylet"}  # if this process has started them
        ended = [
            vital[kind]
            for kind, started in list(node.all_processes.items())  # `ray.shutdown` changes it
            if kind in vital and any(one.process.poll() is not None for one in started)
        ]
        if not self._was_searched:
            self._raylet, self._was_searched = _find_raylet(node.raylet_socket_name), True
        if self._raylet is not None and _has_ended(self._raylet):
            ended.append("raylet")
        # What `ray.shutdown` ends, after it has disconnected, does not count.
        return ended[0] if ended and ray.is_initialized() else None


def _find_raylet(unix_socket: str) -> psutil.Process | None:
    """Find the raylet that listens on a Unix socket; None if this machine does not show it."""
    option = f"--raylet_socket_name={unix_socket}"
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if option in process.cmdline()[:2]:
                return process
    return None


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def lost_process_error(error: ray.exceptions.RayActorError) -> str:
    """Return the last error line in the log of an actor's lost process; "" without one.

    Ray gives its process id in the text alone. Logs of other nodes are not read.
    """
    pid = _PID.search(str(error))
    if pid is None:
        return ""
    logs = _log_folder().glob(f"worker-*-{pid.group(1)}.err")
    lines = [last_error_line(log.read_text(errors="replace")) for log in logs]
    return next(filter(None, lines), "")


def last_error_line(text: str) -> str:
    """Last line of ``text`` that begins with the name of an exception; "" without one."""
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if _ERROR_LINE.match(line)), "")


def _log_folder() -> Path:
    node: Any = ray._private.worker._global_node
    return Path(node.get_logs_dir_path())
