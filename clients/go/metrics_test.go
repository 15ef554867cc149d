// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// What Prometheus' text format asks for: each metric is described before its samples, and a histogram's buckets add up.
func TestMetricsAreInPrometheusTextFormat(t *testing.T) {
	p, ctx := start(t, func(o *Options) { o.Workers = 2 })
	for range 10 {
		must2(Call[int](ctx, p, "add", Args{1, 1}))(t)
	}
	_ = p.Call(ctx, "fail", "no", nil)
	_ = p.Call(ctx, "sleep", 0.002, nil)
	var text bytes.Buffer
	if err := p.WriteMetrics(&text); err != nil {
		t.Fatal(err)
	}
	sample := regexp.MustCompile(`^([a-z_]+)(?:\{[a-z_]+="[^"]*"\})? ([0-9.e+-]+)$`)
	described := map[string]string{}
	values := map[string]float64{}
	last := 0.0
	for _, line := range strings.Split(strings.TrimRight(text.String(), "\n"), "\n") {
		if fields := strings.Fields(line); fields[0] == "#" {
			if fields[1] == "TYPE" {
				described[fields[2]] = fields[3]
			}
			continue
		}
		found := sample.FindStringSubmatch(line)
		if found == nil {
			t.Fatalf("no sample: %q", line)
		}
		family := found[1]
		for _, end := range []string{"_bucket", "_sum", "_count"} {
			if whole, cut := strings.CutSuffix(family, end); cut && described[whole] == "histogram" {
				family = whole
			}
		}
		if described[family] == "" {
			t.Errorf("%s is not described", family)
		}
		value, err := strconv.ParseFloat(found[2], 64)
		if err != nil {
			t.Error(err)
		}
		if strings.Contains(line, "_bucket{") {
			if value < last {
				t.Errorf("fewer than in the bucket before: %s", line)
			}
			last = value
		}
		name, _, _ := strings.Cut(line, " ")
		values[name] = value
	}
	for name, wanted := range map[string]float64{
		`atoll_calls_total{outcome="ok"}`: 11, `atoll_calls_total{outcome="raised"}`: 1, "atoll_call_seconds_count": 12,
		`atoll_call_seconds_bucket{le="+Inf"}`: 12, "atoll_workers": 2, "atoll_workers_ready": 2, "atoll_calls_open": 0,
	} {
		if values[name] != wanted {
			t.Errorf("%s is %v, not %v", name, values[name], wanted)
		}
	}
	if values["atoll_call_seconds_sum"] < 0.002 {
		t.Errorf("they took %v seconds", values["atoll_call_seconds_sum"])
	}
}
