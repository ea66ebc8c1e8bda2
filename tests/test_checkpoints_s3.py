"""Checkpoints on a real S3-compatible server: killed, the run folder deleted, continued from the bucket.

Runs where s3fs and moto's server are installed: pip install 's3fs' 'moto[server]'.
"""

import os
import shutil
import signal
import time

import pytest

from bench.kill import Job, num_lines, start, steps
from shoestring.train.checkpoint import MARKER
from shoestring.train.remote import Store
from tests.tiny import make_model

pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")
SECRET = "planted-secret-0123456789"


@pytest.fixture
def bucket(monkeypatch):
    """An address on a server of our own; the credentials are in the environment, as anywhere."""
    moto = server.ThreadedMotoServer(port=0)
    moto.start()
    host, port = moto.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "planted-key-id",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    Store("s3://kept").fs.mkdir("kept")
    yield "s3://kept/runs"
    moto.stop()


@pytest.mark.filterwarnings("default")  # of the server's and the driver's libraries
def test_killed_and_the_machine_lost_it_goes_on_from_the_bucket(tmp_path, bucket):
    model = str(make_model(tmp_path / "tiny"))
    assert start(Job(model, 80), tmp_path / "alone").wait(300) == 0
    job, out_dir = Job(model, 80, 1e9, bucket), tmp_path / "killed"
    process, store = start(job, out_dir), Store(bucket).under("killed")
    while process.poll() is None and (
        num_lines(out_dir / "steps.jsonl") < 4 or not [p for p in store.fs.find(store.root) if p.endswith(MARKER)]
    ):
        time.sleep(0.01)
        store.fs.invalidate_cache()
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    first_line = (out_dir / "steps.jsonl").read_text().splitlines()[0]  # with the seconds of that life
    shutil.rmtree(out_dir)

    assert start(job, out_dir).wait(300) == 0

    alone = (tmp_path / "alone/adapter/adapter_model.safetensors").read_bytes()
    assert (out_dir / "adapter/adapter_model.safetensors").read_bytes() == alone
    assert steps(out_dir) == steps(tmp_path / "alone")
    assert (out_dir / "steps.jsonl").read_text().splitlines()[0] == first_line
    for path in out_dir.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), os.fspath(path)
