{{/* Labels of every object; argument: a dict of root and component. */}}
{{- define "drover.labels" -}}
{{ include "drover.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: drover
{{- end }}

{{- define "drover.selector" -}}
app.kubernetes.io/name: drover
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Drover's own image. */}}
{{- define "drover.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}{{ else }}{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* User names of the two service accounts, as the API server tells them to policies. */}}
{{- define "drover.managerUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:drover-manager
{{- end }}
{{- define "drover.agentUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:drover-agent
{{- end }}

{{/* The node's registry. No port: only the agent reaches the socket. No descriptor cache: it would go on answering for blobs that the
agent has removed. No upload purging: the agent collects. http.secret comes from the environment. */}}
{{- define "drover.registryConfig" -}}
version: 0.1
log:
  level: warn
  accesslog: {disabled: true}
storage:
  filesystem: {rootdirectory: /var/lib/drover/registry}
  delete: {enabled: true}
  maintenance:
    uploadpurging: {enabled: false}
http:
  net: unix
  addr: /run/drover/registry.sock
  relativeurls: true
{{- end }}
