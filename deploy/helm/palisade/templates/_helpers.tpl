{{- define "palisade.metadata" -}}
name: palisade
namespace: {{ .Release.Namespace }}
labels:
  app: palisade
  app.kubernetes.io/name: palisade
  app.kubernetes.io/part-of: palisade
  app.kubernetes.io/instance: {{ .Release.Name }}
  app.kubernetes.io/managed-by: {{ .Release.Service }}
  helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "palisade.models" -}}
{{- if and .Values.models.addresses .Values.models.volume -}}
{{- fail "models: addresses or a volume, not both" -}}
{{- end -}}
{{- if .Values.models.addresses -}}
{{- join "," .Values.models.addresses -}}
{{- else if .Values.models.volume -}}
/models
{{- end -}}
{{- end -}}

{{- define "palisade.trust" -}}
{{- $paths := list -}}
{{- range $name := keys .Values.trust.keys | sortAlpha -}}
{{- $paths = append $paths (printf "/etc/palisade/trust/%s" $name) -}}
{{- end -}}
{{- join ":" $paths -}}
{{- end -}}
