// Fetches a binding's credentials with nothing but Node's own fetch.
// BINDING names the file with the credentials object of the bind.
import { readFile } from 'node:fs/promises';

async function ask(url, options) {
  const answer = await fetch(url, { redirect: 'error', signal: AbortSignal.timeout(15_000), ...options });
  if (!answer.ok) throw new Error(`${new URL(url).origin} answered ${answer.status}`);
  return answer.json();
}

/** The secret with its metadata: { data, metadata: { version } }. */
export async function fetchBinding({ keycloak, vault }) {
  const headers = vault.namespace ? { 'X-Vault-Namespace': vault.namespace } : {};

  // 1. Keycloak: whose binding this is.
  const body = new URLSearchParams({
    grant_type: 'client_credentials',
    client_id: keycloak.client_id,
    client_secret: keycloak.client_secret,
  });
  const { access_token: jwt } = await ask(keycloak.token_uri, { method: 'POST', body });

  // 2. Vault: a token for this binding's secret alone.
  const login = { method: 'POST', headers, body: JSON.stringify({ role: vault.role, jwt }) };
  const { auth } = await ask(`${vault.address}/v1/auth/${vault.auth_path}/login`, login);

  // 3. The secret.
  headers['X-Vault-Token'] = auth.client_token;
  return (await ask(`${vault.address}/${vault.data_path}`, { headers })).data;
}

const binding = JSON.parse(await readFile(process.env.BINDING, 'utf8'));
const { data, metadata } = await fetchBinding(binding);
console.log(`${data.type} at ${data.host}:${data.port} as ${data.username}, version ${metadata.version}`);
