{{/* Names and labels. At most 40 characters are ours, so that no suffix passes 63. */}}
{{- define "streamserve.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "streamserve.fullname" -}}
{{- $name := include "streamserve.name" . -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $name .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{/* Call with (dict "root" $ "component" "operator"). A selector never changes, the rest may. */}}
{{- define "streamserve.selector" -}}
app.kubernetes.io/name: "{{ include "streamserve.name" .root }}"
app.kubernetes.io/instance: "{{ .root.Release.Name }}"
app.kubernetes.io/component: "{{ .component }}"
{{- end }}

{{/* Of pods: no versions, or each chart would replace them. */}}
{{- define "streamserve.podLabels" -}}
{{ include "streamserve.selector" . }}
app.kubernetes.io/part-of: streamserve
{{- end }}

{{- define "streamserve.labels" -}}
{{ include "streamserve.podLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: "{{ .root.Release.Service }}"
helm.sh/chart: "{{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}"
{{- end }}

{{- define "streamserve.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (printf "%s-operator" (include "streamserve.fullname" .)) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end }}

{{- define "streamserve.operatorSecret" -}}
{{ .Values.credentials.operatorSecretName | default (printf "%s-operator" (include "streamserve.fullname" .)) }}
{{- end }}

{{/* cert-manager's issuer, empty for none; values that an older chart has left know of none. */}}
{{- define "streamserve.issuer" -}}
{{ dig "certManager" "issuer" "name" "" .Values.tls }}
{{- end }}

{{/* The Secrets with ca.crt, tls.crt and tls.key: the same ones as for passwords, or those that cert-manager fills. */}}
{{- define "streamserve.operatorTlsSecret" -}}
{{ include "streamserve.operatorSecret" . }}{{ if include "streamserve.issuer" . }}-tls{{ end }}
{{- end }}

{{- define "streamserve.redisTlsSecret" -}}
{{ include "streamserve.fullname" . }}-redis{{ if include "streamserve.issuer" . }}-tls{{ end }}
{{- end }}

{{/* Every Secret of the release's own namespace that is made here or by cert-manager, as JSON; some only with TLS. */}}
{{- define "streamserve.secretNames" -}}
{{- $fullname := include "streamserve.fullname" . -}}
{{- $names := list (include "streamserve.operatorSecret" .) -}}
{{- range list "ca" "redis" "redis-users" }}{{ $names = append $names (printf "%s-%s" $fullname .) }}{{ end -}}
{{- $pods := has .Release.Namespace (include "streamserve.namespaces" . | fromJsonArray) -}}
{{- if $pods }}{{ $names = concat $names (list .Values.credentials.secretName) -}}
{{- range list "client" "tokens" }}{{ $names = append $names (printf "%s-%s" $.Values.credentials.secretName .) }}{{ end -}}
{{- end -}}
{{- if include "streamserve.issuer" . -}}
{{- $names = append $names (include "streamserve.operatorTlsSecret" .) -}}
{{- $names = append $names (include "streamserve.redisTlsSecret" .) -}}
{{- if $pods -}}
{{- range list "tls" "client-tls" }}{{ $names = append $names (printf "%s-%s" $.Values.credentials.secretName .) }}{{ end -}}
{{- end -}}
{{- end -}}
{{ toJson $names }}
{{- end }}

{{/* Where StreamPairs live, as JSON: `namespaces`, or the release's own. */}}
{{- define "streamserve.namespaces" -}}
{{ .Values.namespaces | default (list .Release.Namespace) | uniq | sortAlpha | toJson }}
{{- end }}

{{/*
Call with (dict "root" $ "image" .Values.image.router), and "registry" for one that is not of image.registry. A digest wins
over a tag; no tag is the chart's own.
*/}}
{{- define "streamserve.image" -}}
{{- $name := .image.repository -}}
{{- with hasKey . "registry" | ternary .registry .root.Values.image.registry }}{{ $name = printf "%s/%s" (trimSuffix "/" .) $name }}{{ end -}}
{{- if .image.digest -}}
{{ printf "%s@%s" $name .image.digest }}
{{- else -}}
{{ printf "%s:%s" $name (.image.tag | default .root.Chart.AppVersion) }}
{{- end -}}
{{- end }}

{{- define "streamserve.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: "{{ . }}"
  {{- end }}
{{- end }}
{{- end }}

{{/* Restricted Pod Security, and a read-only root file system beyond it: as the operator's own pods have it. */}}
{{- define "streamserve.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "streamserve.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "streamserve.redisHost" -}}
{{ include "streamserve.fullname" . }}-redis.{{ .Release.Namespace }}.svc
{{- end }}

{{/* What no schema can say. Each message names the value and what to do. */}}
{{- define "streamserve.validate" -}}
{{- $ext := .Values.redis.external -}}
{{- if eq (include "streamserve.operatorSecret" .) .Values.credentials.secretName -}}
{{- fail "credentials.operatorSecretName and credentials.secretName are one: give the operator's another name, for the pods of StreamPairs may read theirs." -}}
{{- end -}}
{{- if .Values.credentials.create -}}
{{- $seen := dict -}}
{{- range include "streamserve.secretNames" . | fromJsonArray -}}
{{- if hasKey $seen . -}}
{{- fail (printf "credentials.operatorSecretName and credentials.secretName make two Secrets called %s: give one of them another name." .) -}}
{{- end -}}
{{- $_ := set $seen . true -}}
{{- end -}}
{{- end -}}
{{- if include "streamserve.issuer" . -}}
{{- if not .Values.tls.enabled -}}
{{- fail "tls.certManager.issuer.name is given and tls.enabled is false: turn TLS on, or take the issuer out." -}}
{{- end -}}
{{- if not (.Capabilities.APIVersions.Has "cert-manager.io/v1") -}}
{{- fail "tls.certManager.issuer.name is given and this cluster does not serve cert-manager.io/v1: install cert-manager first (with helm template, add --api-versions cert-manager.io/v1), or take the issuer out and the chart makes the certificates." -}}
{{- end -}}
{{- end -}}
{{- $signs := and .Values.credentials.create .Values.tls.enabled (not (include "streamserve.issuer" .)) -}}
{{- if and $signs (lt (int .Values.tls.authorityDays) (int .Values.tls.certificateDays)) -}}
{{- fail (printf "tls.authorityDays is %d, below tls.certificateDays, %d: no certificate is good for longer than its authority, which nobody renews. Give it at least as many days." (int .Values.tls.authorityDays) (int .Values.tls.certificateDays)) -}}
{{- end -}}
{{- if and (eq .Values.redis.mode "Embedded") (not .Values.credentials.create) -}}
{{- fail "redis.mode: Embedded needs credentials.create: true, for its users' passwords are made with the other Secrets. With Secrets of your own, set redis.mode: External." -}}
{{- end -}}
{{- if and (eq .Values.redis.mode "External") .Values.credentials.create -}}
{{- range $name := list "operatorUrl" "workerUrl" "routerUrl" -}}
{{- if not (index $ext $name) -}}
{{- fail (printf "redis.external.%s is empty: give redis://user:password@host:6379/0 (rediss:// for TLS), or set credentials.create: false and bring the Secrets yourself." $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
