// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"context"
	"sync"
)

// Whose turn it is: callers get workers in the order they came.

type dispatcher struct {
	mutex    sync.Mutex
	idle     []*worker // the one used last is at the end: its caches are warm
	gone     []*worker // that have ended, and are still to be removed
	waiting  []chan granted
	maxQueue int
	refusal  error // what callers get instead of a worker, when not nil
}

type granted struct {
	worker *worker
	err    error
}

// take returns an idle worker, once it is this caller's turn.
func (d *dispatcher) take(ctx context.Context) (*worker, error) {
	d.mutex.Lock()
	if d.refusal != nil {
		defer d.mutex.Unlock()
		return nil, d.refusal
	}
	if last := len(d.idle) - 1; last >= 0 {
		w := d.idle[last]
		d.idle = d.idle[:last]
		d.mutex.Unlock()
		return w, nil
	}
	if len(d.waiting) >= d.maxQueue {
		d.mutex.Unlock()
		return nil, ErrQueueFull
	}
	place := make(chan granted, 1)
	d.waiting = append(d.waiting, place)
	d.mutex.Unlock()
	select {
	case got := <-place:
		return got.worker, got.err
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
	if got := <-place; got.worker != nil { // it was given in that moment
		d.put(got.worker)
	}
	return nil, ctx.Err()
}

// put gives a worker to whoever waits longest; or closes it, if it was removed meanwhile.
func (d *dispatcher) put(w *worker) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if w.isRemoved {
		w.close()
		return
	}
	if len(d.waiting) > 0 {
		place := d.waiting[0]
		d.waiting = d.waiting[1:]
		place <- granted{worker: w}
		return
	}
	d.idle = append(d.idle, w)
}

// remove takes out a worker that has ended, and closes it: now, or once the caller that has it gives it back.
func (d *dispatcher) remove(w *worker) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	w.isRemoved = true
	for _, list := range []*[]*worker{&d.idle, &d.gone} {
		for i, one := range *list {
			if one == w {
				*list = append((*list)[:i], (*list)[i+1:]...)
				w.close()
				return
			}
		}
	}
}

// refuse has callers, those who wait included, get an error instead of a worker; nil to serve them again.
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

// discard gives up a worker that has ended, but that a caller got before that was seen.
func (d *dispatcher) discard(w *worker) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if w.isRemoved {
		w.close()
		return
	}
	d.gone = append(d.gone, w)
}
