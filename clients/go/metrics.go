// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// Counts of what happened, as Prometheus reads them.

var buckets = [...]time.Duration{
	25 * time.Microsecond, 50 * time.Microsecond, 100 * time.Microsecond, 250 * time.Microsecond,
	time.Millisecond, 5 * time.Millisecond, 25 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond,
	2500 * time.Millisecond, 10 * time.Second,
}

const (
	outcomeOK = iota
	outcomeRaised
	outcomeCancelled
	outcomeDied
	outcomeRefused
	outcomeOther
	outcomes
)

var outcomeNames = [outcomes]string{"ok", "raised", "cancelled", "died", "refused", "other"}

type metrics struct {
	calls    [outcomes]atomic.Int64
	took     [len(buckets) + 1]atomic.Int64
	seconds  atomic.Int64 // nanoseconds
	queued   atomic.Int64
	ready    atomic.Int64
	restarts atomic.Int64
	breaker  atomic.Int64
}

func (m *metrics) count(took time.Duration, err error) {
	m.calls[outcomeOf(err)].Add(1)
	m.seconds.Add(int64(took))
	bucket := 0
	for bucket < len(buckets) && took > buckets[bucket] {
		bucket++
	}
	m.took[bucket].Add(1)
}

func outcomeOf(err error) int {
	if err == nil {
		return outcomeOK
	}
	var raised *RemoteError
	var died *WorkerDied
	var lost *ConnectionLost
	switch {
	case errors.As(err, &died), errors.As(err, &lost):
		return outcomeDied
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return outcomeCancelled
	case errors.Is(err, ErrQueueFull), errors.Is(err, ErrBreakerOpen), errors.Is(err, ErrShutdown):
		return outcomeRefused
	case errors.As(err, &raised):
		return outcomeRaised
	}
	return outcomeOther
}

// WriteMetrics writes the pool's metrics in Prometheus' text format.
func (p *Pool) WriteMetrics(to io.Writer) error {
	var text bytes.Buffer
	m := &p.metrics
	head := func(name, kind, help string) {
		fmt.Fprintf(&text, "# HELP atoll_%s %s\n# TYPE atoll_%s %s\n", name, help, name, kind)
	}
	head("calls_total", "counter", "Calls that ended, by how.")
	for outcome, name := range outcomeNames {
		fmt.Fprintf(&text, "atoll_calls_total{outcome=%q} %d\n", name, m.calls[outcome].Load())
	}
	head("call_seconds", "histogram", "How long calls took, waiting for their turn included.")
	total := int64(0)
	for bucket := range m.took {
		total += m.took[bucket].Load()
		le := "+Inf"
		if bucket < len(buckets) {
			le = fmt.Sprint(buckets[bucket].Seconds())
		}
		fmt.Fprintf(&text, "atoll_call_seconds_bucket{le=%q} %d\n", le, total)
	}
	fmt.Fprintf(&text, "atoll_call_seconds_sum %g\natoll_call_seconds_count %d\n",
		time.Duration(m.seconds.Load()).Seconds(), total)
	for _, one := range []struct {
		name, kind, help string
		value            int64
	}{
		{"calls_open", "gauge", "Calls in progress or waiting for their turn.", p.open.Load()},
		{"calls_waiting", "gauge", "Calls waiting for their turn.", m.queued.Load()},
		{"workers", "gauge", "Workers there should be; 1 for a service at a socket.", int64(p.options.Workers)},
		{"workers_ready", "gauge", "Workers that are ready; 1 while a service at a socket is connected to.", m.ready.Load()},
		{"worker_restarts_total", "counter", "Workers that were started in place of others, or times that a service was connected to again.", m.restarts.Load()},
		{"breaker_open", "gauge", "1 while calls are refused because workers keep dying, or connecting keeps failing.", m.breaker.Load()},
	} {
		head(one.name, one.kind, one.help)
		fmt.Fprintf(&text, "atoll_%s %d\n", one.name, one.value)
	}
	_, err := to.Write(text.Bytes())
	return err
}
