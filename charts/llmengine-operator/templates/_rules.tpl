{{- /* Where engines live. No secrets, no pods/log, no wildcard: a test holds this against the code. */ -}}
{{- define "llmengine.rules.engines" -}}
# Engines are the work: watched, read before each pass, and listed at the start.
- apiGroups: [llmengine.io]
  resources: [llmengines]
  verbs: [get, list, watch]
# The status is the operator's to say. It never writes a spec, a label or a finalizer.
- apiGroups: [llmengine.io]
  resources: [llmengines/status]
  verbs: [patch]
# Builds: created once and never changed, but for the owners of a build that several engines share;
# deleted when nobody wants them.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [list, watch, create, patch, delete]
# One Deployment for each architecture. Patched by server-side apply, which also creates.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
# The number of pods has an owner of its own, so that an autoscaler's choice is not overwritten.
- apiGroups: [apps]
  resources: [deployments/scale]
  verbs: [patch]
# What clients talk to. Read by name too: one that somebody else made must not be taken over.
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, create, patch, delete]
# spec.serving.autoscaling.
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [list, create, patch, delete]
# A drain takes the pods of an engine one after the other.
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [list, create, patch, delete]
# Why a build failed, and how far a rollout is, stands in the state of pods. Their logs are not read.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# The UID of the volume that a pvc:// model lies on is part of its engine's key.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
# Why a Job gets no pod (a quota, an admission policy) is said in events alone; and each change of
# Ready is announced in one.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [list, create, patch]
{{- end -}}

{{- /* The builds namespace, where no engine is served. */ -}}
{{- define "llmengine.rules.builds" -}}
# Builds: created once and never changed; deleted when nobody wants them.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [list, watch, create, delete]
# Why a build failed stands in the state of its pod.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# Why a Job gets no pod (a quota, an admission policy) is said in events alone.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [list]
# One set of watches covers all namespaces, this one with them.
- apiGroups: [llmengine.io]
  resources: [llmengines]
  verbs: [list, watch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [list, watch]
{{- end -}}

{{- define "llmengine.rules.cluster" -}}
# Runtimes are the admin's, and have no namespace.
- apiGroups: [llmengine.io]
  resources: [engineruntimes]
  verbs: [get, list, watch]
# Which architectures there are is in the labels of nodes, which come, go and change.
- apiGroups: [""]
  resources: [nodes]
  verbs: [list, watch]
# An operator that is newer than the kinds says so and ends, instead of losing fields in silence.
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  resourceNames: [llmengines.llmengine.io, engineruntimes.llmengine.io]
  verbs: [get]
{{- end -}}
