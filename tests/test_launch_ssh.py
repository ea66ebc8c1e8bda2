"""launch/ssh.py on a host behind a real SSH server, by the real OpenSSH client, connection killed included."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoestring.cli.main import run as shoestring
from shoestring.errors import BadInput, LaunchError
from shoestring.files import read_jsonl
from shoestring.launch import agent, package, register, ssh_files, ssh_host
from shoestring.launch.ssh_host import Host, Lost, Python
from tests.launched import adapter, environment, write_run

ROOT = Path(__file__).resolve().parent.parent
PLANTED = "planted-4711-very-secret"
pytestmark = pytest.mark.skipif(not shutil.which("ssh"), reason="the OpenSSH client is not installed")
CONFIG = """
Host box
  HostName 127.0.0.1
  Port {port}
  User me
  IdentityFile {folder}/id
  UserKnownHostsFile {folder}/known
  StrictHostKeyChecking accept-new
Host nowhere
  HostName 127.0.0.1
  Port 1
"""


class Box:
    """A host; its server can be killed, with every connection, and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.start()

    def start(self) -> None:
        (self.folder / "ready").unlink(missing_ok=True)
        command = [sys.executable, str(ROOT / "tests" / "ssh_server.py"), str(self.folder), str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (self.folder / "ready").exists():
            assert self.process.poll() is None, "the server did not start"
            time.sleep(0.02)
        self.port = int((self.folder / "ready").read_text())

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    made = Box(tmp_path_factory.mktemp("box"))
    (made.folder / "config").write_text(CONFIG.format(port=made.port, folder=made.folder))
    yield made
    made.kill()


@pytest.fixture
def box(served: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(served.folder))
    monkeypatch.setenv("SHOESTRING_SSH", f"ssh -F {served.folder / 'config'}")
    yield served
    control = ["ssh", "-F", str(served.folder / "config"), "-o", f"ControlPath={ssh_host.control_dir() / '%C'}"]
    subprocess.run([*control, "-O", "exit", "box"], capture_output=True, check=False)


def no_pause(seconds: float) -> None:
    """Tries follow each other at once."""


def python_there(host: Host) -> Python:
    """A Python with this checkout's files: the host is this machine."""
    return Python(host, sys.executable, str(ROOT / "src"))


# ---- the connection -------------------------------------------------------------------------


def test_what_a_host_says_and_why_it_cannot_be_reached(box: Box) -> None:
    host = Host("box", no_pause)
    assert host.once("cat; echo $HOME", b"given ") == b"given " + str(box.home).encode() + b"\n"
    with pytest.raises(LaunchError, match=r"box: words on the way \(exit code 3\)"):
        host.once("echo words on the way >&2; exit 3")
    with pytest.raises(Lost, match=r"nowhere cannot be reached .*refused.* 'ssh nowhere' work without a password"):
        Host("nowhere", no_pause).again("true")
    for wrong in ("", "-oProxyCommand=evil", "two words"):
        with pytest.raises(BadInput, match="give the host as ssh takes it"):
            Host(wrong)
    assert (ssh_host.control_dir().stat().st_mode & 0o777) == 0o700
    assert len(str(ssh_host.control_dir())) <= ssh_host.MAX_FOLDER_BYTES  # wherever the tests are run


def test_files_go_whole_and_only_those_that_lack(box: Box, tmp_path: Path) -> None:
    there, said = python_there(Host("box", no_pause)), []
    found = {f"data/{n}.bin": tmp_path / f"{n}.bin" for n in range(3)}
    for n, path in enumerate(found.values()):
        path.write_bytes(os.urandom(1000 * (n + 1)))
    root = str(box.home / "mirror")
    ssh_files.send(there, found, root, said.append)
    assert said == ["sending 3 files, 0.0 MB, to box"]
    (box.home / "mirror/data/1.bin").write_bytes(b"cut")
    ssh_files.send(there, found, root, said.append)
    ssh_files.send(there, found, root, said.append)
    assert said[1:] == ["sending 1 files, 0.0 MB, to box"]
    assert all((box.home / "mirror" / name).read_bytes() == path.read_bytes() for name, path in found.items())
    (box.home / "mirror/record.json").write_text(f'{{"at": "{root}/home/me"}}')
    local = tmp_path / "back"
    for _ in range(2):
        ssh_files.fetch(there, root, local, {root: ""}, said.append)
    assert said[2:] == ["bringing 4 files, 0.0 MB"] and (local / "record.json").read_text() == '{"at": "/home/me"}'
    assert agent.listing(local / "data") == agent.listing(box.home / "mirror/data")


def test_a_tar_stream_cannot_leave_its_folder(tmp_path: Path) -> None:
    import io
    import tarfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../outside"), io.BytesIO())
    stream.seek(0)
    with pytest.raises(SystemExit, match="no plain file below"):
        agent.receive(tmp_path / "root", stream)
    assert not (tmp_path / "outside").exists()


def test_lines_go_on_where_a_killed_connection_left_them(box: Box) -> None:
    lines = box.home / "lines.txt"
    lines.write_text("one\ntwo\n")
    came = []
    host = Host("box", lambda seconds: box.start() if box.process and box.process.poll() is not None else None)
    for line in host.lines(lambda offset: f"tail -c +{offset + 1} {lines}; test -e {box.home}/over || sleep 60"):
        came.append(line)
        if line == b"two":
            lines.write_text("one\ntwo\nthree\n")
            (box.home / "over").touch()
            box.kill()  # takes the connection with it
    assert came == [b"one", b"two", b"three"]


def test_a_host_that_is_gone_can_be_given_up(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ssh_host, "WAITS_S", ())
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, "far", "launch: {place: 'ssh:nowhere', usd_per_hour: 2}\n")
    assert shoestring(["launch", "far.yaml"]) == 1  # nothing is known to have begun there
    assert "to give it up: shoestring launch far-" in capfd.readouterr().err
    assert shoestring(["launch", "far.yaml"]) == 1
    said = capfd.readouterr().err
    assert "whether far-" in said and "cannot be asked" in said and "when its machine is gone" in said
    assert shoestring(["runs", "--orphans"]) == 0
    told = capfd.readouterr().out
    assert "note: ssh could not be asked: nowhere" in told
    assert shoestring(["runs"]) == 0
    assert "pending?" in capfd.readouterr().out
    assert shoestring(["launch", "far.yaml", "--stop", "--json"]) == 0
    given_up = json.loads(capfd.readouterr().out)
    assert given_up["status"]["state"] == "lost" and "taken as gone" in given_up["status"]["note"]
    assert register.find("far").state == "lost"


