#!/usr/bin/env bash
# Fetches a binding's credentials with curl and jq. BINDING names the file with the credentials object of the bind.
# Nothing secret is an argument of a program: everybody on the machine can read those.
set -euo pipefail

field() { jq -er "$1" "$BINDING"; }
ask() { curl --silent --show-error --fail-with-body --max-time 15 "$@"; }

vault=$(field .vault.address)
namespace=$(jq -r '.vault.namespace // "" | if . == "" then "X-None: " else "X-Vault-Namespace: \(.)" end' "$BINDING")

# 1. Keycloak: whose binding this is.
jwt=$(field '@uri "grant_type=client_credentials&client_id=\(.keycloak.client_id)&client_secret=\(.keycloak.client_secret)"' |
  ask --data @- "$(field .keycloak.token_uri)" | jq -er .access_token)

# 2. Vault: a token for this binding's secret alone.
token=$(jq -R --arg role "$(field .vault.role)" '{role: $role, jwt: .}' <<<"$jwt" |
  ask --header "$namespace" --data @- "$vault/v1/auth/$(field .vault.auth_path)/login" | jq -er .auth.client_token)

# 3. The secret.
secret=$(ask --header "$namespace" --header @- "$vault/$(field .vault.data_path)" <<<"X-Vault-Token: $token")

jq -r '.data | "\(.data.type) at \(.data.host):\(.data.port) as \(.data.username), version \(.metadata.version)"' <<<"$secret"
