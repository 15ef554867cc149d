// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestPausesDoubleAndTheBreakerOpens(t *testing.T) {
	p := policy{restart: Restart{MaxDeaths: 4, First: time.Second, Longest: 3 * time.Second}.withDefaults()}
	now := time.Unix(1000, 0)
	for _, pause := range []time.Duration{time.Second, 2 * time.Second, 3 * time.Second} {
		if until := p.died(now); until.Sub(now) != pause || p.refuses(now) {
			t.Errorf("a pause of %v, not %v", until.Sub(now), pause)
		}
	}
	if until := p.died(now); until.Sub(now) != 30*time.Second || !p.refuses(now) {
		t.Error("the fourth death does not open the breaker")
	}
	later := now.Add(30 * time.Second)
	if p.refuses(later) {
		t.Error("nothing is tried after the pause")
	}
	if p.died(later); !p.refuses(later) {
		t.Error("a death on trial does not open it again")
	}
	if !p.proved() || p.refuses(later) {
		t.Error("a call that succeeds does not close it")
	}
	if until := p.died(later); until.Sub(later) != time.Second {
		t.Error("the pauses do not begin anew")
	}
}

func TestDeathsOutsideTheWindowDoNotCount(t *testing.T) {
	p := policy{restart: Restart{MaxDeaths: 2, Window: time.Minute}.withDefaults()}
	now := time.Unix(1000, 0)
	for range 5 {
		if p.died(now); p.refuses(now) {
			t.Fatal("the breaker opened")
		}
		now = now.Add(time.Minute)
	}
}

func TestCallersAreServedInTheOrderTheyCame(t *testing.T) {
	d := dispatcher{maxQueue: 3}
	ctx := context.Background()
	order := make(chan int, 3)
	gaveUp, giveUp := context.WithCancel(ctx)
	for i, its := range []context.Context{ctx, gaveUp, ctx} {
		go func() {
			if _, err := d.take(its); err == nil {
				order <- i
			} else {
				order <- -1
			}
		}()
		for d.queued() <= i {
			time.Sleep(time.Millisecond)
		}
	}
	if _, err := d.take(ctx); !errors.Is(err, ErrQueueFull) {
		t.Errorf("a fourth one waits: %v", err)
	}
	giveUp()
	if got := <-order; got != -1 {
		t.Errorf("%d was served before there was anything", got)
	}
	w := new(worker)
	for _, wanted := range []int{0, 2} {
		d.put(w)
		if got := <-order; got != wanted {
			t.Errorf("%d was served, not %d", got, wanted)
		}
	}
	go func() {
		_, err := d.take(ctx)
		if errors.Is(err, ErrShutdown) {
			order <- -2
		}
	}()
	for d.queued() == 0 {
		time.Sleep(time.Millisecond)
	}
	d.refuse(ErrShutdown)
	if got := <-order; got != -2 {
		t.Error("who waits is not told of the end")
	}
}
