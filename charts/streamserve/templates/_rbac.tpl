{{/* What the operator may do where StreamPairs live. tests/chart/rbac.yaml is this table with its reasons. */}}
{{- define "streamserve.rules" -}}
- apiGroups: [streamserve.io]
  resources: [streampairs]
  verbs: [list, watch]
- apiGroups: [streamserve.io]
  resources: [streampairs/status, streampairscalers/status]
  verbs: [patch]
- apiGroups: [streamserve.io]
  resources: [streampairs/finalizers]
  verbs: [update]
- apiGroups: [streamserve.io]
  resources: [streampairscalers]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods, services, configmaps, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
{{- end }}

{{/* Whether the operator renews certificates; empty: it may not read a Secret then. */}}
{{- define "streamserve.renews" -}}
{{- if and .Values.tls.enabled .Values.tls.renew .Values.credentials.create (not (include "streamserve.issuer" .)) -}}true{{- end -}}
{{- end }}

{{/* The Secrets of a served namespace whose certificates are renewed, as JSON. Redis's lives as long as the authority. */}}
{{- define "streamserve.renewedSecrets" -}}
{{ list .Values.credentials.secretName (printf "%s-client" .Values.credentials.secretName) | toJson }}
{{- end }}
