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

{{/* Flags of the readiness bus; argument: a dict of root and of user, the values of the part's Kafka user. */}}
{{- define "drover.kafkaArgs" -}}
{{- $kafka := .root.Values.kafka -}}
{{- if $kafka.enabled }}
- --kafka-brokers={{ required "kafka.bootstrapServers must name the brokers" $kafka.bootstrapServers }}
{{- if $kafka.clusterCASecret }}
- --kafka-ca=/etc/drover/kafka/cluster-ca/ca.crt
{{- end }}
{{- if eq $kafka.authentication "tls" }}
- --kafka-client-certs=/etc/drover/kafka/user
{{- else if eq $kafka.authentication "scram-sha-512" }}
- --kafka-sasl-mechanism=SCRAM-SHA-512
- --kafka-username={{ .user.username | default .user.userSecret }}
- --kafka-password-file=/etc/drover/kafka/user/password
{{- end }}
- --kafka-group={{ $kafka.group }}
- --kafka-registry-topic={{ $kafka.topics.registry }}
- --kafka-dead-letter-topic={{ $kafka.topics.deadLetters }}
- --kafka-migrations-topic={{ $kafka.topics.migrations }}
- --kafka-least-replicas={{ $kafka.leastReplicas }}
{{- range $key, $value := $kafka.options }}
- {{ printf "--kafka-option=%s=%v" $key $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Its mounts. */}}
{{- define "drover.kafkaMounts" -}}
{{- $kafka := .root.Values.kafka -}}
{{- if and $kafka.enabled $kafka.clusterCASecret }}
- {name: kafka-cluster-ca, mountPath: /etc/drover/kafka/cluster-ca, readOnly: true}
{{- end }}
{{- if and $kafka.enabled (ne $kafka.authentication "none") }}
- {name: kafka-user, mountPath: /etc/drover/kafka/user, readOnly: true}
{{- end }}
{{- end }}

{{/* Its volumes. */}}
{{- define "drover.kafkaVolumes" -}}
{{- $kafka := .root.Values.kafka -}}
{{- if and $kafka.enabled $kafka.clusterCASecret }}
- name: kafka-cluster-ca
  secret: {secretName: {{ $kafka.clusterCASecret | quote }}, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}
{{- if and $kafka.enabled (ne $kafka.authentication "none") }}
- name: kafka-user
  secret: {secretName: {{ required "kafka.manager.userSecret and kafka.agent.userSecret must name the Secrets of two Kafka users" .user.userSecret | quote }}}
{{- end }}
{{- end }}
