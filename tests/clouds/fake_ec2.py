"""moto's EC2 as a server, with what it lacks: refusals, console output, termination that can be asked for twice.

    python -m tests.clouds.fake_ec2 PORT FOLDER

FOLDER/refusals.json: {machine type: error code}, read at each start of a machine. FOLDER/<instance>/console.log: what
GetConsoleOutput answers.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

UBUNTU, DEEP_LEARNING = "ami-0ubuntu", "ami-0deeplearning"
_MACHINE_IMAGES = [
    (UBUNTU, "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-20260901", "099720109477"),
    (
        DEEP_LEARNING,
        "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) 20260901",
        "898082745236",
    ),
]


def _machine_images(folder: Path) -> Path:
    path = folder / "machine_images.json"
    images = [
        {
            "ami_id": ami,
            "name": name,
            "owner_id": owner,
            "creation_date": "2026-09-01T00:00:00.000Z",
            "description": name,
            "image_location": f"amazon/{name}",
            "architecture": "x86_64",
            "public": True,
            "root_device_name": "/dev/sda1",
            "root_device_type": "ebs",
            "state": "available",
            "virtualization_type": "hvm",
            "hypervisor": "xen",
            "image_type": "machine",
            "platform": None,
            "sriov": "simple",
        }
        for ami, name, owner in _MACHINE_IMAGES
    ]
    path.write_text(json.dumps(images))
    return path


def main(port: str, folder: Path) -> None:
    """Serve for ever."""
    os.environ["MOTO_AMIS_PATH"] = str(_machine_images(folder))  # moto reads it when it is imported
    from moto import server
    from moto.core.responses import ActionResult
    from moto.core.types import Base64EncodedString
    from moto.ec2.exceptions import EC2ClientError
    from moto.ec2.models import EC2Backend
    from moto.ec2.models.instances import Instance
    from moto.ec2.responses import EC2Response

    terminate, run = Instance.terminate, EC2Backend.run_instances

    def terminate_once(self: Instance) -> Any:
        return self._state if self._state.name == "terminated" else terminate(self)

    def run_unless_refused(self: EC2Backend, *args: Any, **kwargs: Any) -> Any:
        refusals = folder / "refusals.json"
        code = json.loads(refusals.read_text()).get(kwargs["instance_type"]) if refusals.exists() else None
        if code is not None:
            raise EC2ClientError(code, f"no {kwargs['instance_type']} for you: {code}")
        return run(self, *args, **kwargs)

    def console(self: EC2Response) -> ActionResult:
        instance = self._get_param("InstanceId")
        log = folder / instance / "console.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        return ActionResult({"InstanceId": instance, "Output": Base64EncodedString.from_raw_string(text)})

    Instance.terminate = terminate_once
    EC2Backend.run_instances = run_unless_refused
    EC2Response.get_console_output = console
    server.main(["-p", port])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
