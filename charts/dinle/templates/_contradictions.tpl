{{- /*
What the schema cannot see: values that are right one by one and wrong together. A sentence a line, each with what, where, and how to mend it.
*/ -}}
{{- define "dinle.contradictions" -}}
{{- $values := .Values -}}
{{- $tls := include "dinle.tlsSecret" . -}}

{{- /* What runs */ -}}
{{- if and .Values.image.tag .Values.image.digest }}
image.tag is {{ .Values.image.tag }} and image.digest is set too, which pins another image or the same one twice: empty one of them.
{{- end }}
{{- range $argument := .Values.extraArgs }}
{{- $flag := regexFind "^--[a-z-]+" $argument }}
{{- $instead := get (dict "--http" "bindAddress" "--listen" "grpc.insecure" "--insecure" "grpc.insecure" "--log-json" "log.format" "--sensors" "sensors" "--tls-cert" "grpc.tls" "--tls-key" "grpc.tls" "--tls-client-ca" "grpc.tls" "--auth" "auth.mode" "--auth-audiences" "auth.audiences" "--auth-grace" "auth.grace" "--budget-cpu" "budget.cpuPercent" "--max-pod-events-per-second" "limits.podEventsPerSecond" "--exporters" "exporters") $flag }}
{{- if $instead }}
extraArgs has {{ $argument }}, which the chart decides: set {{ $instead }} instead.
{{- else if has $flag (list "--pods" "--node-name") }}
extraArgs has {{ $argument }}, which the chart sets itself, and the agent takes it only once: remove it.
{{- else if has $flag (list "--check" "--help" "--version") }}
extraArgs has {{ $argument }}, with which the agent ends at once and the kubelet starts it over and over: remove it.
{{- end }}
{{- end }}
{{- range .Values.extraEnv }}
{{- $instead := get (dict "RUST_LOG" "log.level" "DINLE_LOG_JSON" "log.format" "DINLE_HTTP" "bindAddress" "DINLE_LISTEN" "grpc.insecure" "DINLE_SENSORS" "sensors" "DINLE_TLS_CERT" "grpc.tls" "DINLE_TLS_KEY" "grpc.tls" "DINLE_TLS_CLIENT_CA" "grpc.tls" "DINLE_AUTH" "auth.mode" "DINLE_AUTH_AUDIENCES" "auth.audiences" "DINLE_AUTH_GRACE" "auth.grace" "DINLE_BUDGET_CPU" "budget.cpuPercent" "DINLE_MAX_POD_EVENTS_PER_SECOND" "limits.podEventsPerSecond" "DINLE_EXPORTERS" "exporters") .name }}
{{- if $instead }}
extraEnv has {{ .name }}, which the chart decides: set {{ $instead }} instead.
{{- else if has .name (list "NODE_NAME" "POD_NAME" "POD_NAMESPACE" "DINLE_PODS") }}
extraEnv has {{ .name }}, which the chart sets itself: remove it.
{{- end }}
{{- end }}
{{- $variables := dict }}
{{- range .Values.extraEnv }}
{{- if hasKey $variables .name }}
extraEnv has {{ .name }} more than once: remove all but one.
{{- end }}
{{- $_ := set $variables .name true }}
{{- end }}
{{- range .Values.extraVolumes }}
{{- if or (eq .name "cgroup") (and (eq .name "tls") $tls) (and (eq .name "exporters") $values.exporters) (and (eq .name "exporter-files") (include "dinle.exporterFiles" $)) }}
extraVolumes has a volume of the name {{ .name }}, which is the chart's own: give it another name.
{{- end }}
{{- end }}
{{- range $mount := .Values.extraVolumeMounts }}
{{- if hasPrefix "/host/sys/fs/cgroup/" (printf "%s/" (clean .mountPath)) }}
extraVolumeMounts mounts {{ .name }} at {{ .mountPath }}, where the agent reads the cgroups of the node: mount it elsewhere.
{{- end }}
{{- $there := false }}
{{- range $values.extraVolumes }}
{{- if eq .name $mount.name }}
{{- $there = true }}
{{- end }}
{{- end }}
{{- if not $there }}
extraVolumeMounts mounts the volume {{ .name }} at {{ .mountPath }}, but extraVolumes has none of that name: add it there.
{{- end }}
{{- end }}

