"""Runs an image's entry point without a container engine: the file system assembled, namespaces of its own, the image's
user, environment and arguments, a read-only root, no capabilities, no new privileges, tini or whatever is named as PID 1.

usage: rootfs.py REPOSITORY DOCKERFILE MLOC TINI    (as root)

Three times: as the Dockerfile says; as a strict platform has it, under an arbitrary uid of group 0 and without HOME; and
with mloc itself as PID 1. None has /tmp, /dev/shm, a shell or a driver. Each time: healthy by the image's own health check, a task runs to its end in a
child, orphans are reaped, and SIGTERM in the middle of a second task ends all with exit code 0 within the grace.
"""

import ctypes
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GRACE = 60  # terminationGracePeriodSeconds, TimeoutStopSec, kill_timeout
PATIENCE = 90  # for a debug build on a busy machine


def instructions(dockerfile):
    """The last stage's, as (name, rest)."""
    text = re.sub(r"\\\n", " ", "".join(l for l in dockerfile.read_text().splitlines(True) if not l.startswith("#")))
    found = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    last = max(i for i, (name, _) in enumerate(found) if name == "FROM")
    return found[last:]


def image(dockerfile):
    found = {"env": {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, "copies": []}
    for name, rest in instructions(dockerfile):
        if name == "ENV":
            found["env"].update(pair.split("=", 1) for pair in rest.split())
        elif name in ("ENTRYPOINT", "CMD"):
            found[name.lower()] = json.loads(rest)
        elif name == "HEALTHCHECK":
            found["health"] = json.loads(rest.partition("CMD")[2])
        elif name == "USER":
            found["user"] = tuple(int(part) for part in rest.split(":"))
        elif name == "WORKDIR":
            found["workdir"] = rest
        elif name == "VOLUME":
            (found["volume"],) = json.loads(rest)
        elif name == "COPY" and "--from" not in rest:
            source, target = [part for part in rest.split() if not part.startswith("--")]
            found["copies"].append((source, target))
    return found


def assemble(root, repository, says, mloc, tini):
    def put(source, target):
        target = root / str(target).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        # The linker's names are links: their targets are what is copied.
        shutil.copy(source, target, follow_symlinks=True)

    put(mloc, "usr/local/bin/mloc")
    put(tini, "usr/bin/tini")
    for program in (mloc, tini):
        listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
        for library in re.findall(r"(/\S+) \(0x", listed):
            put(library, library)
    for source, target in says["copies"]:
        put(repository / source, target)
    put("/etc/ssl/certs/ca-certificates.crt", "etc/ssl/certs/ca-certificates.crt")
    # What every runtime mounts.
    for name in ("etc/resolv.conf", "etc/hosts"):
        put(f"/{name}", name)
    for name in ("proc", "dev", says["volume"].lstrip("/")):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("null", "zero", "random", "urandom"):
        (root / "dev" / name).touch()


def inside(root, spec):
    """PID 1 of new namespaces, until it becomes the entry point."""
    says = json.loads(spec)

    def mount(*args):
        subprocess.run(["mount", *args], check=True)

    mount("--make-rprivate", "/")
    mount("--bind", root, root)
    for name in ("null", "zero", "random", "urandom"):
        mount("--bind", f"/dev/{name}", f"{root}/dev/{name}")
    mount("-t", "proc", "-o", "nosuid,nodev,noexec", "proc", f"{root}/proc")
    # As the image leaves its folder, and a volume takes it over.
    mount("-t", "tmpfs", "-o", "uid=65532,gid=0,mode=0770,nosuid,nodev", "tmpfs", root + says["volume"])
    mount("-o", "remount,bind,ro", root)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        up = struct.pack("16sh", b"lo", 0x1 | 0x40)  # IFF_UP, IFF_RUNNING
        fcntl.ioctl(control, 0x8914, up)  # SIOCSIFFLAGS
    os.chroot(root)
    os.chdir(says["workdir"])
    libc = ctypes.CDLL(None, use_errno=True)
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for capability in range(last + 1):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
    os.setgroups([])
    os.setgid(says["user"][1])
    os.setuid(says["user"][0])
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    os.umask(0o022)
    os.environ["PATH"] = says["env"]["PATH"]
    os.execvpe(says["entrypoint"][0], [*says["entrypoint"], *says["cmd"]], says["env"])


class Run:
    """One container, as far as it is one."""

    def __init__(self, root, says, log):
        self.says = says
        flags = ["--mount", "--pid", "--fork", "--ipc", "--uts", "--net", "--cgroup"]
        me = [sys.executable, __file__, "--inside", str(root), json.dumps(says)]
        self.process = subprocess.Popen(["unshare", *flags, *me], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        # Before it there is nothing that could be left running.
        self.pid = self.wait("no first process", self.first)
        self.data = Path(f"/proc/{self.pid}/root{says['volume']}")

    def first(self):
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def wait(self, otherwise, condition, seconds=PATIENCE):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise SystemExit(f"it ended with {self.process.returncode} before its time: {otherwise}")
            if (found := condition()) is not None:
                return found
            time.sleep(0.1)
        raise SystemExit(otherwise)

    def execute(self, *argv):
        """A command in the container, as `docker exec` and `kubectl exec` run it."""
        user = [f"--setuid={self.says['user'][0]}", f"--setgid={self.says['user'][1]}"]
        entering = ["nsenter", f"--target={self.pid}", "--all", "--root", "--wd", *user]
        return subprocess.run([*entering, *argv], env=self.says["env"], check=True, capture_output=True, text=True)

    def within(self, *argv, **env):
        """A command of this machine, in the container's network."""
        return subprocess.run(
            ["nsenter", "--target", str(self.pid), "--net", *argv],
            env={"PATH": os.environ["PATH"], **env},
            capture_output=True,
            text=True,
        )

    def adopted(self):
        """Orphans that the first process has, alive or dead."""
        found = subprocess.run(["ps", "--ppid", str(self.pid), "-o", "comm="], capture_output=True, text=True).stdout
        return "sleep" in found.split()

    def end(self):
        if self.process.poll() is None:
            # The end of the first process is the end of all in its namespace.
            os.kill(self.pid, signal.SIGKILL)
            self.process.wait()


def case(name, repository, root, says, mloc):
    with tempfile.NamedTemporaryFile("w+", prefix="mloc-rootfs-") as log:
        run = None
        try:
            run = Run(root, says, log)

            def healthy(*flags):
                # As `docker exec` runs it, with the image's environment and user.
                try:
                    return run.execute(*says["health"], *flags).returncode == 0
                except subprocess.CalledProcessError:
                    return None

            run.wait("it did not become healthy", healthy)
            run.wait("it did not become ready", lambda: healthy("--ready"))
            status = Path(f"/proc/{run.pid}/status").read_text()
            need = {"CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1"}
            for key, value in need.items():
                have = re.search(rf"^{key}:\s*(\S+)", status, re.MULTILINE).group(1)
                assert have == value, f"{key} is {have}: this is not the confinement it is meant to be"
            uid = re.search(r"^Uid:\s*(\d+)", status, re.MULTILINE).group(1)
            assert uid == str(says["user"][0]), f"it runs as {uid}"

            token = run.execute("mloc", "token", "admin").stdout.strip()
            refused = run.within(mloc, "tasks")
            assert refused.returncode == 5, f"without a token REST says {refused.returncode}: {refused.stderr}"
            task = str(repository / "configs/echo.yaml")
            done = run.within(mloc, "submit", "--wait", task, MLOC_API_TOKEN=token)
            assert done.returncode == 0, f"the task did not complete: {done.stdout}{done.stderr}"

            # The sleep's parent is gone when this returns.
            orphan = "(sleep 1 & )"
            subprocess.run(["nsenter", "--target", str(run.pid), "--pid", "sh", "-c", orphan], check=True)
            assert run.adopted(), "the orphan went elsewhere than to the first process"
            run.wait("an orphan is not reaped", lambda: None if run.adopted() else True, 10)

            long = (repository / "configs/echo.yaml").read_text().replace("steps: 5", "steps: 100000")
            with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
                file.write(long)
                file.flush()
                run.within(mloc, "submit", file.name, MLOC_API_TOKEN=token)

            def running():
                listed = run.within(mloc, "tasks", "--state", "RUNNING", "-o", "json", MLOC_API_TOKEN=token)
                return True if listed.returncode == 0 and "RUNNING" in listed.stdout else None

            run.wait("the second task does not start", running)
            os.kill(run.pid, signal.SIGTERM)
            begun = time.monotonic()
            code = run.process.wait(timeout=GRACE)
            assert code == 0, f"it ended with {code} at SIGTERM"
            print(
                f"{name}: healthy, a task ran, orphans are reaped, SIGTERM ends it in {time.monotonic() - begun:.1f} s"
            )
            return True
        except (AssertionError, SystemExit, subprocess.SubprocessError) as error:
            log.seek(0)
            said = re.sub(r"(mloc1-\w+-|admin\.)\w+", r"\1…", log.read())
            print(f"{name}: {error or type(error).__name__}\n{said[-4000:]}", file=sys.stderr)
            return False
        finally:
            if run:
                run.end()


def main(repository, dockerfile, mloc, tini):
    repository, says = Path(repository).resolve(), image(Path(dockerfile))
    with tempfile.TemporaryDirectory(prefix="mloc-rootfs-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        assemble(root, repository, says, mloc, tini)
        assert says["health"] == ["mloc", "healthz"], "the health check that is tried is not the image's"
        as_image = case("as the image says", repository, root, says, mloc)
        strict = {**says, "user": (1234567, 0), "env": {k: v for k, v in says["env"].items() if k != "HOME"}}
        as_strict = case("arbitrary uid, no HOME", repository, root, strict, mloc)
        bare = {**says, "entrypoint": ["mloc"]}
        as_first = case("mloc itself as PID 1", repository, root, bare, mloc)
    sys.exit(not (as_image and as_strict and as_first))


if sys.argv[1] == "--inside":
    inside(*sys.argv[2:])
else:
    main(*sys.argv[1:])
