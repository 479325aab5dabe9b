// gitops judges Kubernetes objects as GitOps tools do, with those tools' own code. It reads a JSON
// list of objects and prints a JSON list of verdicts in the same order.
//
//	gitops kstatus              Flux, Helm 4: the status of kstatus
//	gitops flux EXPRESSIONS     Flux: spec.healthCheckExprs, of one kind, as JSON
//	gitops argo SCRIPT          Argo CD: a health check in Lua, from the argocd-cm ConfigMap
//	gitops argo-builtin SCRIPT  Argo CD: the same, compiled into Argo CD
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

type verdict struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

type judge func(*unstructured.Unstructured) (verdict, error)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "gitops:", err)
		os.Exit(1)
	}
}

func run(arguments []string, in io.Reader, out io.Writer) error {
	judge, err := choose(arguments)
	if err != nil {
		return err
	}
	var texts []json.RawMessage
	if err := json.NewDecoder(in).Decode(&texts); err != nil {
		return fmt.Errorf("standard input is no JSON list of objects: %w", err)
	}
	verdicts := make([]verdict, len(texts))
	for i, text := range texts {
		// Its own decoder: generations must be int64, as the tools get them.
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(text); err != nil {
			return fmt.Errorf("object %d: %w", i, err)
		}
		if verdicts[i], err = judge(object); err != nil {
			return fmt.Errorf("object %d: %w", i, err)
		}
	}
	return json.NewEncoder(out).Encode(verdicts)
}

func choose(arguments []string) (judge, error) {
	switch {
	case len(arguments) == 1 && arguments[0] == "kstatus":
		return kstatus, nil
	case len(arguments) == 2 && arguments[0] == "flux":
		return healthCheckExpressions(arguments[1])
	case len(arguments) == 2 && arguments[0] == "argo":
		return healthScript(arguments[1], false)
	case len(arguments) == 2 && arguments[0] == "argo-builtin":
		return healthScript(arguments[1], true)
	}
	return nil, fmt.Errorf("want kstatus, flux EXPRESSIONS, argo SCRIPT or argo-builtin SCRIPT, not %q", arguments)
}

func kstatus(object *unstructured.Unstructured) (verdict, error) {
	return fromResult(status.Compute(object))
}

func fromResult(result *status.Result, err error) (verdict, error) {
	if err != nil {
		return verdict{}, err
	}
	return verdict{result.Status.String(), result.Message}, nil
}