{{- /* What it exports */ -}}
{{- $names := dict }}
{{- range .Values.exporters }}
{{- if hasKey $names .name }}
exporters has {{ .name }} more than once: give each exporter its own name.
{{- end }}
{{- $_ := set $names .name true }}
{{- if .file }}
{{- $path := clean .file.path }}
{{- $there := hasPrefix "/var/log/dinle/" $path }}
{{- range $values.extraVolumeMounts }}
{{- if hasPrefix (printf "%s/" (clean .mountPath)) $path }}
{{- $there = true }}
{{- end }}
{{- end }}
{{- if not $there }}
exporters has {{ .name }}, which writes to {{ .file.path }}, but nothing else than /var/log/dinle can be written to: write there, or mount a volume with extraVolumes and extraVolumeMounts.
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.exporterFiles.hostPath (not (include "dinle.exporterFiles" .)) }}
exporterFiles.hostPath is set, but no exporter writes files, so that it would do nothing: remove it, or add an exporter with a file.
{{- end }}

{{- /* What it may do */ -}}
{{- if and .Values.privileged .Values.extraCapabilities }}
privileged is true, which gives every capability, and extraCapabilities asks for {{ join ", " .Values.extraCapabilities }}: empty it, or set privileged to false.
{{- end }}
{{- range .Values.extraCapabilities }}
{{- if hasPrefix "CAP_" . }}
extraCapabilities has {{ . }}, but Kubernetes leaves out the first part of the kernel's name: write {{ trimPrefix "CAP_" . }}.
{{- else if eq . "ALL" }}
extraCapabilities has ALL: name those that are needed, or set privileged to true.
{{- end }}
{{- end }}
{{- range $where, $context := dict "podSecurityContext" .Values.podSecurityContext "securityContext" .Values.securityContext }}
{{- if or $context.runAsUser $context.runAsNonRoot }}
{{ $where }} has the agent run as another user than 0, but Kubernetes gives capabilities to that one alone: remove runAsUser and runAsNonRoot there.
{{- end }}
{{- end }}
{{- if hasKey .Values.securityContext "capabilities" }}
securityContext.capabilities would replace those that the agent needs: name what it lacks in extraCapabilities.
{{- end }}
{{- if hasKey .Values.securityContext "privileged" }}
securityContext.privileged has a switch of its own: set privileged.
{{- end }}
{{- if and .Values.privileged (eq (get .Values.securityContext "allowPrivilegeEscalation" | toString) "false") }}
privileged is true and securityContext.allowPrivilegeEscalation is false, which no API server takes: remove one of them.
{{- end }}
{{- if and (not .Values.serviceAccount.create) .Values.serviceAccount.annotations }}
serviceAccount.annotations is set, but serviceAccount.create is false, so that there is nothing to annotate: annotate that account yourself, or set create to true.
{{- end }}
{{- if and .Values.rbac.create (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) }}
rbac.create is true for an account that every pod of the namespace may use, since serviceAccount.create is false and serviceAccount.name is empty: name an account, or set rbac.create to false.
{{- end }}

