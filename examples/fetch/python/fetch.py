"""Fetches a binding's credentials with nothing but Python's own library.

BINDING names the file with the credentials object of the bind.
"""

import base64
import json
import os
import urllib.parse
import urllib.request


def ask(url, data=None, headers=None):
    request = urllib.request.Request(url, data=data, headers=headers or {})
    with urllib.request.urlopen(request, timeout=15) as answer:
        return json.load(answer)


def fetch(binding):
    """Returns the secret with its metadata: {"data": …, "metadata": {"version": …}}."""
    keycloak, vault = binding["keycloak"], binding["vault"]
    headers = {"X-Vault-Namespace": vault["namespace"]} if "namespace" in vault else {}

    # 1. Keycloak: whose binding this is.
    login = ":".join(urllib.parse.quote(keycloak[part], safe="") for part in ("client_id", "client_secret"))
    basic = base64.b64encode(login.encode()).decode()
    token = ask(keycloak["token_uri"], b"grant_type=client_credentials", {"Authorization": f"Basic {basic}"})

    # 2. Vault: a token for this binding's secret alone.
    login = json.dumps({"role": vault["role"], "jwt": token["access_token"]}).encode()
    session = ask(f"{vault['address']}/v1/auth/{vault['auth_path']}/login", login, headers)

    # 3. The secret.
    headers["X-Vault-Token"] = session["auth"]["client_token"]
    return ask(f"{vault['address']}/{vault['data_path']}", headers=headers)["data"]


if __name__ == "__main__":
    with open(os.environ["BINDING"]) as file:
        secret = fetch(json.load(file))
    data, version = secret["data"], secret["metadata"]["version"]
    print(f"{data['type']} at {data['host']}:{data['port']} as {data['username']}, version {version}")