# ---- what is sent ---------------------------------------------------------------------------


def test_the_libraries_taken_along_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {word.split(">")[0].split("<")[0].strip() for word in project["dependencies"]}
    assert set(package.CORE) == core
    assert all(pin.replace(".", "").isalnum() for pin in package.pins().values())


def test_absolute_paths_of_a_run_file_are_those_of_the_mirror(tmp_path: Path) -> None:
    run_file = tmp_path / "run.yaml"
    text = f"data: {{train: {tmp_path}/rows*.jsonl, eval: ../held.jsonl}}\nmodels: [/models/mine, other/hub]\n"
    run_file.write_text(text)
    found = {f"{tmp_path}/rows1.jsonl".lstrip("/"): tmp_path, "models/mine/config.json": tmp_path}
    moved = ssh_files.for_the_host(run_file, found, "/there")
    assert f"train: /there{tmp_path}/rows*.jsonl" in moved and "- /there/models/mine" in moved
    assert "../held.jsonl" in moved and "other/hub" in moved
    assert "market:\n  price_usd_per_hour: 2.5" in ssh_files.for_the_host(run_file, {}, "/there", 2.5)
    assert ssh_files.for_the_host(run_file, {}, "/there") == text  # nothing of it is sent: as it is, comments and all


# ---- a real run -----------------------------------------------------------------------------


def test_a_run_on_a_host_survives_its_connection_goes_on_exactly_and_keeps_keys_to_itself(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], run_alone: Path
) -> None:
    monkeypatch.setenv("ODD_NAME", PLANTED)
    monkeypatch.chdir(tmp_path)
    more = f"launch: {{python: {sys.executable}, place: 'ssh:box', env: [ODD_NAME], usd_per_hour: 2}}\n"
    write_run(tmp_path, "far", more)
    assert shoestring(["launch", "far.yaml", "--detach", "--json"]) == 0
    first = json.loads(capfd.readouterr().out)["launch"]
    box.kill()
    box.start()  # the supervisor there has not noticed
    assert shoestring(["launch", "far.yaml", "--json"]) == 2  # a second one is refused
    assert first["id"] in capfd.readouterr().out
    assert shoestring(["runs", "--orphans", "--json"]) == 0
    billing = json.loads(capfd.readouterr().out)["billing"]
    there = [(one["launch_id"], one["usd_per_hour"]) for one in billing if one["backend"] == "ssh"]
    assert (first["id"], 2.0) in there
    arguments = subprocess.run(["ps", "-Awwo", "args="], capture_output=True, text=True, check=True).stdout
    assert f"launches/{first['id']}" in arguments and PLANTED not in arguments
    assert shoestring(["launch", "far", "--stop", "--json"]) == 0
    stopped = json.loads(capfd.readouterr().out)["status"]
    assert stopped["state"] == "stopped" and stopped["cost_usd"] > 0
    # Launched again it goes on there; a client that is killed while it follows is no loss either.
    client = subprocess.Popen(
        [sys.executable, "-m", "shoestring", "launch", "far.yaml"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    while not [one for one in register.registered() if one.handle and one.id != first["id"]] and client.poll() is None:
        time.sleep(0.05)
    client.send_signal(signal.SIGKILL)
    client.wait()
    assert shoestring(["launch", "far", "--attach", "--json"]) == 3
    told = json.loads(capfd.readouterr().out)
    assert told["status"]["state"] == "done" and told["launch"]["id"] != first["id"]
    far = tmp_path / "runs" / "far"
    assert adapter(far) == adapter(run_alone)
    assert shoestring(["export", "runs/far", "--json"]) == 0  # what came back is a run folder like any other
    exported = json.loads(capfd.readouterr().out)["export"]
    assert exported["merge_check"]["passed"] and not (far / "superseded").exists()  # nothing had to be done again
    bills = read_jsonl(far / "launches.jsonl")
    assert [line["basis"]["state"] for line in bills] == ["stopped", "stopped", "done", "done"]
    for root in (tmp_path, box.home):
        for path in root.rglob("*"):
            if path.is_file():
                assert PLANTED.encode() not in path.read_bytes(), path
    for path in far.rglob("*.json"):
        if not {"launches", "best", "checkpoints"} & set(path.parts):
            assert str(box.home) not in path.read_text() or path.name in ("meta.json", "launch.json"), path
