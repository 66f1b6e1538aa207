"""How a machine on Azure does away with itself. Pure.

One that shuts down is only stopped, and bills as before. A machine that has an identity which may delete it asks for
that; any other is ended by the next client that looks, or by `burla cluster gc`.
"""

from __future__ import annotations

_SERVER = "http://169.254.169.254/metadata"
_API = "https://management.azure.com"
_PROGRAM = """\
python3 - <<'END'
import json
from urllib.request import Request, urlopen

def ask(what):
    return urlopen(Request("{server}/" + what, headers={{"Metadata": "true"}}), timeout=10).read().decode()

try:
    wanted = "identity/oauth2/token?api-version=2018-02-01&resource={api}/"
    token = json.loads(ask(wanted))["access_token"]
    machine = ask("instance/compute/resourceId?api-version=2021-02-01&format=text")
    url = "{api}" + machine + "?api-version=2024-07-01"
    print("burla: asking for the end of this machine", flush=True)
    urlopen(Request(url, method="DELETE", headers={{"Authorization": "Bearer " + token}}), timeout=30)
except OSError as error:
    print("burla: this machine is stopped only, and goes on billing:", error, flush=True)
END"""


def leaving(server: str = _SERVER, api: str = _API) -> str:
    """Return shell commands that delete the machine, with its disk."""
    return _PROGRAM.format(server=server, api=api)
