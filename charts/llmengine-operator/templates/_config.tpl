{{- /* The operator's configuration; operator/llmengine_operator/config.py says what it means. */ -}}
{{- define "llmengine.config" -}}
{{- $store := .Values.store -}}
namespace: {{ .Release.Namespace }}
store:
  bucket: {{ $store.bucket | quote }}
  prefix: {{ $store.prefix | quote }}
  endpoint: {{ $store.endpoint | quote }}
  region: {{ $store.region | quote }}
  pathStyle: {{ $store.pathStyle }}
  caPem: {{ $store.caPem | quote }}
  conditionalWrites: {{ $store.conditionalWrites }}
  buildSecretName: {{ $store.credentials.build.secretName | quote }}
  scopedBuildSecretName: {{ $store.credentials.scopedBuild.secretName | quote }}
  serveSecretName: {{ $store.credentials.serve.secretName | quote }}
models:
  {{- with .Values.models.s3 }}
  s3:
    {{- range . }}
    - {{ omit . "accessKeyId" "secretAccessKey" | toYaml | nindent 6 | trim }}
    {{- end }}
  {{- end }}
  shared: {{ .Values.models.shared | toJson }}
  hfEndpoint: {{ .Values.models.hfEndpoint | quote }}
architectures:
  expected: {{ .Values.architectures.expected | toJson }}
builds:
  namespace: {{ .Values.builds.namespace }}
  maxConcurrent: {{ .Values.builds.maxConcurrent | int }}
  maxConcurrentPerArchitecture: {{ .Values.builds.maxConcurrentPerArchitecture | int }}
  {{- $made := ternary (include "llmengine.buildClass" .) "" .Values.builds.priorityClass.create }}
  priorityClassName: {{ .Values.builds.priorityClassName | default $made | quote }}
rollouts:
  maxConcurrent: {{ .Values.rollouts.maxConcurrent | int }}
  minReadySeconds: {{ .Values.rollouts.minReadySeconds | int }}
leaderElection:
  enabled: {{ .Values.leaderElection.enabled }}
  leaseSeconds: {{ .Values.leaderElection.leaseSeconds }}
watchNamespaces: {{ .Values.watchNamespaces | toJson }}
workers: {{ .Values.workers | int }}
resyncSeconds: {{ .Values.resyncSeconds }}
healthPort: 8080
metricsPort: 8081
{{- end -}}
