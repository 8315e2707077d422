{{/*
Certificates and passwords survive an upgrade because they are read back from the cluster (`lookup`); where nothing is
found they are made anew. `helm template` and a server-side dry run have no cluster to read from: what they print is
made for that one print.
*/}}

{{/* An existing Secret's entries and annotations, or empty ones. Call with (dict "namespace" … "name" …). */}}
{{- define "streamserve.found" -}}
{{- $found := lookup "v1" "Secret" .namespace .name | default dict -}}
{{- $meta := $found.metadata | default dict -}}
{{ dict "data" ($found.data | default dict) "annotations" ($meta.annotations | default dict) | toJson }}
{{- end }}

{{/* The entry as it was, still in base64, or a new password. */}}
{{- define "streamserve.password" -}}
{{- $kept := index .found.data .key | default "" -}}
{{- if $kept }}{{ $kept | b64dec }}{{ else }}{{ randAlphaNum 32 }}{{ end -}}
{{- end }}

{{/*
A certificate of the authority, good for servers and clients: kept until a third of its life is left, its names change
or the authority does. Call with root, authority (Cert and Key), found, name, dns; returns crt, key, ends, names.
*/}}
{{- define "streamserve.certificate" -}}
{{- $days := .days | default .root.Values.tls.certificateDays | int -}}
{{- $format := "2006-01-02T15:04:05Z" -}}
{{- $names := printf "%s %s %s" .name (join " " .dns) (.authority.Cert | sha256sum) | sha256sum | trunc 16 -}}
{{- $ends := index .found.annotations "streamserve.io/certificate-ends" | default "" -}}
{{- $left := 0 -}}
{{- if $ends -}}
{{- $left = sub (toDate $format $ends).Unix now.Unix | int -}}
{{- end -}}
{{- $same := eq (index .found.annotations "streamserve.io/certificate-names" | default "") $names -}}
{{- $crt := index .found.data "tls.crt" | default "" -}}
{{- $key := index .found.data "tls.key" | default "" -}}
{{- if and $crt $key $same (gt $left (div (mul $days 86400) 3 | int)) -}}
{{ dict "crt" $crt "key" $key "ends" $ends "names" $names | toJson }}
{{- else -}}
{{- $made := genSignedCertWithKey .name (list "127.0.0.1") .dns $days .authority (genPrivateKey "ecdsa") -}}
{{- $new := dateInZone $format (now | dateModify (printf "%dh" (mul $days 24))) "UTC" -}}
{{ dict "crt" ($made.Cert | b64enc) "key" ($made.Key | b64enc) "ends" $new "names" $names | toJson }}
{{- end -}}
{{- end }}

{{/* What every pod's certificate is called: pods are dialled by an address, which no certificate can hold. */}}
{{- define "streamserve.peerName" -}}
pod.streamserve
{{- end }}

{{/* The names in each certificate, as JSON. */}}
{{- define "streamserve.operatorNames" -}}
{{ list (printf "%s-operator.%s.svc" (include "streamserve.fullname" .) .Release.Namespace) "localhost" | toJson }}
{{- end }}

{{- define "streamserve.redisNames" -}}
{{- $host := include "streamserve.redisHost" . -}}
{{ list $host (printf "%s.%s" $host .Values.clusterDomain) (printf "%s-redis" (include "streamserve.fullname" .)) "localhost" | toJson }}
{{- end }}

{{/* Call with root, namespace. */}}
{{- define "streamserve.podNames" -}}
{{ list (include "streamserve.peerName" .root) (printf "*.%s.svc" .namespace) (printf "*.%s.svc.%s" .namespace .root.Values.clusterDomain) "localhost" | toJson }}
{{- end }}

{{- define "streamserve.certificateAnnotations" -}}
streamserve.io/certificate-ends: {{ .ends | quote }}
streamserve.io/certificate-names: {{ .names | quote }}
{{- end }}

{{/* Call with root, user, password. The files are where both the operator's pods and ours mount them. */}}
{{- define "streamserve.redisUrl" -}}
{{- $at := printf "%s:%s@%s:6379/0" .user .password (include "streamserve.redisHost" .root) -}}
{{- if .root.Values.tls.enabled -}}
{{- $files := "/etc/streamserve/tls" -}}
{{ printf "rediss://%s?ssl_ca_certs=%s/ca.crt&ssl_certfile=%s/tls.crt&ssl_keyfile=%s/tls.key" $at $files $files $files }}
{{- else -}}
{{ printf "redis://%s" $at }}
{{- end -}}
{{- end }}

{{/*
What each user of Redis may do: the key patterns are those of streamserve.contract.keys, the commands those that the
component sends. Call with (dict "component" "worker" "namespace" "llm"); namespace "*" is every namespace.
*/}}
{{- define "streamserve.redisRules" -}}
{{- $root := printf "ss:%s/*" .namespace -}}
{{- $commands := "+@connection -@dangerous +get +set +subscribe +unsubscribe" -}}
{{- if eq .component "operator" -}}
~{{ $root }} &{{ $root }} {{ $commands }} +mget +lrange +ttl +scan +publish +acl|users +acl|setuser +acl|deluser
{{- else if eq .component "router" -}}
%R~{{ $root }}/worker/* %R~{{ $root }}/control/config ~{{ $root }}/router/* &{{ $root }}/control/config {{ $commands }} +mget +zrange +rpush +ltrim +expire
{{- else -}}
~{{ $root }}/worker/* %R~{{ $root }}/control/config &{{ $root }}/control/config {{ $commands }} +del +zadd +zrem +zremrangebyscore +pexpire +time
{{- end -}}
{{- end }}
