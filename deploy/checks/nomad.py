"""Holds the Nomad jobs, as JSON, against what they are to be; writes the node.yaml that their templates give.

usage: nomad.py OUT SEEDS.json WORKERS.json
The parser knows HCL, not Nomad: block and argument names are checked here against the ones Nomad documents, as far as
these jobs use any.
"""

import json
import re
import sys
from pathlib import Path

out, seeds_file, workers_file = map(Path, sys.argv[1:])
problems = []

# Every name below is in Nomad's job specification (1.7); anything else is a slip of the pen.
KNOWN = {
    "job": {"type", "constraint", "update", "group"},
    "constraint": {"attribute", "operator", "value"},
    "update": {"max_parallel", "health_check", "min_healthy_time", "healthy_deadline"},
    "group": {"count", "constraint", "network", "volume", "reschedule", "restart", "service", "task"},
    "network": {"mode", "port"},
    "port": {"static", "to"},
    "volume": {"type", "source", "read_only"},
    "reschedule": {"attempts", "unlimited"},
    "restart": {"attempts", "interval", "delay", "mode"},
    "service": {"name", "provider", "port", "check"},
    "check": {"name", "type", "path", "interval", "timeout", "check_restart"},
    "check_restart": {"limit", "grace", "ignore_warnings"},
    "task": {"driver", "user", "kill_signal", "kill_timeout", "config", "env", "volume_mount", "template", "resources"},
    "config": {"image", "network_mode", "args", "cap_drop", "security_opt", "readonly_rootfs"},
    "volume_mount": {"volume", "destination"},
    "template": {"destination", "change_mode", "change_signal", "data", "uid", "gid", "perms"},
    "resources": {"cpu", "memory", "device"},
    "device": {"count"},
}


def need(condition, text):
    if not condition:
        problems.append(text)


def finish():
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"2 jobs, {len(problems)} problems")
    sys.exit(bool(problems))


def walk(block, name, path):
    for key, value in block.items():
        need(key in KNOWN[name], f"{path}: {name} has no `{key}`")
        if name == "port" or key not in KNOWN or not isinstance(value, (dict, list)):
            continue
        # A block with a label is {label: [block]}, one without is [block].
        for label, blocks in value.items() if isinstance(value, dict) else [(None, value)]:
            for inner in blocks:
                walk(inner, key, f"{path}.{key}" + (f".{label}" if label else ""))


def meant(text, variables, where):
    """Interpolation, as far as these jobs use it: `${var.x}` and `${jsonencode(var.x)}`."""

    def one(found):
        name = found.group(2)
        need(name in variables, f"{where}: no variable {name}")
        value = variables.get(name)
        return json.dumps(value) if found.group(1) else str(value)

    return re.sub(r"\$\{(jsonencode\()?var\.(\w+)\)?\}", one, text)


def check(file, kind):
    whole = json.loads(file.read_text())
    ((name, (job,)),) = whole["job"].items()
    ((_, (group,)),) = job["group"].items()
    ((_, (task,)),) = group["task"].items()
    variables = {n: v[0].get("default") for n, v in whole["variable"].items()}
    need(None not in variables.values(), f"{name}: a variable without a default")
    walk(job, "job", name)
    if problems:
        # What follows takes the names for granted.
        finish()
    for text in re.findall(r"\$\{[^}]*\}", json.dumps(job)):
        known = r"\$\{(var\.\w+|jsonencode\(var\.\w+\)|NOMAD_(TASK|SECRETS)_DIR|node\.class|node\.unique\.name|meta\.mloc_seed)\}"
        need(re.fullmatch(known, text), f"{name}: {text} is nothing Nomad fills in")

    need(job["type"] == kind, f"{name}: is a {job['type']} job, not {kind}")
    (network,) = group["network"]
    ports = {n: p[0]["static"] for n, p in network["port"].items()}
    need(network["mode"] == "host" and ports == {"gossip": 7946, "links": 7947, "rest": 7948}, f"{name}: ports {ports}")
    (service,) = group["service"]
    need(service["port"] in ports, f"{name}: service on port {service['port']}")
    checks = {c["path"]: c for c in service["check"]}
    need(set(checks) == {"/readyz", "/healthz"}, f"{name}: checks {set(checks)}")
    # Not ready is no reason to start anew: a node may wait for its seeds as long as it takes.
    restarts = {path for path, c in checks.items() if "check_restart" in c}
    need(restarts == {"/healthz"}, f"{name}: is started anew for {restarts}")
    (mount,) = task["volume_mount"]
    need(mount["volume"] in group["volume"], f"{name}: mounts {mount['volume']}, which is no volume")
    (config,) = task["config"]
    need(config["readonly_rootfs"] is True and config["cap_drop"] == ["all"], f"{name}: may write and has capabilities")
    need(task["kill_signal"] == "SIGTERM" and task["kill_timeout"] == "60s", f"{name}: how it is stopped")

    templates = {t["destination"].rpartition("/")[2]: t for t in task["template"]}
    args = config["args"]
    need(args[-1] == templates["node.yaml"]["destination"], f"{name}: args name {args[-1]}, not the template")
    node = templates["node.yaml"]
    need((node["change_mode"], node["change_signal"]) == ("signal", "SIGHUP"), f"{name}: how a new node.yaml is told")
    token = templates["join.token"]
    need(task["env"][0]["MLOC_TOKEN_FILE"] == token["destination"], f"{name}: the token is not where mloc looks for it")
    need(token["perms"] == "0400" and str(token["uid"]) == task["user"], f"{name}: the token's owner and mode")
    # Nomad lets a job read the variables under its own name, no other's.
    need(f'nomadVar "nomad/jobs/{name}"' in token["data"], f"{name}: reads another job's variable")
    (out / f"node-nomad-{name}.yaml").write_text(meant(templates["node.yaml"]["data"], variables, name))
    return job, group, task, variables


_, seeds, _, seed_variables = check(seeds_file, "service")
need(seeds["count"] == 3, f"mloc-seeds: count {seeds['count']}")
need(any(c.get("operator") == "distinct_hosts" for c in seeds["constraint"]), "mloc-seeds: two may share a host")
_, workers, worker, worker_variables = check(workers_file, "system")
need("count" not in workers, "mloc-workers: a system job has no count")
need(list(worker["resources"][0]["device"]) == ["nvidia/gpu"], "mloc-workers: asks for no GPU")
need(seed_variables["seeds"] == worker_variables["seeds"], "the two jobs name different seeds")

finish()
