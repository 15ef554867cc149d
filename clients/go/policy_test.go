// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"testing"
	"time"
)

func TestPausesDoubleAndTheBreakerOpens(t *testing.T) {
	p := policy{restart: Restart{MaxDeaths: 4, First: time.Second, Longest: 3 * time.Second}.or(restartOfWorkers)}
	now := time.Unix(1000, 0)
	for row, pause := range []time.Duration{time.Second, 2 * time.Second, 3 * time.Second} {
		if until := p.died(now, row+1); until.Sub(now) != pause || p.refuses(now) {
			t.Errorf("a pause of %v, not %v", until.Sub(now), pause)
		}
	}
	if until := p.died(now, 1); until.Sub(now) != 30*time.Second || !p.refuses(now) {
		t.Error("the fourth death does not open the breaker")
	}
	later := now.Add(30 * time.Second)
	if p.refuses(later) {
		t.Error("nothing is tried after the pause")
	}
	if p.died(later, 5); !p.refuses(later) {
		t.Error("a death on trial does not open it again")
	}
	if !p.proved() || p.refuses(later) {
		t.Error("a call that succeeds does not close it")
	}
	if until := p.died(later, 1); until.Sub(later) != time.Second {
		t.Error("the pauses do not begin anew")
	}
	if until := p.died(later, 2); until.Sub(later) != 2*time.Second {
		t.Error("another's answer makes a worker's pause shorter")
	}
}

func TestDeathsOutsideTheWindowDoNotCount(t *testing.T) {
	p := policy{restart: Restart{MaxDeaths: 2, Window: time.Minute}.or(restartOfWorkers)}
	now := time.Unix(1000, 0)
	for range 5 {
		if p.died(now, 1); p.refuses(now) {
			t.Fatal("the breaker opened")
		}
		now = now.Add(time.Minute)
	}
}

// It is away for two seconds or three, as an interpreter starts and imports what it needs.
func TestAServiceThatIsStartedAnewOpensNoBreaker(t *testing.T) {
	p := policy{restart: Restart{}.or(restartOfLinks)}
	lost, row := time.Unix(1000, 0), 0
	for now := lost; now.Sub(lost) < 5*time.Second; now = p.died(now, row) {
		row++
		if p.refuses(now) {
			t.Fatalf("calls are refused after %v", now.Sub(lost))
		}
	}
}
