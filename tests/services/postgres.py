"""A real PostgreSQL server for tests, from the system's packages, on loopback."""

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path


def find_binaries() -> Path | None:
    """Find the folder of PostgreSQL's server programs; None if it is not installed."""
    found = shutil.which("pg_ctl")
    if found:
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


@contextlib.contextmanager
def postgres(
    folder: Path, *, within: tuple[str, ...] = (), port: int = 5432
) -> Iterator[Callable[[str], None]]:
    """Run a server on 127.0.0.1 with password login; yield what runs SQL as its superuser.

    Args:
        folder: for its data; the user postgres must be able to enter all folders above.
        within: prefix of every command, such as that of a network namespace.
    """
    found = find_binaries()
    assert found is not None, "PostgreSQL is not installed"
    folder.mkdir(parents=True)
    user = pwd.getpwnam("postgres")
    os.chown(folder, user.pw_uid, user.pw_gid)  # PostgreSQL refuses to run as root
    as_postgres = ("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups")

    def run(*command: str, stdin: str | None = None) -> None:
        subprocess.run(
            [*within, *as_postgres, *command],
            check=True, cwd=folder, input=stdin, text=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    data = folder / "data"
    run(str(found / "initdb"), "-D", str(data), "--auth-local=peer", "--auth-host=scram-sha-256")
    options = f"-k {folder} -h 127.0.0.1 -p {port} -c fsync=off"
    control = (str(found / "pg_ctl"), "-D", str(data), "-l", str(folder / "log"), "-w")
    run(*control, "-o", options, "start")
    try:
        yield lambda sql: run("psql", "-qh", str(folder), "-p", str(port), "postgres", stdin=sql)
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            run(*control, "-m", "immediate", "stop")
