"""deploy/ is valid for KubeRay, Kubernetes and our own command line.

The fields of RayJob and RayCluster that deploy/ may use are listed here from KubeRay's API
reference (ray.io/v1, docs.ray.io, "KubeRay CRD API reference"), since no package ships the
schema. Pods are checked against Kubernetes' own, which kubernetes-validate ships.
"""

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from launch import train

ROOT = Path(__file__).parents[1]
NAME = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
COUNT = Annotated[int, Field(ge=0)]
VERSION = "1.31"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: NAME
    namespace: NAME | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class AuthOptions(Strict):
    mode: Literal["disabled", "token"]


class PodTemplate(Strict):
    metadata: dict[str, Any] = {}
    spec: dict[str, Any]


class HeadGroup(Strict):
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] | None = None
    enableIngress: bool | None = None
    rayStartParams: dict[str, str] = {}
    template: PodTemplate


class WorkerGroup(Strict):
    groupName: NAME
    replicas: COUNT = 0
    minReplicas: COUNT
    maxReplicas: COUNT
    numOfHosts: Annotated[int, Field(ge=1)] = 1
    rayStartParams: dict[str, str] = {}
    template: PodTemplate


class ClusterSpec(Strict):
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] = []
    rayVersion: str | None = None
    enableInTreeAutoscaling: bool | None = None
    authOptions: AuthOptions | None = None
    suspend: bool | None = None


class JobSpec(Strict):
    entrypoint: str
    rayClusterSpec: ClusterSpec
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode"]
    runtimeEnvYAML: str | None = None
    activeDeadlineSeconds: Annotated[int, Field(ge=1)] | None = None
    backoffLimit: COUNT = 0
    shutdownAfterJobFinishes: bool = False
    ttlSecondsAfterFinished: COUNT = 0
    suspend: bool = False
    jobId: str | None = None
    metadata: dict[str, str] = {}
    entrypointNumCpus: float | None = None
    entrypointNumGpus: float | None = None


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


@pytest.fixture
def written() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "deploy" / "rayjob.yaml").read_text())


def pods(job: RayJob) -> list[PodTemplate]:
    cluster = job.spec.rayClusterSpec
    return [
        cluster.headGroupSpec.template,
        *(group.template for group in cluster.workerGroupSpecs),
    ]


def test_the_rayjob_fits_its_schema(written: dict[str, Any]) -> None:
    job = RayJob.model_validate(written)
    assert job.spec.rayClusterSpec.authOptions == AuthOptions(mode="token")
    for template in pods(job):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}
        kubernetes_validate.validate({**pod, "spec": template.spec}, VERSION, strict=True)
        mounted = {
            mount["name"]
            for container in template.spec["containers"]
            for mount in container["volumeMounts"]
        }
        assert mounted == {volume["name"] for volume in template.spec["volumes"]}


def test_a_slip_would_be_seen(written: dict[str, Any]) -> None:
    written["spec"]["shutdownAfterJobFinished"] = True
    with pytest.raises(ValidationError, match="shutdownAfterJobFinished"):
        RayJob.model_validate(written)
    del written["spec"]["shutdownAfterJobFinished"]
    template = pods(RayJob.model_validate(written))[1]
    template.spec["containers"][0]["volumeMount"] = []
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template.spec}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, VERSION, strict=True)


def test_the_entrypoint_is_a_command_of_ours_and_fits_the_cluster(
    written: dict[str, Any],
) -> None:
    job = RayJob.model_validate(written)
    python, dash_m, module, *args = shlex.split(job.spec.entrypoint)
    assert (python, dash_m, module) == ("python", "-m", "launch.train")
    config = train.read_config(args)
    (group,) = job.spec.rayClusterSpec.workerGroupSpecs
    limits = group.template.spec["containers"][0]["resources"]["limits"]
    assert config.cluster.num_workers == group.replicas * int(limits["nvidia.com/gpu"])
    # Paths of a job must not lie in its temporary folder.
    for path in (config.data.shards, config.data.features, config.output):
        assert path is not None and path.startswith("/data/")
    pinned = (ROOT / "constraints.txt").read_text()
    assert f"ray=={job.spec.rayClusterSpec.rayVersion}\n" in pinned


def test_the_image_copies_what_is_there() -> None:
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    copied = [part for line in lines if line.startswith("COPY ") for part in line.split()[1:-1]]
    assert {"acontrol", "launch", "tune", "constraints.txt"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists(), name
    base = next(line for line in lines if line.startswith("FROM "))
    assert base.startswith("FROM python:3.11")  # The oldest that setup.cfg allows.
    assert [line for line in lines if line.startswith("USER ")] == ["USER ray"]
