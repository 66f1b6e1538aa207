"""How a machine of Compute Engine does away with itself. Pure.

One that shuts down is only stopped: its disk stays, and bills. A machine that has an identity which may delete it
(compute.instances.delete) asks for that; any other is ended by the next client that looks, or by `burla cluster gc`.
"""

from __future__ import annotations

_SERVER = "http://169.254.169.254/computeMetadata/v1"
_PROGRAM = """\
python3 - <<'END'
import json
from urllib.request import Request, urlopen

def ask(what):
    request = Request("{server}/" + what, headers={{"Metadata-Flavor": "Google"}})
    return urlopen(request, timeout=10).read().decode()

try:
    token = json.loads(ask("instance/service-accounts/default/token"))["access_token"]
    zone, name = ask("instance/zone").rpartition("/")[2], ask("instance/name")
    url = "{endpoint}projects/" + ask("project/project-id") + "/zones/" + zone + "/instances/" + name
    print("burla: asking for the end of this machine", flush=True)
    urlopen(Request(url, method="DELETE", headers={{"Authorization": "Bearer " + token}}), timeout=30)
except OSError as error:
    print("burla: this machine is stopped only, and its disk stays:", error, flush=True)
END"""


def leaving(endpoint: str) -> str:
    """Return shell commands that delete the machine. `endpoint`: the URL of Compute Engine's API."""
    return _PROGRAM.format(server=_SERVER, endpoint=endpoint)