{{- /* Who reaches it */ -}}
{{- $ways := list }}
{{- if .Values.grpc.tls.secretName }}
{{- $ways = append $ways "secretName" }}
{{- end }}
{{- if .Values.grpc.tls.generate }}
{{- $ways = append $ways "generate" }}
{{- end }}
{{- if .Values.grpc.tls.certManager.issuerRef.name }}
{{- $ways = append $ways "certManager.issuerRef.name" }}
{{- else }}
{{- range $what, $value := dict "issuerRef.kind" (without (list .Values.grpc.tls.certManager.issuerRef.kind) "Issuer") "issuerRef.group" (without (list .Values.grpc.tls.certManager.issuerRef.group) "cert-manager.io") "duration" (compact (list .Values.grpc.tls.certManager.duration)) }}
{{- if $value }}
grpc.tls.certManager.{{ $what }} is {{ first $value }}, but no issuer is named, so that it would do nothing: set grpc.tls.certManager.issuerRef.name, or remove it.
{{- end }}
{{- end }}
{{- end }}
{{- if gt (len $ways) 1 }}
grpc.tls has {{ join " and " $ways }}, but the agents have one certificate: leave one of them.
{{- end }}
{{- if and .Values.grpc.insecure $tls }}
grpc.insecure is true, and grpc.tls.{{ first $ways }} is set, but whoever may come without a certificate needs none: leave one of them out.
{{- end }}
{{- if eq .Values.auth.mode "kube" }}
{{- if .Values.grpc.insecure }}
auth.mode is kube and grpc.insecure is true, with which tokens would go through the network for everybody to read: set grpc.tls in its place.
{{- end }}
{{- if and .Values.auth.certificates (not $tls) }}
auth.certificates is true, but gRPC is served without TLS, so that nobody can show one: set grpc.tls, or set auth.certificates to false.
{{- end }}
{{- else }}
{{- range $what, $set := dict "audiences" (ne (join "," .Values.auth.audiences) "dinle") "certificates" .Values.auth.certificates "grace" (ne .Values.auth.grace "2m") "roles.exporters" (ne .Values.auth.roles.exporters "debugger") }}
{{- if $set }}
auth.{{ $what }} is set, but auth.mode is none, so that nobody is asked who they are: set auth.mode to kube, or remove it.
{{- end }}
{{- end }}
{{- end }}
{{- if and (eq .Values.auth.mode "kube") (ne .Values.auth.roles.exporters "debugger") (not .Values.exporters) }}
auth.roles.exporters is set, but there are no exporters whose role it would be: remove it, or add some to exporters.
{{- end }}
{{- if and .Values.auth.roles.aggregate (not .Values.auth.roles.create) }}
auth.roles.aggregate is true, but auth.roles.create is false, so that there are no roles to aggregate: set create to true, or remove it.
{{- end }}
{{- if or (hasPrefix "127." .Values.bindAddress) (eq .Values.bindAddress "::1") }}
bindAddress is {{ .Values.bindAddress }}, where neither the kubelet's probes nor a Prometheus reach the agent: set 0.0.0.0 or ::.
{{- end }}
{{- if .Values.networkPolicy.enabled }}
{{- if and .Values.podMonitor.enabled (not .Values.networkPolicy.metricsFrom) }}
podMonitor.enabled is true, but networkPolicy.enabled lets nobody fetch metrics: name that Prometheus in networkPolicy.metricsFrom.
{{- end }}
{{- if not .Values.networkPolicy.grpcFrom }}
{{- if .Values.grpc.insecure }}
grpc.insecure is true, but networkPolicy.enabled lets nobody use gRPC: name who may in networkPolicy.grpcFrom, or set grpc.insecure to false.
{{- end }}
{{- if $tls }}
grpc.tls.{{ first $ways }} is set, but networkPolicy.enabled lets nobody use gRPC: name who may in networkPolicy.grpcFrom, or leave grpc.tls out.
{{- end }}
{{- else if not (or .Values.grpc.insecure $tls) }}
networkPolicy.grpcFrom is set, but gRPC is served on loopback alone: remove it, or set grpc.tls.
{{- end }}
{{- else }}
{{- range $rules := list "metricsFrom" "grpcFrom" "egress" }}
{{- if get $values.networkPolicy $rules }}
networkPolicy.{{ $rules }} is set, but networkPolicy.enabled is false, so that it would do nothing: remove it, or set networkPolicy.enabled to true.
{{- end }}
{{- end }}
{{- if .Values.grpc.insecure }}
grpc.insecure is true, but networkPolicy.enabled is false, so that every pod of the cluster could read what runs on the nodes: set networkPolicy.enabled to true and name who may in networkPolicy.grpcFrom.
{{- end }}
{{- end }}
{{- if not .Values.podMonitor.enabled }}
{{- range $what := list "labels" "interval" "scrapeTimeout" "metricRelabelings" }}
{{- if get $values.podMonitor $what }}
podMonitor.{{ $what }} is set, but podMonitor.enabled is false, so that it would do nothing: remove it, or set podMonitor.enabled to true.
{{- end }}
{{- end }}
{{- end }}

