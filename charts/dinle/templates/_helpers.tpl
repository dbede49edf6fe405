{{- define "dinle.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 53 | trimSuffix "-" -}}
{{- end -}}

{{- /* Ten short of what a name may have: for the endings of other objects' names. */ -}}
{{- define "dinle.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains (include "dinle.name" .) .Release.Name -}}
{{- .Release.Name -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "dinle.name" .) | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "dinle.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace -}}
{{- end -}}

{{- define "dinle.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "dinle.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- /* These never change for a release: a DaemonSet's selector cannot. */ -}}
{{- define "dinle.selectorLabels" -}}
app.kubernetes.io/name: {{ include "dinle.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- /* By these `kubectl dinle` finds agents, whatever their release is called. */ -}}
{{- define "dinle.agentLabels" -}}
app.kubernetes.io/part-of: dinle
app.kubernetes.io/component: agent
{{- end -}}

{{- define "dinle.podLabels" -}}
{{ include "dinle.selectorLabels" . }}
{{ include "dinle.agentLabels" . }}
{{- with merge (dict) .Values.podLabels .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* What tells of the chart is not in the labels of the agents' pods: it would replace them for a new chart with the same agent. */ -}}
{{- define "dinle.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "dinle.labels" -}}
{{ include "dinle.selectorLabels" . }}
{{ include "dinle.agentLabels" . }}
{{ include "dinle.commonLabels" . }}
{{- end -}}

{{- /* Not those of the agents: a DaemonSet takes every pod that its selector matches for its own. */ -}}
{{- define "dinle.testLabels" -}}
app.kubernetes.io/name: {{ include "dinle.name" . }}-test
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/part-of: dinle
app.kubernetes.io/component: test
{{ include "dinle.commonLabels" . }}
{{- end -}}

{{- /* Annotations of an object: those of all, then its own. Takes a list of the root and the latter. */ -}}
{{- define "dinle.annotations" -}}
{{- $all := merge (dict) (index . 1) (index . 0).Values.commonAnnotations -}}
{{- with $all -}}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "dinle.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- /* Address and port, given a list of the root and the port. */ -}}
{{- define "dinle.listen" -}}
{{- $host := (index . 0).Values.bindAddress -}}
{{- if contains ":" $host -}}
{{- printf "[%s]:%v" $host (index . 1) -}}
{{- else -}}
{{- printf "%s:%v" $host (index . 1) -}}
{{- end -}}
{{- end -}}

{{- /* The Secret with the agents' certificate; empty: they have none. */ -}}
{{- define "dinle.tlsSecret" -}}
{{- $tls := .Values.grpc.tls -}}
{{- if or $tls.generate $tls.certManager.issuerRef.name -}}
{{- include "dinle.fullname" . }}-tls
{{- else -}}
{{- $tls.secretName -}}
{{- end -}}
{{- end -}}

{{- /* That with a certificate for listeners, where Helm makes them. */ -}}
{{- define "dinle.clientTlsSecret" -}}
{{- include "dinle.fullname" . }}-client-tls
{{- end -}}

{{- define "dinle.securityContext" -}}
{{- $context := dict "runAsUser" 0 "readOnlyRootFilesystem" true "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{- if .Values.privileged -}}
{{- $_ := set $context "privileged" true -}}
{{- else -}}
{{- $add := list "BPF" "PERFMON" -}}
{{- if .Values.kernelSymbols -}}
{{- $add = append $add "SYSLOG" -}}
{{- end -}}
{{- if .Values.budget.measurePrograms -}}
{{- $add = append $add "SYS_ADMIN" -}}
{{- end -}}
{{- $add = concat $add .Values.extraCapabilities | uniq -}}
{{- $_ := set $context "allowPrivilegeEscalation" false -}}
{{- $_ := set $context "capabilities" (dict "drop" (list "ALL") "add" $add) -}}
{{- end -}}
{{- mustMergeOverwrite $context (deepCopy .Values.securityContext) | toYaml -}}
{{- end -}}

{{- /* A probe, given a list of the path and its values. */ -}}
{{- define "dinle.probe" -}}
httpGet:
  path: {{ index . 0 }}
  port: http
{{ toYaml (index . 1) }}
{{- end -}}

{{- /* The role that exporters are given, as its name ends; empty: none. */ -}}
{{- define "dinle.exportersRole" -}}
{{- if and (eq .Values.auth.mode "kube") .Values.exporters .Values.rbac.create -}}
{{- .Values.auth.roles.exporters -}}
{{- end -}}
{{- end -}}

{{- /* Not empty if an exporter writes files. */ -}}
{{- define "dinle.exporterFiles" -}}
{{- range .Values.exporters -}}
{{- if .file -}}yes{{- end -}}
{{- end -}}
{{- end -}}
