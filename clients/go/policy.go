// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"cmp"
	"time"
)

// When a worker is started again. Decides only: it reads no clock and waits for nothing.

// Restart says when workers that died are started again; or, of Dial, when connections that are lost are made again. What
// is 0 is as in the brackets, where what holds for connections comes second: trying costs next to nothing, and a service
// that was only started anew is back within seconds.
type Restart struct {
	First      time.Duration // pause after a worker's first death; it doubles until one in its place answers (100 ms)
	Longest    time.Duration // and grows no longer than this (10 s; 1 s)
	MaxDeaths  int           // so many deaths within Window open the breaker (5; 12)
	Window     time.Duration // (1 min)
	BreakerFor time.Duration // how long calls are refused then, before workers are tried again (30 s; 1 s)
}

var (
	restartOfWorkers = Restart{
		First: 100 * time.Millisecond, Longest: 10 * time.Second, MaxDeaths: 5, Window: time.Minute, BreakerFor: 30 * time.Second,
	}
	restartOfLinks = Restart{
		First: 100 * time.Millisecond, Longest: time.Second, MaxDeaths: 12, Window: time.Minute, BreakerFor: time.Second,
	}
)

func (r Restart) or(usual Restart) Restart {
	return Restart{
		First:      cmp.Or(r.First, usual.First),
		Longest:    cmp.Or(r.Longest, usual.Longest),
		MaxDeaths:  cmp.Or(r.MaxDeaths, usual.MaxDeaths),
		Window:     cmp.Or(r.Window, usual.Window),
		BreakerFor: cmp.Or(r.BreakerFor, usual.BreakerFor),
	}
}

type policy struct {
	restart  Restart
	deaths   []time.Time // within the window
	openedAt time.Time   // zero: the breaker is closed
}

// died returns when a worker may be started again; row is its deaths since it answered a call, this one included.
func (p *policy) died(now time.Time, row int) time.Time {
	recent := p.deaths[:0]
	for _, one := range p.deaths {
		if now.Sub(one) < p.restart.Window {
			recent = append(recent, one)
		}
	}
	p.deaths = append(recent, now)
	if !p.openedAt.IsZero() || len(p.deaths) >= p.restart.MaxDeaths {
		p.openedAt = now // also of the worker that was tried
	}
	if !p.openedAt.IsZero() {
		return now.Add(p.restart.BreakerFor)
	}
	pause := p.restart.First
	for range row - 1 {
		if pause *= 2; pause >= p.restart.Longest {
			return now.Add(p.restart.Longest)
		}
	}
	return now.Add(min(pause, p.restart.Longest))
}

// refusesUntil returns when workers are tried again; the zero time if calls are not refused.
func (p *policy) refusesUntil() time.Time {
	if p.openedAt.IsZero() {
		return time.Time{}
	}
	return p.openedAt.Add(p.restart.BreakerFor)
}

// refuses tells whether calls are refused. Once the pause is over they wait for the worker that is tried.
func (p *policy) refuses(now time.Time) bool {
	return !p.openedAt.IsZero() && now.Sub(p.openedAt) < p.restart.BreakerFor
}

// proved says that a call was answered: its worker is of use, so the breaker closes. True if it was open.
func (p *policy) proved() bool {
	wasOpen := !p.openedAt.IsZero()
	p.openedAt = time.Time{}
	if wasOpen {
		p.deaths = nil
	}
	return wasOpen
}
