"""Clusters as encrypted files: for another machine, and for nobody without the passphrase."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from burla.clusters import bundle, record, registry
from burla.clusters.record import CloudCluster
from burla.clusters.security import create_keys, load_security
from burla.errors import ClusterBusy, InvalidValue

PASSPHRASE = "correct horse battery"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CloudCluster:
    monkeypatch.setenv("BURLA_HOME", str(tmp_path / "here"))
    one = CloudCluster(
        name="demo", cloud="aws", id="1234", owner="me", created_at_s=1.5, region="us-east-1", machine="m7i.xlarge",
        head_machine="m7i.large", image="python:3.11", idle_s=600.0, spot=False, disk_gb=100,
        address="tls://192.0.2.9:8786", head_address="tls://10.0.0.9:8786", network="sg-1", admitted=("192.0.2.1/32",),
    )  # fmt: skip
    create_keys(one.folder)
    record.write(one)
    registry.save(one.entry())
    return one


def test_a_bundle_brings_the_cluster_and_its_keys(
    cluster: CloudCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data, keys = bundle.seal(cluster, PASSPHRASE), cluster.keys()
    assert not any(pem in data for pem in keys.values()) and b"192.0.2" not in data
    monkeypatch.setenv("BURLA_HOME", str(tmp_path / "there"))
    bundle.keep(*bundle.unseal(data, PASSPHRASE))
    assert record.get("demo") == cluster
    assert record.get("demo").keys() == keys
    assert registry.find("demo") == cluster.entry()
    load_security(registry.folder("demo"))
    bundle.keep(*bundle.unseal(data, PASSPHRASE))  # again, as after an address has changed


def test_a_wrong_passphrase_and_a_changed_file_are_refused(cluster: CloudCluster):
    data = bundle.seal(cluster, PASSPHRASE)
    with pytest.raises(InvalidValue, match="the passphrase is wrong, or the file was changed"):
        bundle.unseal(data, PASSPHRASE + " ")
    outside = json.loads(data)
    changed = outside["token"][:40] + ("A" if outside["token"][40] != "A" else "B") + outside["token"][41:]
    with pytest.raises(InvalidValue, match="the passphrase is wrong, or the file was changed"):
        bundle.unseal(json.dumps({**outside, "token": changed}).encode(), PASSPHRASE)
    for other in (b"", b"[]", b"{}", b"\xff", json.dumps({**outside, "format": "other"}).encode()):
        with pytest.raises(InvalidValue, match="the file is"):
            bundle.unseal(other, PASSPHRASE)


def test_a_short_passphrase_is_refused(cluster: CloudCluster):
    with pytest.raises(InvalidValue, match="it must have at least 8"):
        bundle.seal(cluster, "1234567")


def test_two_bundles_of_one_cluster_have_nothing_in_common(cluster: CloudCluster):
    one, two = (json.loads(bundle.seal(cluster, PASSPHRASE)) for _ in range(2))
    assert one["salt"] != two["salt"] and one["token"][20:60] != two["token"][20:60]


def test_the_name_of_another_cluster_is_not_taken(cluster: CloudCluster):
    data = bundle.seal(cluster, PASSPHRASE)
    other = record.get("demo")
    record.write(CloudCluster(**{name: getattr(other, name) for name in other.__slots__} | {"id": "5678"}))
    with pytest.raises(ClusterBusy, match="'demo' is the name of another cluster here"):
        bundle.keep(*bundle.unseal(data, PASSPHRASE))
