{{- /* What values.schema.json cannot say: each refusal says what to write instead. */ -}}
{{- define "llmengine.refuse" -}}
{{- $values := .Values -}}
{{- if not $values.image.repository -}}
{{- fail "image.repository is missing: give the image that was built from operator/Dockerfile" -}}
{{- end -}}
{{- if not $values.store.bucket -}}
{{- fail "store.bucket is missing: give the bucket that keeps the engines" -}}
{{- end -}}
{{- range $name, $runtime := $values.runtimes -}}
{{- if and $runtime (ne (toString $runtime.enabled) "false") (not $runtime.image.repository) -}}
{{- fail (printf "runtimes.%s.image.repository is missing: give the image that was built from builder_image/Dockerfile, or leave the runtime out by setting it to null" $name) -}}
{{- end -}}
{{- end -}}
{{- if and (gt (int $values.replicas) 1) (not $values.leaderElection.enabled) -}}
{{- fail "replicas is more than 1, but leaderElection.enabled is false: two operators would work against each other" -}}
{{- end -}}
{{- range $role, $given := $values.store.credentials -}}
{{- include "llmengine.refuse.key" (list (printf "store.credentials.%s" $role) $given) -}}
{{- end -}}
{{- range $index, $given := $values.models.s3 -}}
{{- include "llmengine.refuse.key" (list (printf "models.s3[%d]" $index) $given) -}}
{{- end -}}
{{- range $tenant := $values.tenantNamespaces -}}
{{- range $role := list "serve" "scopedBuild" -}}
{{- with get $tenant $role -}}
{{- $secret := merge (deepCopy .) (dict "secretName" (get $values.store.credentials $role).secretName) -}}
{{- include "llmengine.refuse.key" (list (printf "tenantNamespaces: %s of %s" $role $tenant.name) $secret) -}}
{{- end -}}
{{- end -}}
{{- if and $values.watchNamespaces (not (has $tenant.name $values.watchNamespaces)) -}}
{{- fail (printf "tenantNamespaces has %s, but watchNamespaces does not: its engines would never be looked at" $tenant.name) -}}
{{- end -}}
{{- end -}}
{{- if and $values.builds.createNamespace (eq $values.builds.namespace .Release.Namespace) -}}
{{- fail "builds.namespace is the release's own namespace: name another one, or set builds.createNamespace to false" -}}
{{- end -}}
{{- include "llmengine.refuse.crds" . -}}
{{- end -}}

{{- /* Takes (list path map), where the map may have secretName, accessKeyId, secretAccessKey. */ -}}
{{- define "llmengine.refuse.key" -}}
{{- $path := index . 0 -}}
{{- $given := index . 1 -}}
{{- if ne (empty $given.accessKeyId) (empty $given.secretAccessKey) -}}
{{- fail (printf "%s has half a key: accessKeyId and secretAccessKey belong together" $path) -}}
{{- end -}}
{{- if and $given.accessKeyId (not $given.secretName) -}}
{{- fail (printf "%s has a key but no secretName: say where the key is to be kept" $path) -}}
{{- end -}}
{{- end -}}

{{- /* Only where Helm talks to a cluster: "helm template" must work without one. */ -}}
{{- define "llmengine.refuse.crds" -}}
{{- if lookup "v1" "Namespace" "" "kube-system" -}}
{{- $needed := int (include "llmengine.schemaRevision" .) -}}
{{- $command := printf "helm upgrade --install llmengine-crds charts/llmengine-crds --namespace %s --create-namespace" .Release.Namespace -}}
{{- range $name := list "llmengines.llmengine.io" "engineruntimes.llmengine.io" -}}
{{- $crd := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" $name -}}
{{- if not $crd -}}
{{- fail (printf "the CRD %s is not installed; run: %s" $name $command) -}}
{{- end -}}
{{- $installed := int (get ($crd.metadata.annotations | default dict) "llmengine.io/schema-revision") -}}
{{- if lt $installed $needed -}}
{{- fail (printf "the CRD %s is of revision %d, this chart needs %d; run: %s" $name $installed $needed $command) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "llmengine.schemaRevision" -}}4{{- end -}}
