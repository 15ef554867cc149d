// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"context"
	"sync"
)

// Whose turn it is: callers get connections to workers in the order they came, each from the worker that does least; and
// no more have one at a time than may.

type dispatcher struct {
	mutex       sync.Mutex
	idle        []*connection // the one used last is at the end: its caches are warm
	waiting     []chan granted
	inFlight    int
	maxInFlight int
	maxQueue    int
	refusal     error // what callers get instead of a connection, when not nil
}

type granted struct {
	connection *connection
	err        error
}

// take returns an idle connection, once it is this caller's turn; who has had it, and again takes one, is before all others
// who wait.
func (d *dispatcher) take(ctx context.Context, again bool) (*connection, error) {
	d.mutex.Lock()
	if d.refusal != nil {
		defer d.mutex.Unlock()
		return nil, d.refusal
	}
	if d.canGrant() && (len(d.waiting) == 0 || again) {
		c := d.pick()
		d.mutex.Unlock()
		return c, nil
	}
	if len(d.waiting) >= d.maxQueue && !again {
		d.mutex.Unlock()
		return nil, ErrQueueFull
	}
	place := make(chan granted, 1)
	if again {
		d.waiting = append([]chan granted{place}, d.waiting...)
	} else {
		d.waiting = append(d.waiting, place)
	}
	d.mutex.Unlock()
	select {
	case got := <-place:
		return got.connection, got.err
	case <-ctx.Done():
	}
	d.mutex.Lock()
	for i, one := range d.waiting {
		if one == place {
			d.waiting = append(d.waiting[:i], d.waiting[i+1:]...)
			d.mutex.Unlock()
			return nil, ctx.Err()
		}
	}
	d.mutex.Unlock()
	if got := <-place; got.connection != nil { // it was given in that moment
		d.put(got.connection)
	}
	return nil, ctx.Err()
}

func (d *dispatcher) canGrant() bool { return len(d.idle) > 0 && d.inFlight < d.maxInFlight }

// pick takes the idle connection of the worker that does least; of several, the one used last.
func (d *dispatcher) pick() *connection {
	best := len(d.idle) - 1
	for i := best - 1; i >= 0 && d.idle[best].worker.inFlight > 0; i-- {
		if d.idle[i].worker.inFlight < d.idle[best].worker.inFlight {
			best = i
		}
	}
	c := d.idle[best]
	d.idle = append(d.idle[:best], d.idle[best+1:]...)
	d.inFlight++
	c.worker.inFlight++
	return c
}

// grant gives connections to those who wait longest, as long as there are any.
func (d *dispatcher) grant() {
	for len(d.waiting) > 0 && d.canGrant() {
		place := d.waiting[0]
		d.waiting = d.waiting[1:]
		place <- granted{connection: d.pick()}
	}
}

// add takes up the connections of a worker that is ready.
func (d *dispatcher) add(w *worker) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	for i := len(w.data) - 1; i >= 0; i-- { // its first is used first
		d.idle = append(d.idle, w.data[i])
	}
	d.grant()
}

// put takes a connection back from a caller.
func (d *dispatcher) put(c *connection) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.giveBack(c)
	if !c.worker.isRemoved {
		d.idle = append(d.idle, c)
	}
	d.grant()
}

// discard takes back a connection of a worker that has ended, but that a caller got before that was seen.
func (d *dispatcher) discard(c *connection) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.giveBack(c)
	d.grant()
}

func (d *dispatcher) giveBack(c *connection) {
	d.inFlight--
	c.worker.inFlight--
	if c.worker.isRemoved && c.worker.inFlight == 0 {
		c.worker.close()
	}
}

// remove takes out a worker that has ended, and closes it: now, or once the last caller that has it gives it back.
func (d *dispatcher) remove(w *worker) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	w.isRemoved = true
	left := d.idle[:0]
	for _, c := range d.idle {
		if c.worker != w {
			left = append(left, c)
		}
	}
	clear(d.idle[len(left):])
	d.idle = left
	if w.inFlight == 0 {
		w.close()
	}
}

// refuse has callers, those who wait included, get an error instead of a connection; nil to serve them again.
func (d *dispatcher) refuse(err error) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.refusal = err
	if err == nil {
		return
	}
	for _, place := range d.waiting {
		place <- granted{err: err}
	}
	d.waiting = nil
}

func (d *dispatcher) queued() int {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	return len(d.waiting)
}
