"""What a machine is told: all that it needs, and nothing else of who starts it."""

from __future__ import annotations

import base64
import copy
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import dask.config
import pytest
import yaml

import burla
from burla.clusters import boot, bootstrap, logins
from burla.clusters.boot import Boot, user_data
from burla.clusters.package import package
from burla.clusters.security import create_keys
from burla.protocol import GET_PACKAGE_OP, MESSAGE_BYTES, PUT_PACKAGE_OP
from tests.clouds.fake_ec2 import DEEP_LEARNING, UBUNTU
from tests.clouds.machine_room import MachineRoom, in_machine_room

KEYS = {name: os.urandom(900).hex().encode() for name in ("ca.pem", "cert.pem", "key.pem")}


def files_of(data: str) -> dict[str, str]:
    """Return what cloud-init writes: path → text."""
    document = yaml.safe_load(data)
    assert set(document) == {"write_files"}
    return {
        file["path"]: gzip.decompress(base64.b64decode(file["content"])).decode() for file in document["write_files"]
    }


def test_user_data_has_what_the_machine_needs_within_the_limit_of_the_cloud():
    data = user_data(Boot("node", "n", "example.org/image:1", 600, "tls://10.0.0.1:8786", gpus=True), KEYS)
    files = files_of(data)
    assert len(data.encode()) < boot.LIMIT_BYTES
    assert files[f"{boot.HOME}/keys/key.pem"].encode() == KEYS["key.pem"]
    script = files["/var/lib/cloud/scripts/per-boot/burla"]
    assert "--net=host" in script and "--gpus=all" in script and "--env=BURLA_IMAGE=example.org/image:1" in script
    assert script.rstrip().endswith("shutdown -h now")
    assert "nvidia-ml-py" in files[f"{boot.HOME}/settings.json"]
    assert all("idle_timeout" not in text for text in files.values())
    for path, text in files.items():
        if path.endswith((".sh", "/burla")):
            subprocess.run(["sh", "-n"], input=text, text=True, check=True)


def test_a_name_that_a_shell_would_expand_is_quoted():
    files = files_of(user_data(Boot("head", "n", "image$(touch${IFS}x);y", 600), KEYS))
    assert "'image$(touch${IFS}x);y'" in files["/var/lib/cloud/scripts/per-boot/burla"]


@pytest.mark.parametrize(
    ("cloud", "image"),
    [
        ("aws", "123456789012.dkr.ecr.eu-west-1.amazonaws.com/tools:1"),
        ("gcp", "gcr.io/mine/tools:1"),
        ("gcp", "europe-west4-docker.pkg.dev/mine/images/tools:1"),
        ("azure", "mine.azurecr.io/tools:1"),
    ],
)
def test_docker_is_let_in_at_the_registry_of_the_machine_s_own_cloud_and_nowhere_else(cloud: str, image: str):
    login = logins.commands(cloud, image)
    host = image.partition("/")[0]
    script = files_of(user_data(Boot("node", "n", image, 600, login=login), KEYS))[
        "/var/lib/cloud/scripts/per-boot/burla"
    ]
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    assert host in login and script.index(host) < script.index("docker run")
    for other in {"aws", "gcp", "azure"} - {cloud}:
        assert logins.commands(other, image) == ""
    for public in ("python:3.11-slim", "docker.io/library/python", f"example.org/{image}", f"x{host}.example.org/y"):
        assert logins.commands(cloud, public) == ""


def test_docker_asks_the_helper_of_the_cloud_for_its_own_registry(tmp_path: Path):
    """AWS: Amazon's helper, and a configuration that is docker's own."""
    login = logins.commands("aws", "123456789012.dkr.ecr.eu-west-1.amazonaws.com/tools:1").replace(
        boot.HOME, f"{tmp_path}"
    )
    noting = f'apt-get() {{ echo "$@" >> {tmp_path}/apt; }}\n'
    subprocess.run(["bash", "-c", noting + login.replace("DEBIAN_FRONTEND=noninteractive ", "")], check=True)
    assert (tmp_path / "apt").read_text().rstrip().endswith("install -qy amazon-ecr-credential-helper")
    configured = json.loads((tmp_path / "docker/config.json").read_text())
    assert configured == {"credHelpers": {"123456789012.dkr.ecr.eu-west-1.amazonaws.com": "ecr-login"}}


def test_what_the_image_lacks_is_installed_in_the_versions_of_the_client(monkeypatch: pytest.MonkeyPatch):
    wanted = boot.requirements(gpus=False)
    assert f"dask=={dask.__version__}" in wanted  # pyright: ignore[reportPrivateImportUsage]
    settings = {"python": "{}.{}".format(*sys.version_info), "requirements": [*wanted, "dask==1.0", "no-such-thing"]}
    assert bootstrap.missing(settings) == ["dask==1.0", "no-such-thing"]
    with pytest.raises(SystemExit, match=r"the image has Python 3.*, the client 2\.7: they must be the same"):
        bootstrap.missing({**settings, "python": "2.7"})


