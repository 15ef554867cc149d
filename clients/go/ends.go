// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"os"
	"sync/atomic"
)

// The connections to somebody who answers calls: a process that this program started (process.go), or a service that
// listens at a socket (link.go).

type ends struct {
	pid     int
	control *os.File
	data    []*connection
	exited  chan struct{} // closed once there is nobody at the other ends
	status  string        // how it ended; to be read after that
	doomed  atomic.Bool   // their end has begun, or is being brought about: no more calls are begun
}

// others are at the other ends.
type others interface {
	connections() *ends
	// letEnd has them end in order: nothing more is asked of them.
	letEnd()
	// kill has them end now, as far as that is this program's to do.
	kill()
	// giveUp has the call in progress on a connection end, and returns what it was answered with, and whether it was: then
	// the connection goes on serving.
	giveUp(w *worker, c *connection) (frame, bool)
	// lost waits for the end of those who have closed a connection, and says how they ended.
	lost(w *worker, phase string) error
}

func (e *ends) connections() *ends { return e }

// hangUp wakes whoever reads; the descriptors stay.
func (e *ends) hangUp() {
	for _, c := range e.data {
		c.hangUp()
	}
}

// close lets go of the connections; nobody uses them any more.
func (e *ends) close() {
	if e.control != nil {
		e.control.Close()
	}
	for _, c := range e.data {
		c.close()
	}
}
