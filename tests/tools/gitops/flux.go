package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// healthCheckExpressions are what a Kustomization or HelmRelease of Flux says in
// spec.healthCheckExprs for one kind.
func healthCheckExpressions(text string) (judge, error) {
	expressions := &kustomize.HealthCheckExpressions{}
	if err := json.Unmarshal([]byte(text), expressions); err != nil {
		return nil, fmt.Errorf("expressions: %w", err)
	}
	evaluator, err := cel.NewStatusEvaluator(expressions)
	if err != nil {
		return nil, err
	}
	return func(object *unstructured.Unstructured) (verdict, error) {
		return fromResult(evaluator.Evaluate(context.Background(), object))
	}, nil
}