def test_the_package_fits_a_message_and_the_bootstrap_knows_our_operations():
    assert len(package().archive) < MESSAGE_BYTES
    text = Path(bootstrap.__file__).read_text()
    assert f'"{PUT_PACKAGE_OP}"' in text and f'"{GET_PACKAGE_OP}"' in text and f"head.{GET_PACKAGE_OP}(" in text


@in_machine_room
def test_nothing_of_the_client_goes_to_the_cloud_but_the_cluster_s_keys(room: MachineRoom) -> None:
    """Neither its environment nor its Dask configuration; all is tagged; one port is open, to one address."""
    os.environ.update(MY_TOKEN="token-of-the-client", DASK_MY__TOKEN="token-of-the-variable")
    dask.config.set({"my.secret": "secret-of-the-configuration"})
    room.client("iam").create_instance_profile(InstanceProfileName="reader")
    before = _configuration()
    burla.create_cluster("quiet", cloud="aws", nodes=1, role="reader")
    assert _configuration() == before
    secrets = ["token-of-the-client", "token-of-the-variable", "secret-of-the-configuration"]
    secrets += [room.environ["AWS_SECRET_ACCESS_KEY"], room.environ["AWS_ACCESS_KEY_ID"]]
    for machine in room.machines:
        assert len(machine.user_data.encode()) < boot.LIMIT_BYTES
        text = "".join(files_of(machine.user_data).values()) + machine.user_data
        assert [secret for secret in secrets if secret in text or dask_hidden(secret) in text] == []
        [container] = machine.containers
        assert container.image.startswith("python:3.") and container.environ == {"BURLA_IMAGE": container.image}
    tagged = [*room.instances(), *room.ec2.describe_volumes()["Volumes"]]
    [group] = [one for one in room.ec2.describe_security_groups()["SecurityGroups"] if one["GroupName"] != "default"]
    for resource in [*tagged, group]:
        tags = {tag["Key"] for tag in resource["Tags"]}
        assert {"burla-cluster", "burla-name", "burla-owner", "burla-role", "burla-expiry"} <= tags
    for one in room.instances():
        assert [[used["GroupId"] for used in link["Groups"]] for link in one["NetworkInterfaces"]] == [
            [group["GroupId"]]
        ]
    rules = [(rule["IpProtocol"], rule.get("FromPort"), rule.get("ToPort"),
              [one["CidrIp"] for one in rule["IpRanges"]], [one["GroupId"] for one in rule["UserIdGroupPairs"]])
             for rule in group["IpPermissions"]]  # fmt: skip
    assert sorted(rules, key=str) == [
        ("-1", None, None, [], [group["GroupId"]]),
        ("tcp", 8786, 8786, ["192.0.2.1/32"], []),
    ]
    assert [one.get("IamInstanceProfile", {}).get("Arn", "").rpartition("/")[2] for one in room.instances()] == [
        "",
        "reader",
    ]
    assert not any(one.get("KeyName") for one in room.instances())
    burla.delete_cluster("quiet")


@in_machine_room
def test_a_machine_with_gpus_has_their_driver_and_its_container_all_of_them(room: MachineRoom) -> None:
    """The head needs neither; a machine that there is not is refused before anything is made."""
    burla.create_cluster("gpus", cloud="aws", machine="g4dn.xlarge")
    head, node = room.machines
    assert [head.containers[0].gpus, node.containers[0].gpus] == [False, True]
    assert {one["InstanceType"]: one["ImageId"] for one in room.instances()} == {
        "m7i.large": UBUNTU,
        "g4dn.xlarge": DEEP_LEARNING,
    }
    burla.delete_cluster("gpus")
    with pytest.raises(burla.CloudError, match=r"looking at g4dn\.hugest: .*g4dn\.hugest.*Nothing of it runs"):
        burla.create_cluster("none", cloud="aws", machine="g4dn.hugest")
    assert room.left() == []


def _configuration() -> dict[str, object]:
    """Return Dask's global configuration but for the defaults that a package adds when it is imported."""
    import distributed  # noqa: F401

    return {key: copy.deepcopy(value) for key, value in dask.config.config.items() if key != "cloudprovider"}


def dask_hidden(secret: str) -> str:
    """Return a text as Dask would hide it in a configuration that it hands on."""
    return base64.b64encode(secret.encode()).decode().rstrip("=")[:-2]


def test_keys_of_a_cluster_are_what_a_machine_gets(tmp_path: Path):
    create_keys(tmp_path)
    keys = {name: (tmp_path / "keys" / name).read_bytes() for name in KEYS}
    assert len(user_data(Boot("head", "n" * 60, "i" * 200, 600), keys)) < boot.LIMIT_BYTES / 2
