"""Plain manifests and chart: builds both, holds them against each other, writes what the validators then read.

usage: kubernetes.py DEPLOY OUT
OUT gets plain.yaml, helm-*.yaml and the node.yaml files that pods would mount, as node-*.yaml. What kustomize does to our
few lines is done here by hand: no kustomize comes from a package registry.
"""

import sys
from pathlib import Path

import helm_python as helm
import yaml

deploy, out = Path(sys.argv[1]), Path(sys.argv[2])
problems = []


def need(condition, text):
    if not condition:
        problems.append(text)


def documents(text):
    return [d for d in yaml.safe_load_all(text) if d]


def by_name(objects):
    return {(o["kind"], o["metadata"]["name"]): o for o in objects}


def plain():
    base = deploy / "kubernetes"
    kustomization = yaml.safe_load((base / "kustomization.yaml").read_text())
    known = {"apiVersion", "kind", "namespace", "resources", "generatorOptions", "configMapGenerator", "images"}
    need(set(kustomization) <= known, f"kustomization.yaml: this check does not know {set(kustomization) - known}")
    listed = {*kustomization["resources"], "kustomization.yaml", "secret.example.yaml", "backup.example.yaml"}
    objects = [o for name in kustomization["resources"] for o in documents((base / name).read_text())]
    for generator in kustomization["configMapGenerator"]:
        data = {}
        for entry in generator["files"]:
            key, _, name = entry.rpartition("=")
            listed.add(name)
            data[key or name] = (base / name).read_text()
        metadata = {"name": generator["name"]}
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    left = {p.name for p in base.iterdir()} - listed
    need(not left, f"deploy/kubernetes: no line of kustomization.yaml names {', '.join(sorted(left))}")
    for o in objects:
        if o["kind"] != "Namespace":
            o["metadata"]["namespace"] = kustomization["namespace"]
    images = {i["name"]: f"{i['newName']}:{i['newTag']}" for i in kustomization["images"]}
    for o in objects:
        for container in containers(o):
            need(
                container["image"] in images, f"{o['metadata']['name']}: image {container['image']} is not in `images`"
            )
            container["image"] = images.get(container["image"])
    return objects


def chart(values):
    with helm.Chart.load(str(deploy / "helm/mloc")) as loaded:
        loaded.validate_schema(values)
        rendered = loaded.render(values, name="some-release", namespace="mloc")
    return [o for text in rendered.values() for o in documents(text)]


def pod(o):
    return o.get("spec", {}).get("template", {}).get("spec", {}) if o["kind"] in ("StatefulSet", "DaemonSet") else {}


def containers(o):
    return pod(o).get("initContainers", []) + pod(o).get("containers", [])


