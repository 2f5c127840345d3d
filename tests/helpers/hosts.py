"""Hosts of a cluster, played on this machine: each runs containers as a pod's node does.

Network namespaces hang on a switch, a bridge in a namespace of its own, so that nothing of this
machine's network changes. A container sees a root file system made for it (system and Python
read-only, its volumes empty and its own), processes of its own, and runs as its user without
capabilities. It takes root. Every process is ended by its own id: the first process of a container
takes all others of its PID namespace with it.

Not as in a pod: limits of memory and CPU, seccomp, probes, DNS (names stand in /etc/hosts).
"""

import contextlib
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from helpers.pods import Container

import aae_dist

NET = "10.77.0"
SWITCH_ADDRESS = f"{NET}.254"
S3_PORT = 9000
WITH_US = ("setpriv", "--pdeathsig", "KILL")
"""Ends a host when this process is killed, before any fixture could do it."""
PYTHON = Path("/opt/aae-dist")
"""Where the image has its environment, the first folder of its PATH."""
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/alternatives", "/etc/ld.so.cache",
          "/etc/localtime", "/etc/nsswitch.conf", "/etc/ssl")  # fmt: skip
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
S3_SERVER = """
import sys, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
app = DomainDispatcherApplication(create_backend_app)
def serve(fd): make_server("0.0.0.0", 0, app, threaded=True, fd=fd).serve_forever()
import socket
own = socket.create_server(("0.0.0.0", int(sys.argv[2])))
threading.Thread(target=serve, args=(int(sys.argv[1]),)).start()
serve(own.fileno())
"""


def why_not() -> str | None:
    """Return why this process may not play hosts here, or None if it may."""
    if os.geteuid():
        return "hosts are network and mount namespaces: needs root"
    name = f"aae-try-{secrets.token_hex(3)}"
    try:
        run("ip", "netns", "add", name)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        return f"no network namespaces here: {error}"
    try:
        isolated = ("unshare", "--mount", "--pid", "--uts", "--ipc", "--fork")
        run(*isolated, "mount", "-t", "tmpfs", "try", "/mnt")
        run("ip", "link", "add", f"{name[-9:]}", "netns", name, "type", "bridge")
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        return f"no mounts or bridges here: {error}"
    finally:
        run("ip", "netns", "delete", name)
    return None


class Network:
    """A switch, and the hosts on it."""

    def __init__(self, folder: Path) -> None:
        """Make the switch; logs and disks of all hosts lie in `folder`."""
        self.folder = folder
        self.id = secrets.token_hex(2)
        self.hosts: dict[str, Host] = {}
        self.servers: list[subprocess.Popen[bytes]] = []
        self.switch = f"aae-{self.id}-switch"
        run("ip", "netns", "add", self.switch)
        self.inside(self.switch, "ip", "link", "set", "lo", "up")
        self.inside(self.switch, "ip", "link", "add", "br0", "type", "bridge")
        self.inside(self.switch, "ip", "address", "add", f"{SWITCH_ADDRESS}/24", "dev", "br0")
        self.inside(self.switch, "ip", "link", "set", "br0", "up")

    def inside(self, namespace: str, *command: str) -> None:
        run("ip", "netns", "exec", namespace, *command)

    def add(self, name: str, number: int, *more_names: str) -> "Host":
        """Return a new host, connected to the switch by the interface eth0."""
        self.hosts[name] = Host(self, name, f"{NET}.{number}", more_names)
        return self.hosts[name]

    def start_on_switch(self, *command: str, fds: tuple[int, ...] = ()) -> None:
        """Start a server that all hosts reach at `SWITCH_ADDRESS`."""
        inside = ["ip", "netns", "exec", self.switch, *WITH_US, *command]
        with (self.folder / "switch.log").open("ab") as log:
            self.servers.append(subprocess.Popen(inside, stdout=log, stderr=log, pass_fds=fds))

    def start_s3(self) -> str:
        """Start S3 on the switch; return the address at which this process sees the same one."""
        with socket.create_server(("127.0.0.1", 0)) as ours:
            command = (sys.executable, "-c", S3_SERVER, str(ours.fileno()), str(S3_PORT))
            self.start_on_switch(*command, fds=(ours.fileno(),))
            return f"http://127.0.0.1:{ours.getsockname()[1]}"

    def close(self) -> None:
        """End all hosts and remove the namespaces."""
        for server in self.servers:
            server.kill()
            server.wait()
        for host in self.hosts.values():
            host.kill()
            with contextlib.suppress(subprocess.CalledProcessError):
                run("ip", "netns", "delete", host.namespace)
        run("ip", "netns", "delete", self.switch)


