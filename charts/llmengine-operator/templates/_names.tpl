{{- define "llmengine.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "llmengine.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "llmengine.labels" -}}
{{ include "llmengine.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: llmengine
{{- /* Not our own "managed-by": the operator takes what carries that for one of its children. */}}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "llmengine.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "llmengine.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{- /* Of the PriorityClass that the chart makes. It has no namespace, so no two releases may share it. */ -}}
{{- define "llmengine.buildClass" -}}
{{- .Values.builds.priorityClass.name | default (printf "%s-build" (include "llmengine.fullname" .)) -}}
{{- end -}}

{{- /* Of a map with repository, tag and digest. Takes (list image root). */ -}}
{{- define "llmengine.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default (index . 1).Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- /* Where the operator writes: a JSON list; empty for everywhere. */ -}}
{{- define "llmengine.tenants" -}}
{{- $names := list -}}
{{- range .Values.tenantNamespaces }}{{ $names = append $names .name }}{{ end -}}
{{- $names | uniq | toJson -}}
{{- end -}}
