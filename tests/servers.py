"""What a team runs: PostgreSQL, a store of the S3 kind, and an MLflow server on both, for real.

The store is moto's server, which speaks S3 and keeps all in memory; it is not AWS, and asks for no
particular key.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tiny_graph import environment

KEYS = {"AWS_ACCESS_KEY_ID": "team", "AWS_SECRET_ACCESS_KEY": "secret"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def postgres() -> Iterator[str]:
    """Address of a PostgreSQL of one's own; it refuses to run as root."""
    pytest.importorskip("psycopg", reason="needs psycopg[binary] (extra: team)")
    found = shutil.which("pg_ctl") or next(
        map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), reverse=True)), None
    )
    if not found:
        pytest.skip("needs PostgreSQL (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a socket's path has 107 characters
    root = os.getuid() == 0
    runuser = shutil.which("runuser", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if root and not runuser:
        pytest.skip("needs runuser (Debian: util-linux): PostgreSQL does not run as root")
    user = [runuser, "-u", "postgres", "--"] if root else []
    if root:
        shutil.chown(folder, "postgres")
    port = free_port()
    call = [*user, found, "-D", str(folder / "data")]
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": "/"}
    subprocess.run([*call, "initdb", "-o", "-A trust -U plumbline"], **quiet)
    options = f"-p {port} -k {folder} -h 127.0.0.1"
    subprocess.run([*call, "-w", "-l", str(folder / "log"), "-o", options, "start"], **quiet)
    try:
        yield f"postgresql://plumbline@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*call, "-m", "immediate", "stop"], **quiet)
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Server:
    """A server as a process that a test may stop, freeze and start again at the same address."""

    command: list[str]
    health: str
    folder: Path
    port: int = field(default_factory=free_port)
    environment: dict[str, str] = field(default_factory=dict)
    _running: Any = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.folder / "log").open("a") as log:
            self._running = subprocess.Popen(
                [sys.executable, "-m", *self.command, "--host", "127.0.0.1", "--port", str(self.port)],
                cwd=self.folder, env=environment(self.folder) | self.environment,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + 120
        while self._running.poll() is None and time.monotonic() < until:
            try:
                urllib.request.urlopen(self.address + self.health, timeout=1)
                return
            except OSError:
                time.sleep(0.2)
        pytest.fail((self.folder / "log").read_text()[-2000:])

    def send(self, number: int) -> None:
        """Send a signal to the server and to its workers."""
        os.killpg(self._running.pid, number)

    def stop(self) -> None:
        """End it as a machine does that loses power."""
        self.send(signal.SIGKILL)
        self._running.wait()


@contextmanager
def running(server: Server) -> Iterator[Server]:
    server.folder.mkdir(parents=True, exist_ok=True)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def bucket(folder: Path) -> Iterator[Any]:
    """A client of an S3 store in which there is the bucket `plumbline`; `.url` is its address."""
    boto3 = pytest.importorskip("boto3", reason="needs boto3 (extra: team)")
    pytest.importorskip("dvc_s3", reason="needs dvc-s3 (extra: team)")
    pytest.importorskip("moto", reason="needs moto[s3] (extra: dev)")
    with running(Server(["moto.server"], "/moto-api/", folder)) as server:
        client = boto3.client(
            "s3",
            endpoint_url=server.address,
            region_name="us-east-1",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        client.create_bucket(Bucket="plumbline")
        yield client


def objects(client: Any, prefix: str) -> set[str]:
    """Names of the objects under a prefix of the bucket."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="plumbline", Prefix=prefix)
    return {one["Key"] for page in pages for one in page.get("Contents", [])}


def mlflow_server(database: str, store: str, folder: Path) -> Server:
    """An MLflow server as docs/team.md starts it: it alone has the keys of its artifacts."""
    command = [
        "mlflow", "server", "--backend-store-uri", database, "--workers", "2",
        "--artifacts-destination", "s3://plumbline/mlflow",
    ]  # fmt: skip
    own = {
        "MLFLOW_S3_ENDPOINT_URL": store,
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    return Server(command, "/health", folder, environment=own | KEYS)