{{- /* Where and how it runs */ -}}
{{- if and .Values.priorityClass.create .Values.priorityClassName }}
priorityClass.create is true and priorityClassName is {{ .Values.priorityClassName }}, but a pod has one class: empty priorityClassName, or set priorityClass.create to false.
{{- end }}
{{- if and (not .Values.priorityClass.create) (or (ne (int64 .Values.priorityClass.value) 1000000) (ne .Values.priorityClass.preemptionPolicy "PreemptLowerPriority")) }}
priorityClass has a value or a preemptionPolicy, but priorityClass.create is false, so that they would do nothing: set create to true, or remove them.
{{- end }}
{{- if eq .Values.updateStrategy.type "OnDelete" }}
{{- with .Values.updateStrategy.rollingUpdate }}
{{- if or (ne (toString .maxUnavailable) "10%") (ne (toString .maxSurge) "0") }}
updateStrategy.rollingUpdate is set, but updateStrategy.type is OnDelete, so that it would do nothing: set type to RollingUpdate, or remove it.
{{- end }}
{{- end }}
{{- end }}
{{- if eq .Values.updateStrategy.type "RollingUpdate" }}
{{- with .Values.updateStrategy.rollingUpdate }}
{{- if and (ne (trimSuffix "%" (toString .maxSurge)) "0") (ne (trimSuffix "%" (toString .maxUnavailable)) "0") }}
updateStrategy.rollingUpdate has maxSurge {{ .maxSurge }} and maxUnavailable {{ .maxUnavailable }}, but Kubernetes takes one of them: set the other to 0.
{{- else if and (eq (trimSuffix "%" (toString .maxSurge)) "0") (eq (trimSuffix "%" (toString .maxUnavailable)) "0") }}
updateStrategy.rollingUpdate has 0 for both maxSurge and maxUnavailable, with which no agent would ever be replaced: give one of them.
{{- end }}
{{- end }}
{{- end }}
{{- range $annotation, $_ := .Values.podAnnotations }}
{{- if hasKey $values.commonAnnotations $annotation }}
podAnnotations and commonAnnotations both have {{ $annotation }}: remove it from one of them.
{{- end }}
{{- end }}
{{- $own := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/part-of" "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "helm.sh/chart" }}
{{- range $where, $labels := dict "commonLabels" .Values.commonLabels "podLabels" .Values.podLabels "podMonitor.labels" .Values.podMonitor.labels }}
{{- range $label, $_ := $labels }}
{{- if has $label $own }}
{{ $where }} has {{ $label }}, which the chart sets itself, and by which others find the agents: remove it.
{{- else if and (ne $where "commonLabels") (hasKey $values.commonLabels $label) }}
{{ $where }} and commonLabels both have {{ $label }}: remove it from one of them.
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "dinle.refuseContradictions" -}}
{{- with include "dinle.contradictions" . | trim -}}
{{- fail (printf "these values contradict each other\n%s" (regexReplaceAll "\n+" . "\n")) -}}
{{- end -}}
{{- end -}}
