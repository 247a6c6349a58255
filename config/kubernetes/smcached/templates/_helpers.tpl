{{/* The name of everything: the release's. */}}
{{- define "smcached.name" -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "smcached.selector" -}}
app.kubernetes.io/name: smcached
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "smcached.labels" -}}
{{ include "smcached.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "smcached.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary (include "smcached.name" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{/* The sockets of the DaemonSet, and files beside them. What JSON quotes is quoted in TOML, too. */}}
{{- define "smcached.listeners" -}}
{{- range $tenant := .Values.tenants }}
[[listener]]
unix = "/run/smcached/ns/{{ $tenant.name }}/smcached.sock"
mode = {{ $.Values.socketMode | toJson }}
directory_mode = "0755"
allow_secrets = {{ $tenant.allowSecrets | toJson }}
{{- with $tenant.allowUids }}
allow_uids = [{{ range $index, $uid := . }}{{ if $index }}, {{ end }}{{ int64 $uid }}{{ end }}]
{{- end }}
{{- with $tenant.files }}

[[project]]
dir = "/run/smcached/ns/{{ $tenant.name }}/secrets"
layout = "flyte"
secrets = {{ . | toJson }}
{{- end }}
{{ else }}
[[listener]]
unix = "/run/smcached/smcached.sock"
mode = {{ .Values.socketMode | toJson }}
{{ end }}
{{- end }}

{{/* The daemon's container, in both forms. */}}
{{- define "smcached.container" -}}
name: smcached
image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: ["serve", "--config", "/etc/smcached/smcached.toml"]
{{- with .Values.env }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - name: ops
    containerPort: {{ .Values.ops.port }}
# Long enough for preload_timeout. In a sidecar, the program starts only when this has succeeded.
startupProbe:
  httpGet: {path: /readyz, port: ops}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /livez, port: ops}
  periodSeconds: 10
  timeoutSeconds: 3
# Ready while AWS is down: what is held is served.
readinessProbe:
  httpGet: {path: /readyz, port: ops}
  periodSeconds: 5
  timeoutSeconds: 3
securityContext:
  runAsNonRoot: true
  # The image's user. Nothing else should run as it: who has its user id can read its memory.
  runAsUser: 65532
  runAsGroup: 65532
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: ["ALL"]
resources:
  {{- toYaml .Values.resources | nindent 2 }}
volumeMounts:
  - name: sockets
    mountPath: /run/smcached
  {{- if eq .Values.mode "daemonset" }}
  - name: takeover
    mountPath: /run/smcached-takeover
  {{- end }}
  # The directory and not the file in it, so that changes arrive.
  - name: config
    mountPath: /etc/smcached
    readOnly: true
{{- end }}