class Host:
    """A machine with one service; commands can be run beside it."""

    def __init__(
        self, network: Network, name: str, address: str, more_names: tuple[str, ...]
    ) -> None:
        """Lay the cable."""
        self.name, self.address, self.network = name, address, network
        self.names = (name, *more_names)
        self.namespace = f"aae-{network.id}-{name}"
        self.cable = f"v-{network.id}-{name}"[:15]
        self.log = network.folder / f"{name}.log"
        self.container: Container | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.others: list[subprocess.Popen[bytes]] = []
        self.pods = 0
        run("ip", "netns", "add", self.namespace)
        run("ip", "link", "add", self.cable, "netns", network.switch, "type", "veth",
            "peer", "name", "eth0", "netns", self.namespace)  # fmt: skip
        network.inside(network.switch, "ip", "link", "set", self.cable, "master", "br0", "up")
        for command in (
            ("address", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
            # Ray finds its own address by asking which interface leads to the world.
            ("route", "add", "default", "via", SWITCH_ADDRESS),
        ):
            network.inside(self.namespace, "ip", *command)

    def start(self, container: Container) -> None:
        """Start the host's one service, in a pod of its own: nothing of an earlier one is left."""
        self.pods += 1
        self.container = container
        with self.log.open("ab") as log:
            self.process = self._popen(container, log)

    def popen(self, container: Container, log: Path) -> subprocess.Popen[bytes]:
        """Start a container beside the service; it ends with the host at the latest."""
        with log.open("ab") as out:
            self.others.append(self._popen(container, out))
        return self.others[-1]

    def run(self, container: Container, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        """Run a container beside the service, and wait for its end."""
        return subprocess.run(
            self._command(container),
            env=dict(container.environment),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def ended(self) -> bool:
        """Return whether the service was started and has ended."""
        return self.process is not None and self.process.poll() is not None

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

    def _popen(self, container: Container, out: object) -> subprocess.Popen[bytes]:
        command, env = self._command(container), dict(container.environment)
        return subprocess.Popen(command, env=env, stdout=out, stderr=out)  # type: ignore[call-overload]

    def _command(self, container: Container) -> list[str]:
        """Return the command that makes a container's namespaces and becomes its first process."""
        own = ("--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child")
        enter = ("ip", "netns", "exec", self.namespace, *WITH_US, "unshare", *own)
        root = self._folder("root")
        prepare = "\n".join(["set -e", f"hostname {self.name}", *self._mounts(root, container)])
        user = f"--reuid={container.user} --regid={container.group} --groups={container.group}"
        restricted = "--bounding-set=-all --inh-caps=-all --no-new-privs"
        # A shell that starts pytest in the background lets SIGINT be ignored, by children too.
        become = (
            f"cd {container.directory} && exec setpriv {user} {restricted} --pdeathsig KILL "
            f"env --default-signal=INT {shlex.join(container.command)}"
        )
        enter_root = f"chroot {root} /bin/sh -c {shlex.quote(become)}"
        last = f"{enter_root} & wait $!" if container.shares_processes else f"exec {enter_root}"
        return [*enter, "sh", "-c", f"{prepare}\n{last}"]

    def _mounts(self, root: Path, container: Container) -> Iterator[str]:
        """Yield the commands that make the root file system of a container."""
        yield f"mount -t tmpfs -o mode=755 root {root}"
        for path in map(Path, SYSTEM):
            if path.is_symlink():
                yield f"mkdir -p {root}{path.parent}; ln -s {os.readlink(path)} {root}{path}"
            elif path.exists():
                yield from _see(root, path, path)
        for name, text in self._names(container).items():
            yield f"printf %s {shlex.quote(text)} > {root}/etc/{name}"
        yield f"mkdir {root}/proc {root}/dev {root}/sys; mount -t proc proc {root}/proc"
        yield f"mount --bind /sys {root}/sys; ln -s /proc/self/fd {root}/dev/fd"
        for name in DEVICES:
            yield f"touch {root}/dev/{name}; mount --bind /dev/{name} {root}/dev/{name}"
        for path, volume in sorted(container.volumes.items()):
            place, access = f"{root}{path}", f"gid={container.group},mode=2777"
            if volume.source is not None:
                yield from _see(root, Path(path), volume.source)
            elif volume.size is not None:
                yield f"mkdir -p {place}; mount -t tmpfs -o size={volume.size},{access} x {place}"
            else:
                disk = self._folder(path.strip("/").replace("/", "-"))
                os.chown(disk, 0, container.group)
                disk.chmod(0o2777)
                yield f"mkdir -p {place}; mount --bind {disk} {place}"
        # After the volumes, since a checkout may lie below /tmp, which is one of them.
        package = Path(aae_dist.__file__).parent
        prefixes = {
            Path(sys.prefix),
            Path(sys.base_prefix),
            Path(sys.base_prefix).resolve(),
            package,
        }
        for path in sorted(prefixes):
            if not path.is_relative_to("/usr"):
                yield from _see(root, path, path)
        yield from _see(root, PYTHON, Path(sys.prefix))
        yield f"mkdir -p {root}{container.directory}"
        if container.read_only:
            yield f"mount -o remount,ro {root}"

    def _names(self, container: Container) -> dict[str, str]:
        """Return the files of /etc that say who and where the container is."""
        known = [f"{h.address} {' '.join(h.names)}" for h in self.network.hosts.values()]
        user, group = container.user, container.group
        return {
            "hosts": "\n".join(["127.0.0.1 localhost", *known, ""]),
            "hostname": f"{self.name}\n",
            "passwd": f"root:x:0:0::/root:/bin/sh\naae:x:{user}:{group}::/home/aae:/bin/sh\n",
            "group": f"root:x:0:\naae:x:{group}:\n",
        }

    def _folder(self, name: str) -> Path:
        """Return a folder of the present pod's own on this machine's disk."""
        folder = self.network.folder / f"{self.name}-{self.pods}" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _see(root: Path, path: Path, source: Path) -> Iterator[str]:
    """Yield the commands that show `source` read-only at `path` below `root`."""
    make = "mkdir -p" if source.is_dir() else f"mkdir -p {root}{path.parent}; touch"
    yield f"{make} {root}{path}; mount --bind {source} {root}{path}"
    yield f"mount -o remount,bind,ro {root}{path}"


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """Press Ctrl-C for a command of `Host.popen`: its one child is the command itself."""
    [child] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGINT)


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def wait_for(what: str, done: Callable[[], object], seconds: float, pause: float = 0.5) -> None:
    """Return when `done()` is true; fail, naming `what`, after so many seconds."""
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, f"no {what} within {seconds:.0f} s"
        time.sleep(pause)
