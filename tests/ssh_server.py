"""An SSH server on the loopback whose host is a folder: python tests/ssh_server.py FOLDER [PORT].

Commands run in a shell with HOME = FOLDER/home and nothing of the caller's environment. Writes FOLDER/ready (the port)
once it listens. The client's key is FOLDER/id, made on the first start, the server's FOLDER/host_key.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

import asyncssh

BLOCK_BYTES = 1 << 16


class Server(asyncssh.SSHServer):
    """Takes the one key."""

    def begin_auth(self, username: str) -> bool:
        return True


async def shell(process: asyncssh.SSHServerProcess, home: Path) -> None:
    """Run the client's command as sshd would."""
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    child = await asyncio.create_subprocess_shell(
        process.command or "true",
        cwd=home,
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    given = asyncio.create_task(feed(process.stdin, child.stdin))
    await asyncio.gather(copy(child.stdout, process.stdout), copy(child.stderr, process.stderr))
    code = await child.wait()
    given.cancel()
    process.exit(code)


async def copy(source: asyncio.StreamReader, target: asyncssh.SSHWriter) -> None:
    """What the command says, to the client."""
    with contextlib.suppress(OSError, asyncssh.Error):  # the client is gone
        while data := await source.read(BLOCK_BYTES):
            target.write(data)
            await target.drain()


async def feed(source: asyncssh.SSHReader, target: asyncio.StreamWriter) -> None:
    """What the client sends, to the command."""
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await source.read(BLOCK_BYTES):
            target.write(data)
            await target.drain()
    target.close()


async def serve(folder: Path, port: int) -> None:
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    for name in ("id", "host_key"):
        if not (folder / name).exists():
            asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(folder / name))
            (folder / name).chmod(0o600)
    (folder / "authorized").write_text(asyncssh.read_private_key(str(folder / "id")).export_public_key().decode())
    listener = await asyncssh.create_server(
        Server,
        "127.0.0.1",
        port,
        server_host_keys=[str(folder / "host_key")],
        authorized_client_keys=str(folder / "authorized"),
        process_factory=lambda process: shell(process, home),
        encoding=None,
        reuse_address=True,
    )
    ready = folder / ".ready"
    ready.write_text(str(listener.get_port()))
    ready.rename(folder / "ready")
    await listener.wait_closed()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