def hangs_together(where, objects):
    """What a schema can't see: names that refer to one another, and what the security of a pod rests on."""
    names = by_name(objects)
    for o in objects:
        name = f"{where}: {o['kind']} {o['metadata']['name']}"
        if not pod(o):
            continue
        spec, labels = o["spec"], o["spec"]["template"]["metadata"]["labels"]
        need(spec["selector"]["matchLabels"].items() <= labels.items(), f"{name}: the selector misses its own pods")
        if o["kind"] == "StatefulSet":
            service = names.get(("Service", spec["serviceName"]), {}).get("spec", {})
            need(service.get("clusterIP") == "None", f"{name}: {spec['serviceName']} is no headless Service")
            need(service.get("publishNotReadyAddresses") is True, f"{name}: its names resolve only when it is ready")
            need(service.get("selector", {1: 1}).items() <= labels.items(), f"{name}: its Service selects other pods")
            need(spec["podManagementPolicy"] == "Parallel", f"{name}: its pods wait for one another to start")
            budget = names.get(("PodDisruptionBudget", o["metadata"]["name"]), {}).get("spec", {})
            need(budget.get("selector") == spec["selector"], f"{name}: has no PodDisruptionBudget of its own")
            (config,) = [v for v in pod(o)["volumes"] if v["name"] == "node"]
            node = yaml.safe_load(names[("ConfigMap", config["configMap"]["name"])]["data"]["node.yaml"])
            seeds = [f"{o['metadata']['name']}-{i}.{spec['serviceName']}:7946" for i in range(spec["replicas"])]
            need(node["seeds"] == seeds, f"{name}: node.yaml names seeds {node['seeds']}, the pods are {seeds}")
            need(node["bootstrapExpect"] == spec["replicas"], f"{name}: bootstrapExpect is not the number of pods")
        offered = {v["name"] for v in pod(o)["volumes"]} | {
            c["metadata"]["name"] for c in spec.get("volumeClaimTemplates", [])
        }
        for volume in pod(o)["volumes"]:
            if "configMap" in volume:
                need(("ConfigMap", volume["configMap"]["name"]) in names, f"{name}: no ConfigMap for {volume['name']}")
        need(pod(o)["enableServiceLinks"] is False, f"{name}: Services would set MLOC_ variables")
        need(pod(o)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, f"{name}: no seccomp profile")
        for c in containers(o):
            mounts = {m["name"] for m in c["volumeMounts"]}
            need(mounts <= offered, f"{name}: {c['name']} mounts {mounts - offered}, which is no volume")
            context = c["securityContext"]
            need(context["readOnlyRootFilesystem"] is True, f"{name}: {c['name']} writes to its root")
            need(context["capabilities"]["drop"] == ["ALL"], f"{name}: {c['name']} keeps capabilities")
        for c in pod(o)["containers"]:
            ports = {p["name"] for p in c["ports"]}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                get = c[probe]["httpGet"]
                path = "/readyz" if probe == "readinessProbe" else "/healthz"
                need(get["path"] == path and get["port"] in ports, f"{name}: {probe} asks {get}")


def bare(o):
    """An object without what the two ways differ in on purpose."""
    o = yaml.safe_load(yaml.safe_dump(o))
    o["metadata"].pop("namespace", None)
    if pod(o):
        o["spec"]["template"]["metadata"].pop("annotations", None)
    for c in containers(o):
        c.pop("imagePullPolicy", None)
    if o["kind"] == "ConfigMap":
        o["data"] = {k: yaml.safe_load(v) for k, v in o["data"].items()}
    return o


def write(name, objects):
    (out / f"{name}.yaml").write_text(yaml.safe_dump_all(objects, sort_keys=False))
    hangs_together(name, objects)
    for o in objects:
        if o["kind"] == "ConfigMap":
            (out / f"node-{name}-{o['metadata']['name']}.yaml").write_text(o["data"]["node.yaml"])


linted = helm.lint(str(deploy / "helm/mloc"))
for message in linted["messages"]:
    # 1 is info: a chart without an icon.
    need(message["severity"] < 2, f"helm lint: {message}")
need(not linted["errors"], f"helm lint: {linted['errors']}")

by_hand, default = plain(), chart({})
write("plain", by_hand)
write("helm-default", default)
write(
    "helm-other",
    chart(
        {
            "seeds": {"replicas": 5, "storageClass": "fast", "node": {"profile": "wan"}},
            "gpu": {
                "runtimeClassName": "nvidia",
                "pools": [{"gpus": 1, "cpu": "4", "memory": "32Gi"}, {"gpus": 8, "cpu": "64", "memory": "512Gi"}],
                "node": {"volumes": {"models": "/srv/models"}, "labels": {"zone": "a"}},
            },
        }
    ),
)
write("helm-seeds-only", chart({"gpu": {"enabled": False}}))

ours = {k: bare(o) for k, o in by_name(by_hand).items() if k[0] != "Namespace"}
theirs = {k: bare(o) for k, o in by_name(default).items()}
need(ours.keys() == theirs.keys(), f"plain and chart differ in objects: {set(ours) ^ set(theirs)}")
for key in ours.keys() & theirs.keys():
    need(ours[key] == theirs[key], f"{key[0]} {key[1]}: plain manifest and chart differ")
for values in ({"seeds": {"replicas": 2}}, {"joinSecrets": "typo"}):
    try:
        chart(values)
        problems.append(f"the chart takes {values}")
    except helm.HelmError:
        pass

for problem in problems:
    print(problem, file=sys.stderr)
print(f"{len(by_hand)} objects by hand, {len(default)} of the chart's defaults, {len(problems)} problems")
sys.exit(bool(problems))
