// Package types pins the Go types of kinds whose CRDs no module ships: controller-gen writes them.
package types

import _ "github.com/fluxcd/helm-controller/api/v2"
