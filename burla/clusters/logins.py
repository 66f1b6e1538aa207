"""How a machine gets container images from the private registry of its own cloud: with its own identity. Pure."""

from __future__ import annotations

import json
import re

from burla.clusters.boot import APT, HOME

_HOSTS = {
    "aws": re.compile(r"\d{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com(\.cn)?"),
    "gcp": re.compile(r"[a-z0-9-]+-docker\.pkg\.dev|([a-z]+\.)?gcr\.io"),
    "azure": re.compile(r"[a-z0-9-]+\.azurecr\.io"),
}
_GCP = """\
python3 - <<'END' | docker login --username oauth2accesstoken --password-stdin https://{host}
import json
from urllib.request import Request, urlopen

url = "http://169.254.169.254/computeMetadata/v1/instance/service-accounts/default/token"
print(json.load(urlopen(Request(url, headers={{"Metadata-Flavor": "Google"}}), timeout=10))["access_token"])
END"""
# https://github.com/Azure/acr/blob/main/docs/AAD-OAuth.md
_AZURE = """\
python3 - <<'END' | docker login --username 00000000-0000-0000-0000-000000000000 --password-stdin {host}
import json
from urllib.parse import urlencode
from urllib.request import Request, urlopen

api = "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource="
url = api + "https://management.azure.com/"
token = json.load(urlopen(Request(url, headers={{"Metadata": "true"}}), timeout=10))["access_token"]
form = {{"grant_type": "access_token", "service": "{host}", "access_token": token}}
answer = urlopen("https://{host}/oauth2/exchange", urlencode(form).encode(), timeout=30)
print(json.load(answer)["refresh_token"])
END"""


def is_private(cloud: str, image: str) -> bool:
    """Whether an image is in a registry of the cloud that asks who wants it."""
    return _HOSTS[cloud].fullmatch(_host(image)) is not None


def commands(cloud: str, image: str) -> str:
    """Return shell commands that let docker in there; empty: the image is elsewhere."""
    host = _host(image)
    if not is_private(cloud, image):
        return ""
    if cloud == "aws":
        helper = json.dumps({"credHelpers": {host: "ecr-login"}})
        install = f"{APT} update -q; {APT} install -qy amazon-ecr-credential-helper"
        return (
            f"command -v docker-credential-ecr-login >/dev/null || {{ {install}; }}\n"
            f"mkdir -p {HOME}/docker; echo '{helper}' > {HOME}/docker/config.json"
        )
    return (_GCP if cloud == "gcp" else _AZURE).format(host=host)


def _host(image: str) -> str:
    return image.partition("/")[0]
