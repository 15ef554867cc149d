// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

// standIn is a worker that nobody is behind.
func standIn(connections int) *worker {
	e := &ends{exited: make(chan struct{})}
	w := &worker{ends: e}
	for range connections {
		e.data = append(e.data, &connection{worker: w})
	}
	return w
}

func untilQueued(d *dispatcher, count int) {
	for d.queued() != count {
		time.Sleep(time.Millisecond)
	}
}

func TestCallersAreServedInTheOrderTheyCame(t *testing.T) {
	d := dispatcher{maxQueue: 3, maxInFlight: 1}
	ctx := context.Background()
	order := make(chan int, 3)
	gaveUp, giveUp := context.WithCancel(ctx)
	for i, its := range []context.Context{ctx, gaveUp, ctx} {
		go func() {
			if _, err := d.take(its, false); err == nil {
				order <- i
			} else {
				order <- -1
			}
		}()
		untilQueued(&d, i+1)
	}
	if _, err := d.take(ctx, false); !errors.Is(err, ErrQueueFull) {
		t.Errorf("a fourth one waits: %v", err)
	}
	giveUp()
	if got := <-order; got != -1 {
		t.Errorf("%d was served before there was anything", got)
	}
	w := standIn(2)
	d.add(w)
	if got := <-order; got != 0 {
		t.Errorf("%d was served first", got)
	}
	if d.queued() != 1 {
		t.Error("two are served, but one may be")
	}
	d.put(w.data[0])
	if got := <-order; got != 2 {
		t.Errorf("%d was served then", got)
	}
	go func() {
		_, err := d.take(ctx, false)
		if errors.Is(err, ErrShutdown) {
			order <- -2
		}
	}()
	untilQueued(&d, 1)
	d.refuse(ErrShutdown)
	if got := <-order; got != -2 {
		t.Error("who waits is not told of the end")
	}
}

func TestNoneMayWait(t *testing.T) {
	d := dispatcher{maxInFlight: 2}
	d.add(standIn(3))
	ctx := context.Background()
	for range 2 {
		if _, err := d.take(ctx, false); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.take(ctx, false); !errors.Is(err, ErrQueueFull) {
		t.Errorf("got %v", err)
	}
}

func TestTheWorkerThatDoesLeastIsGivenACall(t *testing.T) {
	d := dispatcher{maxInFlight: 100}
	workers := []*worker{standIn(2), standIn(2), standIn(2)}
	for _, w := range workers {
		d.add(w)
	}
	ctx := context.Background()
	var taken []*connection
	for range 6 {
		c, err := d.take(ctx, false)
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, c)
		least, most := 2, 0
		for _, w := range workers {
			least, most = min(least, w.inFlight), max(most, w.inFlight)
		}
		if most-least > 1 {
			t.Errorf("one does %d calls, another %d", most, least)
		}
	}
	for _, c := range taken {
		d.put(c)
	}
	if d.inFlight != 0 || len(d.idle) != 6 {
		t.Errorf("%d calls, %d idle", d.inFlight, len(d.idle))
	}
}

func TestAWorkerThatHasEndedIsGivenNoCalls(t *testing.T) {
	d := dispatcher{maxInFlight: 100, maxQueue: 10}
	gone, here := standIn(2), standIn(1)
	d.add(gone)
	ctx := context.Background()
	kept, _ := d.take(ctx, false)
	seen, _ := d.take(ctx, false)
	d.discard(seen) // its end was seen by a caller first
	d.remove(gone)
	d.put(kept)
	if len(d.idle) != 0 || d.inFlight != 0 || gone.inFlight != 0 {
		t.Errorf("%d idle, %d calls", len(d.idle), d.inFlight)
	}
	d.add(here)
	if c, err := d.take(ctx, false); err != nil || c.worker != here {
		t.Errorf("got %v, %v", c, err)
	}
}

func TestNothingIsLostAmongManyCallersWhoGiveUp(t *testing.T) {
	d := dispatcher{maxInFlight: 3, maxQueue: 100}
	w := standIn(5)
	d.add(w)
	var group sync.WaitGroup
	for caller := range 20 {
		group.Add(1)
		go func() {
			defer group.Done()
			for turn := range 200 {
				ctx, stop := context.WithTimeout(context.Background(), time.Duration((caller*turn)%50)*time.Microsecond)
				if c, err := d.take(ctx, false); err == nil {
					d.put(c)
				}
				stop()
			}
		}()
	}
	group.Wait()
	if d.inFlight != 0 || w.inFlight != 0 || len(d.idle) != 5 || d.queued() != 0 {
		t.Errorf("%d calls, %d idle, %d wait", d.inFlight, len(d.idle), d.queued())
	}
}

func TestWhoHadATurnIsBeforeAllWhoWait(t *testing.T) {
	d := dispatcher{maxQueue: 1, maxInFlight: 1}
	ctx := context.Background()
	order := make(chan string, 2)
	for i, name := range []string{"first", "again"} {
		go func() {
			if _, err := d.take(ctx, name == "again"); err != nil {
				name = err.Error()
			}
			order <- name
		}()
		until(t, "a place, also beyond the number that may wait", func() bool { return d.queued() == i+1 })
	}
	w := standIn(1)
	d.add(w)
	if got := <-order; got != "again" {
		t.Errorf("the %s is served first", got)
	}
	d.put(w.data[0])
	if got := <-order; got != "first" {
		t.Errorf("the %s is served then", got)
	}
}

func TestAWorkerWhoseEndHasBegunIsGivenNoCalls(t *testing.T) {
	p := &Pool{dispatcher: dispatcher{maxInFlight: 100}}
	here, dying := standIn(1), standIn(2)
	p.dispatcher.add(here)
	p.dispatcher.add(dying)
	dying.doomed.Store(true)
	if c, err := p.take(context.Background(), false); err != nil || c.worker != here {
		t.Errorf("got %v, %v", c, err)
	}
	if p.dispatcher.inFlight != 1 || dying.inFlight != 0 {
		t.Errorf("%d calls, %d of them there", p.dispatcher.inFlight, dying.inFlight)
	}
}
