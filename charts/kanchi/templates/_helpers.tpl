{{- define "kanchi.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Prefix of every name: the release's name where it holds the chart's already. */}}
{{- define "kanchi.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := include "kanchi.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "kanchi.operator" -}}
{{ include "kanchi.fullname" . }}-operator
{{- end }}

{{- define "kanchi.postgres" -}}
{{ include "kanchi.fullname" . }}-postgres
{{- end }}

{{- define "kanchi.serviceAccount" -}}
{{- .Values.operator.serviceAccount.name | default (include "kanchi.operator" .) }}
{{- end }}

{{- define "kanchi.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: kanchi
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Never a version in a selector: it could not be changed. */}}
{{- define "kanchi.operator.selector" -}}
app.kubernetes.io/name: kanchi-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "kanchi.postgres.selector" -}}
app.kubernetes.io/name: kanchi-postgres
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: postgres
{{- end }}

{{/* Takes a dict of image and default (a tag). */}}
{{- define "kanchi.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .default }}
{{- end }}
{{- end }}

{{/* Name of the Secret with the store's URL. */}}
{{- define "kanchi.storeSecret" -}}
{{- if .Values.store.evaluation.enabled -}}
{{ .Values.store.evaluation.existingSecret | default (include "kanchi.postgres" .) }}
{{- else -}}
{{ required "store.urlSecretRef.name must name the Secret with the URL of Postgres (or set store.evaluation.enabled to try Kanchi without one)" .Values.store.urlSecretRef.name }}
{{- end }}
{{- end }}

{{/* What Pod Security "restricted" asks of a container, and a read-only root file system. */}}
{{- define "kanchi.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}
