"""Prometheus on a mesh of three while a task runs: every expression that is shipped returns data.

usage: scrape.py DEPLOY MLOC PROMETHEUS
An alert's expression is silent as long as all is well; of those, every metric they name must be there. That they fire is
what `promtool test rules` says.
"""

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

import yaml

deploy, mloc, prometheus = Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3]
PATIENCE = 90  # for a debug build on a busy machine
# The node takes free ports; nothing of a user's environment reaches it.
ENVIRONMENT = {"PATH": "/usr/bin:/bin"} | {f"MLOC_{name}BIND": "127.0.0.1:0" for name in ("", "LINK_", "REST_")}


def wait(otherwise, condition):
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if (found := condition()) is not None:
            return found
        time.sleep(0.2)
    raise SystemExit(otherwise)


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return None


class Node:
    def __init__(self, folder, name, first=None):
        self.data, environment = folder / name, ENVIRONMENT | {"HOME": str(folder), "MLOC_NAME": name}
        argv = [mloc, "up"]
        if first:
            argv = [mloc, "join", first.says["gossip"]]
            environment["MLOC_TOKEN_FILE"] = str(first.data / "join.token")
        self.log = open(folder / f"{name}.log", "w")
        self.process = subprocess.Popen(
            [*argv, "--data-dir", self.data],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )

    def started(self):
        if self.process.poll() is not None:
            raise SystemExit(f"{self.data.name} ended: {Path(self.log.name).read_text()}")
        try:
            self.says = json.loads((self.data / "node.json").read_text())
            return self.says
        except FileNotFoundError:
            return None


def expressions():
    """What each shipped file asks for, with the file."""
    dashboard = json.loads((deploy / "grafana/mesh.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield f"grafana: {panel['title']}", target["expr"].replace("$job", "mloc")
    for group in yaml.safe_load((deploy / "prometheus/rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            selectors = re.findall(r"\b[a-z_:]+\{[^}]*\}", rule["expr"])
            assert selectors, f"{rule['alert']}: names no metric of a job"
            yield from ((f"alert {rule['alert']}", selector) for selector in selectors)


with tempfile.TemporaryDirectory(prefix="mloc-scrape-") as folder:
    folder, running = Path(folder), []
    try:
        first = Node(folder, "a")
        running.append(first)
        wait("the first node does not start", first.started)
        for name in ("b", "c"):
            running.append(Node(folder, name, first))
        for node in running[1:]:
            wait("a node does not join", node.started)

        config = yaml.safe_load((deploy / "prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(deploy / "prometheus/rules.yml")]
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [node.says["rest"] for node in running]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        log = open(folder / "prometheus.log", "w+")
        # Port 0 is taken as it is, and the log says which one it became: no port is guessed.
        server = subprocess.Popen(
            [prometheus, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
            + ["--web.listen-address=127.0.0.1:0", "--web.console.libraries=.", "--web.console.templates=."],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        running.append(server)

        def address():
            if server.poll() is not None:
                raise SystemExit(f"prometheus ended: {Path(log.name).read_text()}")
            found = re.search(r'msg="Listening on" address=(127\.0\.0\.1:\d+)', Path(log.name).read_text())
            return found and found.group(1)

        at = wait("prometheus does not listen", address)

        def query(expression):
            text = get(f"http://{at}/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
            answer = json.loads(text) if text else {}
            return answer["data"]["result"] if answer.get("status") == "success" else []

        task = (deploy / "../configs/echo.yaml").read_text().replace("steps: 5", "steps: 100000")
        (folder / "task.yaml").write_text(task)
        subprocess.run(
            [mloc, "submit", "--node", running[1].says["rest"], folder / "task.yaml"], check=True, capture_output=True
        )
        asked = dict.fromkeys(expressions())
        # The figures first: they say that what follows is asked of a mesh of three with a task that runs.
        for expression in (
            'sum(up{job="mloc"}) == 3',
            'max(mloc_members{job="mloc"}) == 3',
            'sum(mloc_leader{job="mloc"}) == 1',
            'max(mloc_attempts_running{job="mloc"}) == 1',
            'max(mloc_tasks{job="mloc", state="RUNNING"}) == 1',
        ):
            wait(f"never true: {expression}", lambda: query(expression) or None)
        for where, expression in asked:
            wait(f"{where}: no data: {expression}", lambda: query(expression) or None)
        fired = [a["metric"]["alertname"] for a in query('ALERTS{alertstate="firing"}')]
        assert not fired, f"alerts fire on a mesh in good health: {fired}"
        for node in running[:3]:
            node.process.send_signal(signal.SIGTERM)
        codes = [node.process.wait(timeout=60) for node in running[:3]]
        assert codes == [0, 0, 0], f"the nodes ended with {codes}"
        print(f"{len(asked)} expressions return data from three nodes while a task runs")
    finally:
        for one in running:
            process = getattr(one, "process", one)
            # Asked first, so that a node ends its attempts' children.
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
