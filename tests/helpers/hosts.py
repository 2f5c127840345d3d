"""Hosts of a cluster, played on this machine: each has its own network, processes, name and /tmp.

Network namespaces hang on a switch, a bridge in a namespace of its own, so that nothing of this
machine's network changes. It takes root. Every process is ended by its own id: the first process
of a host takes all others of its PID namespace with it.
"""

import contextlib
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

NET = "10.77.0"
SWITCH_ADDRESS = f"{NET}.254"
BIN = Path(sys.executable).parent
WITH_US = ("setpriv", "--pdeathsig", "KILL")
"""Ends a host when this process is killed, before any fixture could do it."""


def can_play() -> bool:
    """Return whether this process may make network namespaces here."""
    if os.geteuid():
        return False
    name = f"aae-try-{secrets.token_hex(3)}"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
    if made:
        subprocess.run(["ip", "netns", "delete", name], check=True)
    return made


class Network:
    """A switch, and the hosts on it."""

    def __init__(self, folder: Path) -> None:
        """Make the switch; logs of all hosts go to `folder`."""
        self.folder = folder
        self.id = secrets.token_hex(2)
        self.hosts: dict[str, Host] = {}
        self.servers: list[subprocess.Popen[bytes]] = []
        self.switch = f"aae-{self.id}-switch"
        ip("netns", "add", self.switch)
        self.inside(self.switch, "ip", "link", "set", "lo", "up")
        self.inside(self.switch, "ip", "link", "add", "br0", "type", "bridge")
        self.inside(self.switch, "ip", "address", "add", f"{SWITCH_ADDRESS}/24", "dev", "br0")
        self.inside(self.switch, "ip", "link", "set", "br0", "up")

    def inside(self, namespace: str, *command: str) -> None:
        ip("netns", "exec", namespace, *command)

    def add(self, name: str, number: int) -> "Host":
        """Return a new host, connected to the switch by the interface eth0."""
        self.hosts[name] = Host(self, name, f"{NET}.{number}")
        return self.hosts[name]

    def start_on_switch(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a server that all hosts reach at `SWITCH_ADDRESS`."""
        with (self.folder / "switch.log").open("ab") as log:
            server = subprocess.Popen(
                ["ip", "netns", "exec", self.switch, *WITH_US, *command], stdout=log, stderr=log
            )
        self.servers.append(server)
        return server

    def close(self) -> None:
        """End all hosts and remove the namespaces."""
        for server in self.servers:
            server.kill()
            server.wait()
        for host in self.hosts.values():
            host.kill()
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "delete", host.namespace)
        ip("netns", "delete", self.switch)


class Host:
    """One host; `start` gives it its life, `kill` and `cut` take it away."""

    def __init__(self, network: Network, name: str, address: str) -> None:
        """Lay the cable."""
        self.name, self.address, self.network = name, address, network
        self.namespace = f"aae-{network.id}-{name}"
        self.cable = f"v-{network.id}-{name}"[:15]
        self.log = network.folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.others: list[subprocess.Popen[bytes]] = []
        ip("netns", "add", self.namespace)
        ip("link", "add", self.cable, "netns", network.switch, "type", "veth",
           "peer", "name", "eth0", "netns", self.namespace)  # fmt: skip
        network.inside(network.switch, "ip", "link", "set", self.cable, "master", "br0", "up")
        network.inside(self.namespace, "ip", "address", "add", f"{address}/24", "dev", "eth0")
        network.inside(self.namespace, "ip", "link", "set", "eth0", "up")
        network.inside(self.namespace, "ip", "link", "set", "lo", "up")

    def command(self, script: str) -> list[str]:
        """Return the command that runs a shell script in this host's namespaces.

        As in a pod: /etc/hosts knows the host's own name, /tmp and /dev/shm are its own.
        """
        hosts = self.network.folder / f"hosts-{self.name}"
        hosts.write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        prepare = (
            f"hostname {self.name} && mount --bind {hosts} /etc/hosts && "
            "mount -t tmpfs -o size=2g tmp /tmp && mount -t tmpfs -o size=2g shm /dev/shm && "
        )
        own = ("--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")
        enter = ("ip", "netns", "exec", self.namespace, *WITH_US, "unshare", *own)
        return [*enter, "sh", "-c", prepare + script]

    def start(self, script: str, env: Mapping[str, str]) -> None:
        """Start the host's one service."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(script), stdout=log, stderr=log, env=clean(env)
            )

    def run(
        self, *arguments: str, env: Mapping[str, str], timeout: float = 280
    ) -> subprocess.CompletedProcess[str]:
        """Run a command beside the service, with a /tmp of its own, and wait for its end."""
        return subprocess.run(
            self.command(f"exec {shlex.join(arguments)}"),
            env=clean(env),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def popen(self, *arguments: str, env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a command beside the service; it ends with the host at the latest."""
        with log.open("ab") as out:
            # A shell that starts pytest in the background lets SIGINT be ignored, by children too.
            command = self.command(f"exec env --default-signal=INT {shlex.join(arguments)}")
            started = subprocess.Popen(command, env=clean(env), stdout=out, stderr=out)
        self.others.append(started)
        return started

    def cut(self) -> None:
        """Pull the cable: packets are lost from now on, nobody is told."""
        self.network.inside(self.network.switch, "ip", "link", "set", self.cable, "down")

    def mend(self) -> None:
        """Plug the cable in again."""
        self.network.inside(self.network.switch, "ip", "link", "set", self.cable, "up")

    def kill(self) -> None:
        """SIGKILL every process of the host."""
        for process in [*self.others, *([self.process] if self.process else [])]:
            # unshare dies and takes the first process of its PID namespace along, and that all.
            process.send_signal(signal.SIGKILL)
            process.wait()
        self.others, self.process = [], None


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """Press Ctrl-C for a command of `Host.popen`: its one child is the command itself."""
    [child] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGINT)


def clean(env: Mapping[str, str]) -> dict[str, str]:
    """Return a pod's environment: our Python on the path and nothing of this machine's Ray."""
    kept = {k: os.environ[k] for k in ("HOME", "LANG") if k in os.environ}
    return {**kept, "PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin", "OMP_NUM_THREADS": "1", **env}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def wait_for(what: str, done, seconds: float, pause: float = 0.5) -> None:
    """Return when `done()` is true; fail, naming `what`, after so many seconds."""
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, f"no {what} within {seconds:.0f} s"
        time.sleep(pause)
