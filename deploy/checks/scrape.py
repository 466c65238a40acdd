"""Prometheus on a mesh of three while one task runs and another waits: every expression that is shipped returns data, under
one leader and again under the next.

usage: scrape.py DEPLOY MLOC PROMETHEUS
An alert's expression is silent as long as all is well; what it compares must return data. That they fire is what
`promtool test rules` says.
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
TASK = """
apiVersion: mloc/v1
kind: TrainingTask
metadata: {name: %s, owner: john-doe, project: p}
spec:
  taskType: echo
  resources: {hardware: {cpu: 100m, gpu: {type: 'simulated:any', count: %d}}}
  hyperparameters: {steps: %d, step_ms: 50}
"""
# Short durations: members vote at once. A GPU of this file's own.
NODE = """
timing: {voterStableMs: 500, gossipIntervalMs: 200}
hardware: {simulated: {gpus: [{type: nvidia-l40, memory: 48GiB, count: 1}]}}
"""
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
        (folder / f"{name}.yaml").write_text(NODE)
        self.log = open(folder / f"{name}.log", "w")
        self.process = subprocess.Popen(
            [*argv, "--data-dir", self.data, "--config", folder / f"{name}.yaml"],
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
        except FileNotFoundError:
            return None
        # Before it has joined it says where REST is, and no more.
        return self.says if "gossip" in self.says else None


def expressions():
    """What each shipped file asks for, with the file."""
    dashboard = json.loads((deploy / "grafana/mesh.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expression = target["expr"].replace("$job", "mloc")
            assert "$" not in expression, f"grafana: {panel['title']}: this check fills in $job alone: {expression}"
            yield f"grafana: {panel['title']}", expression
    for group in yaml.safe_load((deploy / "prometheus/rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            for part in rule["expr"].split(" and "):
                inner, compared = re.subn(r" *(==|!=|>=|<=|>|<) *[0-9.]+$", "", part.strip())
                assert compared == 1, f"{rule['alert']}: compares nothing at its end: {part}"
                yield f"alert {rule['alert']}", inner


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

        def submit(name, steps, gpus):
            (folder / name).write_text(TASK % (name, gpus, steps))
            submitted = subprocess.run(
                [mloc, "submit", "--node", running[1].says["rest"], folder / name], capture_output=True, text=True
            )
            assert submitted.returncode == 0, f"{name} was not accepted: {submitted.stderr}"

        # One for a simulated GPU, so that GPUs and their hours are asked for too; one that fits nowhere.
        submit("runs", 100000, 1)
        submit("waits", 1, 64)
        asked = dict.fromkeys(expressions())
        # The figures first: they say that what follows is asked of a mesh of three with a task that runs.
        for expression in (
            'sum(up{job="mloc"}) == 3',
            'max(mloc_members{job="mloc"}) == 3',
            'sum(mloc_leader{job="mloc"}) == 1',
            'max(mloc_attempts_running{job="mloc"}) == 1',
            'max(mloc_tasks{job="mloc", state="RUNNING"}) == 1',
            'max(mloc_queue_length{job="mloc"}) == 1',
            'max(mloc_queue_oldest_wait_seconds{job="mloc"}) > 1',
            'max(mloc_voters{job="mloc"}) == 3',
            'count(mloc_node_memory_used_bytes{job="mloc"} > 0) == 3',
            # The ledger's figures are one node's alone.
            'count(mloc_tasks{job="mloc", state="RUNNING"}) == 1',
            'count(mloc_usage_gpu_seconds{job="mloc", user="john-doe", project="p"} > 0) == 1',
        ):
            wait(f"never true: {expression}", lambda: query(expression) or None)

        def all_return_data(when):
            missing = [f"{where}: {expression}" for where, expression in asked]
            until = time.monotonic() + PATIENCE
            while missing and time.monotonic() < until:
                missing = [f"{where}: {expression}" for where, expression in asked if not query(expression)]
                time.sleep(0.2)
            assert not missing, "\n".join([f"no data {when}:", *missing])

        all_return_data("under the first leader")
        fired = [a["metric"]["alertname"] for a in query('ALERTS{alertstate="firing"}')]
        assert not fired, f"alerts fire on a mesh in good health: {fired}"

        leader = query('mloc_leader{job="mloc"} == 1')[0]["metric"]["instance"]
        (leaves,) = [node for node in running[:3] if node.says["rest"] == leader]
        leaves.process.send_signal(signal.SIGTERM)
        code = leaves.process.wait(timeout=60)
        assert code == 0, f"the leader ended with {code}"
        for expression in ('sum(mloc_leader{job="mloc"}) == 1', 'max(mloc_queue_length{job="mloc"}) == 1'):
            wait(f"never true under the next leader: {expression}", lambda: query(expression) or None)
        all_return_data("under the next leader")
        others = [node for node in running[:3] if node is not leaves]
        for node in others:
            node.process.send_signal(signal.SIGTERM)
        codes = [node.process.wait(timeout=60) for node in others]
        assert codes == [0, 0], f"the nodes ended with {codes}"
        print(f"{len(asked)} expressions return data while a task runs and one waits, under one leader and the next")
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
