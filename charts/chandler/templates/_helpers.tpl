{{/* The chart's name, in labels. */}}
{{- define "chandler.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The name of everything this release makes; 52 characters, so that suffixes fit. */}}
{{- define "chandler.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains (include "chandler.name" .) .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "chandler.name" .) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the broker's pods: never change them, a Deployment's selector cannot be changed. */}}
{{- define "chandler.selector" -}}
app.kubernetes.io/name: {{ include "chandler.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: broker
{{- end -}}

{{- define "chandler.labels" -}}
{{ include "chandler.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "chandler.account" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "chandler.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "chandler.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "chandler.port" -}}
{{- if .Values.service.port -}}
{{ int .Values.service.port }}
{{- else if .Values.tls.existingSecret -}}
443
{{- else -}}
80
{{- end -}}
{{- end -}}

{{/* The name under which the broker answers, and which its certificate must have. */}}
{{- define "chandler.host" -}}
{{- default (printf "%s.%s.svc" (include "chandler.fullname" .) .Release.Namespace) .Values.tls.serverName -}}
{{- end -}}

{{- define "chandler.url" -}}
{{- if .Values.tls.existingSecret -}}
https://{{ include "chandler.host" . }}{{ if ne (include "chandler.port" .) "443" }}:{{ include "chandler.port" . }}{{ end }}
{{- else -}}
http://{{ include "chandler.host" . }}{{ if ne (include "chandler.port" .) "80" }}:{{ include "chandler.port" . }}{{ end }}
{{- end -}}
{{- end -}}

{{/* What a container may not do; the pod's part is podSecurityContext. */}}
{{- define "chandler.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* The port in an address: what it names, else its scheme's own. */}}
{{- define "chandler.portOf" -}}
{{- $host := index (splitList "/" (last (splitList "://" .))) 0 -}}
{{- $port := regexFind ":[0-9]+$" $host | trimPrefix ":" -}}
{{- default (ternary "80" "443" (hasPrefix "http://" .)) $port -}}
{{- end -}}

{{/* What the schema cannot say, all of it at once. */}}
{{- define "chandler.check" -}}
{{- $wrong := list -}}
{{- if not .Values.image.repository -}}
{{- $wrong = append $wrong "image.repository must be given: the image that scripts/image.sh makes, in a registry that the nodes can pull from" -}}
{{- end -}}
{{- if and .Values.tls.existingSecret .Values.tls.endedByProxy -}}
{{- $wrong = append $wrong "tls.existingSecret and tls.endedByProxy exclude each other: either the broker ends TLS or a proxy does" -}}
{{- else if not (or .Values.tls.existingSecret .Values.tls.endedByProxy) -}}
{{- $wrong = append $wrong "tls.existingSecret must be given (a Secret of the type kubernetes.io/tls), or tls.endedByProxy: true when a proxy in front ends TLS: passwords and credentials cross this connection" -}}
{{- end -}}
{{- if and (not .Values.platforms) (not .Values.config.platforms) -}}
{{- $wrong = append $wrong "platforms must hold at least one platform with its log-in, otherwise nobody can use the broker" -}}
{{- end -}}
{{- if and (not .Values.sealKeys.keys) (not (dig "secrets" "keys" list .Values.config)) -}}
{{- $wrong = append $wrong "sealKeys.keys must hold at least one key: `chandler secrets new-key FILE` makes one, `kubectl create secret generic NAME --from-file=LABEL=FILE` keeps it" -}}
{{- end -}}
{{- if and (gt (len .Values.sealKeys.keys) 1) (not .Values.sealKeys.primary) -}}
{{- $wrong = append $wrong "sealKeys.primary must be given when there are several keys: the label of the one that seals new secrets" -}}
{{- end -}}
{{- if and (eq .Values.store.kind "sqlite") (ne (int .Values.replicas) 1) -}}
{{- $wrong = append $wrong (printf "store.kind sqlite is a file that one broker owns, so replicas must be 1, not %d; for more brokers set store.kind: postgres" (int .Values.replicas)) -}}
{{- end -}}
{{- if eq .Values.store.kind "postgres" -}}
{{- if not .Values.store.postgres.host -}}
{{- $wrong = append $wrong "store.postgres.host must be given for store.kind postgres" -}}
{{- end -}}
{{- if not .Values.store.postgres.existingSecret -}}
{{- $wrong = append $wrong "store.postgres.existingSecret must be given for store.kind postgres: the Secret with the database's password" -}}
{{- end -}}
{{- end -}}
{{- with .Values.vault -}}
{{- if ne (not .address) (not $.Values.keycloak.url) -}}
{{- $wrong = append $wrong "vault.address and keycloak.url belong together: applications log in to the vault with their client's token; set both or neither" -}}
{{- end -}}
{{- if and .address (ne .login.kind "kubernetes") (not .login.existingSecret) -}}
{{- $wrong = append $wrong (printf "vault.login.existingSecret must be given for vault.login.kind %s: the Secret with what the broker logs in by" .login.kind) -}}
{{- end -}}
{{- if and (eq .login.kind "kubernetes") .login.existingSecret -}}
{{- $wrong = append $wrong "vault.login.existingSecret is only for vault.login.kind approle and token; the log-in kubernetes takes a token of the service account" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.keycloak.url (not .Values.keycloak.existingSecret) -}}
{{- $wrong = append $wrong "keycloak.existingSecret must be given: the Secret with what the broker's client logs in by (`chandler bootstrap keycloak --apply` makes the file)" -}}
{{- end -}}
{{- if and (eq .Values.tenancy.mode "shared") (not .Values.tenancy.namespace) -}}
{{- $wrong = append $wrong "tenancy.namespace must be given for tenancy.mode shared: the namespace that all instances live in" -}}
{{- end -}}
{{- if and (eq .Values.tenancy.mode "instance") .Values.tenancy.namespace -}}
{{- $wrong = append $wrong "tenancy.namespace is only for tenancy.mode shared; leave it out, or set tenancy.mode: shared" -}}
{{- end -}}
{{- if and (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) -}}
{{- $wrong = append $wrong "serviceAccount.name must be given when serviceAccount.create is false" -}}
{{- end -}}
{{- if and .Values.rbac.create (ne (dig "provisioner" "kubernetes" "transport" "direct" .Values.config) "direct") -}}
{{- $wrong = append $wrong "config.provisioner.kubernetes.transport: the chart gives the rights of `direct` alone; leave it out, or set rbac.create: false and apply what `chandler rbac` prints" -}}
{{- end -}}
{{- if $wrong -}}
{{- fail (printf "\n\nThe chart cannot be installed like this:\n  - %s\n" (join "\n  - " $wrong)) -}}
{{- end -}}
{{- end -}}

{{/*
The broker's configuration. Paths are relative to its file, /etc/chandler/chandler.yaml, except those that other programs
than the broker look at; the volume of the Deployment puts the files there.
*/}}
{{- define "chandler.config" -}}
{{- $http := dict "listen" "0.0.0.0:8080" "admin_listen" "0.0.0.0:8081" -}}
{{- if .Values.tls.existingSecret -}}
{{- $_ := set $http "tls" (dict "cert_file" "secrets/tls/tls.crt" "key_file" "secrets/tls/tls.key") -}}
{{- else -}}
{{- $_ := set $http "allow_plaintext" true -}}
{{- end -}}
{{- $store := dict "url" "sqlite:///var/lib/chandler/chandler.db" -}}
{{- if eq .Values.store.kind "postgres" -}}
{{- with .Values.store.postgres -}}
{{- $url := printf "postgres://%s@%s:%d/%s?sslmode=%s" .user .host (int .port) .database .sslmode -}}
{{- if .caSecret -}}
{{- $url = printf "%s&sslrootcert=/etc/chandler/secrets/database/ca.crt" $url -}}
{{- end -}}
{{- $store = dict "url" $url "password_file" "secrets/database/password" -}}
{{- end -}}
{{- end -}}
{{- $catalog := dict "builtin" .Values.catalog.builtin -}}
{{- if .Values.catalog.configMaps -}}
{{- $_ := set $catalog "dirs" (list "catalog.d") -}}
{{- end -}}
{{- $kubernetes := dict "broker_namespace" .Release.Namespace "tenancy" .Values.tenancy.mode "transport" "direct" -}}
{{- with .Values.tenancy.namespace -}}
{{- $_ := set $kubernetes "namespace" . -}}
{{- end -}}
{{- with .Values.monitoring.namespace -}}
{{- $_ := set $kubernetes "monitoring_namespace" . -}}
{{- end -}}
{{- $keys := list -}}
{{- range .Values.sealKeys.keys -}}
{{- $keys = append $keys (dict "label" .label "file" (printf "secrets/seal/%s" .label)) -}}
{{- end -}}
{{- $secrets := dict "keys" $keys -}}
{{- with .Values.sealKeys.primary -}}
{{- $_ := set $secrets "primary" . -}}
{{- end -}}
{{- $platforms := list -}}
{{- range $platform := .Values.platforms -}}
{{- $logins := list -}}
{{- range .credentials -}}
{{- $file := printf "secrets/platforms/%s/%s" $platform.name .key -}}
{{- $logins = append $logins (dict "username" .username (ternary "password_hash_file" "password_file" (default false .hashed)) $file) -}}
{{- end -}}
{{- $platforms = append $platforms (dict "name" .name "credentials" $logins) -}}
{{- end -}}
{{- $own := dict "http" $http "store" $store "catalog" $catalog "secrets" $secrets "platforms" $platforms
      "provisioner" (dict "kind" "kubernetes" "kubernetes" $kubernetes) -}}
{{- with .Values.vault -}}
{{- if .address -}}
{{- $login := dict "kind" .login.kind -}}
{{- if eq .login.kind "approle" -}}
{{- $_ := set $login "role_id_file" "secrets/vault/role-id" -}}
{{- $_ := set $login "secret_id_file" "secrets/vault/secret-id" -}}
{{- else -}}
{{- $_ := set $login "token_file" "secrets/vault/token" -}}
{{- end -}}
{{- $vault := dict "address" .address "login" $login -}}
{{- if .caSecret -}}
{{- $_ := set $vault "ca_file" "secrets/vault/ca.crt" -}}
{{- end -}}
{{- $_ := set $own "vault" $vault -}}
{{- end -}}
{{- end -}}
{{- with .Values.keycloak -}}
{{- if .url -}}
{{- $keycloak := dict "url" .url -}}
{{- if .privateKeyKey -}}
{{- $_ := set $keycloak "private_key_file" "secrets/keycloak/private-key" -}}
{{- else -}}
{{- $_ := set $keycloak "client_secret_file" "secrets/keycloak/client-secret" -}}
{{- end -}}
{{- if .caSecret -}}
{{- $_ := set $keycloak "ca_file" "secrets/keycloak/ca.crt" -}}
{{- end -}}
{{- $_ := set $own "keycloak" $keycloak -}}
{{- end -}}
{{- end -}}
{{- toYaml (mustMergeOverwrite $own (deepCopy .Values.config)) -}}
{{- end -}}

{{/* Sources of the projected volume at /etc/chandler: the configuration, and every secret it names. */}}
{{- define "chandler.files" -}}
- configMap:
    name: {{ include "chandler.fullname" . }}
    items: [{key: chandler.yaml, path: chandler.yaml}]
{{- range .Values.sealKeys.keys }}
- secret:
    name: {{ .existingSecret }}
    items: [{key: {{ .key | quote }}, path: {{ printf "secrets/seal/%s" .label | quote }}}]
{{- end }}
{{- range $platform := .Values.platforms }}
- secret:
    name: {{ .existingSecret }}
    items:
      {{- range .credentials }}
      - {key: {{ .key | quote }}, path: {{ printf "secrets/platforms/%s/%s" $platform.name .key | quote }}}
      {{- end }}
{{- end }}
{{- with .Values.tls.existingSecret }}
- secret:
    name: {{ . }}
    items: [{key: tls.crt, path: secrets/tls/tls.crt}, {key: tls.key, path: secrets/tls/tls.key}]
{{- end }}
{{- if eq .Values.store.kind "postgres" }}
{{- with .Values.store.postgres }}
- secret:
    name: {{ .existingSecret }}
    items: [{key: {{ .passwordKey | quote }}, path: secrets/database/password}]
{{- if .caSecret }}
- secret:
    name: {{ .caSecret }}
    items: [{key: {{ .caKey | quote }}, path: secrets/database/ca.crt}]
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.vault }}
{{- if .address }}
{{- if eq .login.kind "kubernetes" }}
- serviceAccountToken: {audience: {{ .login.audience | quote }}, expirationSeconds: {{ int .login.tokenSeconds }}, path: secrets/vault/token}
{{- else if eq .login.kind "approle" }}
- secret:
    name: {{ .login.existingSecret }}
    items:
      - {key: {{ .login.roleIdKey | quote }}, path: secrets/vault/role-id}
      - {key: {{ .login.secretIdKey | quote }}, path: secrets/vault/secret-id}
{{- else }}
- secret:
    name: {{ .login.existingSecret }}
    items: [{key: {{ .login.tokenKey | quote }}, path: secrets/vault/token}]
{{- end }}
{{- if .caSecret }}
- secret:
    name: {{ .caSecret }}
    items: [{key: {{ .caKey | quote }}, path: secrets/vault/ca.crt}]
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.keycloak }}
{{- if .url }}
- secret:
    name: {{ .existingSecret }}
    items:
      {{- if .privateKeyKey }}
      - {key: {{ .privateKeyKey | quote }}, path: secrets/keycloak/private-key}
      {{- else }}
      - {key: {{ .clientSecretKey | quote }}, path: secrets/keycloak/client-secret}
      {{- end }}
{{- if .caSecret }}
- secret:
    name: {{ .caSecret }}
    items: [{key: {{ .caKey | quote }}, path: secrets/keycloak/ca.crt}]
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
