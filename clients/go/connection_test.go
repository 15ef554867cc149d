// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"context"
	"syscall"
	"testing"
	"time"
)

// connected returns a connection, and the descriptor of its other end.
func connected(t *testing.T) (*connection, int) {
	t.Helper()
	pair, err := closedOnExec(syscall.SOCK_STREAM)
	if err == nil {
		err = syscall.SetNonblock(pair[0], true)
	}
	if err != nil {
		t.Fatal(err)
	}
	c := must2(newConnection(pair[0], nil))(t)
	t.Cleanup(func() {
		c.close()
		_ = syscall.Close(pair[1])
	})
	return c, pair[1]
}

// Who does not get the processor back at once sleeps, for some time, and then tries again.
func TestWhereOthersWantTheProcessorAnAnswerIsSleptFor(t *testing.T) {
	c, other := connected(t)
	answer := appendFrame(nil, kindResult, codecJSON, 1, []byte("1"))
	yielded := 0
	c.yield = func() {
		yielded++
		time.Sleep(2 * crowd) // others have it
		if yielded <= 2 {
			_, _ = syscall.Write(other, answer)
		}
	}
	wait := func() {
		c.patient = false // however long the last one took
		if f, err := c.wait(context.Background()); err != nil || f.kind != kindResult {
			t.Fatal(f, err)
		}
	}
	wait()
	for range crowdedWaits {
		time.AfterFunc(time.Microsecond, func() { _, _ = syscall.Write(other, answer) })
		wait()
	}
	if yielded != 1 {
		t.Errorf("%d yields", yielded)
	}
	wait()
	if yielded != 2 {
		t.Errorf("%d yields", yielded)
	}
}
