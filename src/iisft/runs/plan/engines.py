"""The files of the engines that run one `iisft train` on each of several machines, as their schemas
have them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from iisft.gpu_table import nearest_device
from iisft.runs.plan.plan import Plan

SECRETS = "iisft"  # the Kubernetes secret that holds tokens
_SKYPILOT = {"v100-32g": "V100-32GB", "a100-80g": "A100-80GB"}  # others by their first word
_GRACE_S = 300  # for the present step and its checkpoint

Document = dict[str, Any]


class Job(NamedTuple):
    """What each engine's file is made of. `secrets`: variables that the run needs, by name."""

    name: str
    plan: Plan
    script: Callable[[str, str, str], str]  # of a node's number, node 0's host, and its port
    mounts: list[str]
    secrets: list[str]
    image: str | None

    @property
    def nodes(self) -> int:
        return self.plan.placement.nodes

    @property
    def vendor(self) -> str | None:
        """Whose GPUs."""
        return None if self.plan.placement.on_cpu else self.plan.preset.hardware.vendor


def _dstack(job: Job) -> Document:
    # github.com/dstackai/dstack: docs/docs/concepts/tasks.md, reference/environment-variables.md
    text = job.script("${DSTACK_NODE_RANK:?}", "${DSTACK_MASTER_NODE_IP:?}", "")
    resources: Document = {"shm_size": "16GB"}
    if job.vendor:
        least = int(job.plan.preset.hardware.memory_gib * 0.9)  # as cards count their own
        count = job.plan.placement.ranks
        resources["gpu"] = {"vendor": job.vendor, "count": count, "memory": f"{least}GB.."}
    return {
        "type": "task",
        "name": job.name,
        "nodes": job.nodes,
        **({"image": job.image} if job.image else {}),
        "shell": "bash",
        **({"env": job.secrets} if job.secrets else {}),
        "commands": [text],
        "volumes": [{"instance_path": path, "path": path} for path in job.mounts],
        "resources": resources,
    }


def _skypilot(job: Job) -> Document:
    # docs.skypilot.co: reference/yaml-spec.html, running-jobs/distributed-jobs.html
    hardware = job.plan.preset.hardware
    resources: Document = {"image_id": f"docker:{job.image}"} if job.image else {}
    device = nearest_device(hardware.arch, hardware.memory_gib) if job.vendor else None
    if device:
        name = _SKYPILOT.get(device.key) or device.key.partition("-")[0].upper()
        resources["accelerators"] = {name: job.plan.placement.ranks}
    volumes, places = _host_folders(job)
    pod = {"containers": [{"volumeMounts": places}], "volumes": volumes}
    host = '$(head -n 1 <<< "${SKYPILOT_NODE_IPS:?}")'
    return {
        "name": job.name,
        "num_nodes": job.nodes,
        **({"resources": resources} if resources else {}),
        **({"secrets": dict.fromkeys(job.secrets)} if job.secrets else {}),
        "config": {"kubernetes": {"pod_config": {"spec": pod}}},
        "run": job.script("${SKYPILOT_NODE_RANK:?}", host, ""),
    }


def _jobset(job: Job) -> Document:
    # jobset.sigs.k8s.io: the first pod of the replicated job "node" is NAME-node-0-0.NAME, and an
    # indexed Job numbers its pods (kubernetes.io/docs/concepts/workloads/controllers/job)
    text = job.script("${JOB_COMPLETION_INDEX:?}", f"{job.name}-node-0-0.{job.name}", "")
    one = {
        "completionMode": "Indexed",
        "completions": job.nodes,
        "parallelism": job.nodes,
        "backoffLimit": 0,
        "template": _pod(job, text, "iisft"),
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": job.name},
        "spec": {
            "failurePolicy": {"maxRestarts": 0},
            "network": {"enableDNSHostnames": True, "subdomain": job.name},
            "replicatedJobs": [{"name": "node", "replicas": 1, "template": {"spec": one}}],
        },
    }


def _pytorchjob(job: Job) -> Document:
    # kubeflow/training-operator release-1.9: pkg/controller.v1/pytorch/envvar.go; the container
    # must be called pytorch
    text = job.script("${RANK:?}", "${MASTER_ADDR:?}", "${MASTER_PORT:?}")

    def replicas(count: int) -> Document:
        return {"replicas": count, "restartPolicy": "Never", "template": _pod(job, text, "pytorch")}

    workers = {"Worker": replicas(job.nodes - 1)} if job.nodes > 1 else {}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": job.name},
        "spec": {
            "runPolicy": {"backoffLimit": 0, "cleanPodPolicy": "None"},
            "pytorchReplicaSpecs": {"Master": replicas(1), **workers},
        },
    }


def _pod(job: Job, text: str, container: str) -> Document:
    """A pod's template: one on each machine, with as much shared memory as NCCL wants."""
    volumes, places = _host_folders(job)
    shared = {"name": "shm", "emptyDir": {"medium": "Memory"}}
    one: Document = {
        "name": container,
        "image": job.image,
        "command": ["bash", "-c", text],
        "volumeMounts": [*places, {"name": "shm", "mountPath": "/dev/shm"}],
    }
    if job.secrets:
        one["env"] = [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": SECRETS, "key": name}}}
            for name in job.secrets
        ]
    if job.vendor:
        one["resources"] = {"limits": {f"{job.vendor}.com/gpu": job.plan.placement.ranks}}
    label = {"iisft.run": job.name}
    apart = {"labelSelector": {"matchLabels": label}, "topologyKey": "kubernetes.io/hostname"}
    once = {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}
    return {
        "metadata": {"labels": label},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": _GRACE_S,
            "affinity": {"podAntiAffinity": once},
            "containers": [one],
            "volumes": [*volumes, shared],
        },
    }


def _host_folders(job: Job) -> tuple[list[Document], list[Document]]:
    """The machines' folders as a pod's volumes, and their places in its container."""
    names = [(f"folder-{number}", path) for number, path in enumerate(job.mounts)]
    return (
        [{"name": n, "hostPath": {"path": path, "type": "Directory"}} for n, path in names],
        [{"name": n, "mountPath": path} for n, path in names],
    )


DOCUMENTS: dict[str, Callable[[Job], Document]] = {
    "dstack": _dstack,
    "skypilot": _skypilot,
    "jobset": _jobset,
    "pytorchjob": _pytorchjob,
}
KUBERNETES = ("jobset", "pytorchjob")
COMMANDS = {
    "dstack": "dstack apply -f",
    "skypilot": "sky launch",
    "jobset": "kubectl apply -f",
    "pytorchjob": "kubectl apply -f",
}
