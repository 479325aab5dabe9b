package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"

	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	luajson "layeh.com/gopher-json"
)

// What Argo CD knows; it shows anything else as Unknown.
var healthStatuses = []string{"Unknown", "Progressing", "Suspended", "Healthy", "Degraded", "Missing"}

// healthScript runs a health check in the interpreter of Argo CD, set up as Argo CD sets it up: a
// script of the argocd-cm ConfigMap gets the base, package and table libraries, one that is compiled
// into Argo CD gets all. Argo CD's own os library, with time and date alone, is left out: a health
// check that depends on the clock would be none.
func healthScript(path string, builtin bool) (judge, error) {
	script, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return func(object *unstructured.Unstructured) (verdict, error) {
		state := lua.NewState(lua.Options{SkipOpenLibs: !builtin})
		defer state.Close()
		for name, open := range map[string]lua.LGFunction{
			lua.LoadLibName: lua.OpenPackage, lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable,
		} {
			call := lua.P{Fn: state.NewFunction(open), NRet: 0, Protect: true}
			if err := state.CallByParam(call, lua.LString(name)); err != nil {
				return verdict{}, err
			}
		}
		limit, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		state.SetContext(limit)
		state.SetGlobal("obj", toLua(state, object.Object))
		if err := state.DoString(string(script)); err != nil {
			return verdict{}, err
		}
		return fromLua(state.Get(-1))
	}, nil
}

func toLua(state *lua.LState, value any) lua.LValue {
	switch value := value.(type) {
	case bool:
		return lua.LBool(value)
	case int64:
		return lua.LNumber(value)
	case float64:
		return lua.LNumber(value)
	case string:
		return lua.LString(value)
	case []any:
		list := state.CreateTable(len(value), 0)
		for _, item := range value {
			list.Append(toLua(state, item))
		}
		return list
	case map[string]any:
		table := state.CreateTable(0, len(value))
		for key, item := range value {
			table.RawSetString(key, toLua(state, item))
		}
		return table
	}
	return lua.LNil
}

func fromLua(returned lua.LValue) (verdict, error) {
	if returned.Type() != lua.LTTable {
		return verdict{}, fmt.Errorf("expect table output from Lua script, not %s", returned.Type())
	}
	text, err := luajson.Encode(returned)
	if err != nil {
		return verdict{}, err
	}
	said := verdict{}
	if err := json.Unmarshal(text, &said); err != nil {
		return verdict{}, err
	}
	if !slices.Contains(healthStatuses, said.Status) {
		return verdict{}, fmt.Errorf("Argo CD has no health status %q", said.Status)
	}
	return said, nil
}
