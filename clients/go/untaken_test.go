// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"
)

// Calls whose worker, or service, was gone before it took them: somebody else answers. One that was taken is never made
// again.

// reserve takes an idle connection, so that nobody calls on it, and stops its worker in its sleep.
func reserve(t testing.TB, p *Pool, ctx context.Context) *connection {
	t.Helper()
	for {
		c := must2(p.take(ctx, false))(t)
		sleeps := func() bool { return c.lane == nil || c.lane.sleptThrough() }
		reserved := false
		until(t, "its sleep", func() bool {
			if c.worker.hasEnded() {
				return true
			}
			if !sleeps() || !isIn(c.worker.pid, 'S') {
				return false
			}
			// It looks around now and then: what it was doing is certain only once it is stopped.
			kill(c.worker, syscall.SIGSTOP)
			until(t, "its stop", func() bool { return isIn(c.worker.pid, 'T') || c.worker.hasEnded() })
			if reserved = sleeps(); !reserved {
				kill(c.worker, syscall.SIGCONT)
			}
			return reserved
		})
		if reserved && !c.worker.hasEnded() {
			return c
		}
		p.dispatcher.discard(c) // of one that was killed before
	}
}

func kill(w *worker, number syscall.Signal) { w.others.(*process).signal(number) }

// isIn tells whether a process is in a state, as the system names it.
func isIn(pid int, state rune) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(text), fmt.Sprintf(") %c ", state))
}

// holdsUnread tells whether there is something that was sent and that the other side has not read yet.
func holdsUnread(c *connection) bool {
	count := int32(0)
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(c.fd), syscall.TIOCOUTQ, uintptr(unsafe.Pointer(&count)))
	return errno == 0 && count > 0
}

var ways = map[string]func(*Options){
	"lane":    func(*Options) {},
	"sockets": func(o *Options) { o.NoLane = true },
}

func TestACallOfAWorkerThatWasGoneBeforeIsAnsweredByAnother(t *testing.T) {
	for name, change := range ways {
		t.Run(name, func(t *testing.T) {
			p, ctx := start(t, func(o *Options) { change(o); o.Workers = 2 })
			for _, call := range []func(){
				func() {
					if sum := must2(Call[int](ctx, p, "add", Args{1, 1}))(t); sum != 2 {
						t.Errorf("1 + 1 is %d", sum)
					}
				},
				func() {
					last := -1
					for number, err := range Stream[int](ctx, p, "count", 3) {
						last = must(t, number, err)
					}
					if last != 2 {
						t.Errorf("the last item is %d", last)
					}
				},
			} {
				for range 10 {
					c := reserve(t, p, ctx)
					kill(c.worker, syscall.SIGKILL)
					p.dispatcher.put(c) // and it is the one that is used next
					call()
				}
			}
			if died := p.metrics.calls[outcomeDied].Load(); died != 0 {
				t.Errorf("%d calls count as died", died)
			}
		})
	}
}

func TestNoCallFailsWhileIdleWorkersAreKilled(t *testing.T) {
	for name, change := range ways {
		t.Run(name, func(t *testing.T) {
			p, ctx := start(t, func(o *Options) { change(o); o.Workers = 3 })
			var stop atomic.Bool
			var group sync.WaitGroup
			for caller := range 4 {
				group.Add(1)
				go func() {
					defer group.Done()
					for i := 0; !stop.Load(); i++ {
						if sum, err := Call[int](ctx, p, "add", Args{caller, i}); err != nil || sum != caller+i {
							t.Errorf("%d, %v", sum, err)
							return
						}
					}
				}()
			}
			for range 20 {
				c := reserve(t, p, ctx)
				kill(c.worker, syscall.SIGKILL)
				p.dispatcher.put(c)
			}
			stop.Store(true)
			group.Wait()
		})
	}
}

// A worker that is stopped does not take what comes, and ends without having done so.
func TestACallThatAStoppedWorkerDidNotTakeIsAnsweredByTheNext(t *testing.T) {
	for name, change := range ways {
		t.Run(name, func(t *testing.T) {
			// None may wait, but for who had its turn.
			p, ctx := start(t, func(o *Options) { change(o); o.MaxQueue = -1 })
			c := reserve(t, p, ctx)
			p.dispatcher.put(c)
			began, result := newMark(t), make(chan error, 1)
			go func() { result <- p.Call(ctx, "sleep", Args{0.01, began}, nil) }()
			until(t, "the call", func() bool { return holdsUnread(c) })
			kill(c.worker, syscall.SIGKILL)
			if err := <-result; err != nil || began.count() != 1 {
				t.Errorf("it began %d times, and came to %v", began.count(), err)
			}
		})
	}
}

func TestTheDeadlineOfACallThatNobodyTookIsWhatItWas(t *testing.T) {
	p, ctx := start(t, func(o *Options) { o.Restart.First = longest })
	c := reserve(t, p, ctx)
	p.dispatcher.put(c)
	its := deadline{ctx, make(chan struct{})}
	result := make(chan error, 1)
	go func() { result <- p.Call(its, "add", Args{1, 1}, nil) }()
	until(t, "the call", func() bool { return holdsUnread(c) })
	kill(c.worker, syscall.SIGKILL)
	until(t, "its second turn", func() bool { return p.dispatcher.queued() == 1 })
	close(its.done)
	if err := <-result; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestACallThatWasTakenIsMadeOnce(t *testing.T) {
	for name, change := range ways {
		t.Run(name, func(t *testing.T) {
			p, ctx := start(t, change)
			for range 5 {
				began, result := newMark(t), make(chan error, 1)
				go func() { result <- p.Call(ctx, "sleep", Args{1000, began}, nil) }()
				began.wait(t)
				kill(p.current.Load(), syscall.SIGKILL)
				var died *WorkerDied
				if err := <-result; !errors.As(err, &died) || died.Status != "signal: killed" || began.count() != 1 {
					t.Errorf("it began %d times, and came to %v", began.count(), err)
				}
			}
			if died := p.metrics.calls[outcomeDied].Load(); died != 5 {
				t.Errorf("%d calls count as died", died)
			}
		})
	}
}

// What a stream has begun is with one worker, so its items are not asked of another.
func TestAStreamEndsWithItsWorker(t *testing.T) {
	for name, change := range ways {
		t.Run(name, func(t *testing.T) {
			p, ctx := start(t, change)
			var died *WorkerDied
			var failure error
			for _, failure = range Stream[int](ctx, p, "count", 1_000_000) {
				if failure == nil {
					kill(p.current.Load(), syscall.SIGKILL)
				}
			}
			if !errors.As(failure, &died) {
				t.Errorf("got %v", failure)
			}
			if _, plain := failure.(*WorkerDied); !plain {
				t.Errorf("it is a %T", failure)
			}
		})
	}
}

// A service at a socket that hangs up before it has read a call: the call is made once the service is connected to again.
func TestACallThatAServiceDidNotReadIsMadeAgain(t *testing.T) {
	for name, leave := range map[string]func(*testing.T, net.Conn){
		"before it is written": func(*testing.T, net.Conn) {},
		"before it is read": func(t *testing.T, conn net.Conn) {
			raw := must2(conn.(*net.UnixConn).SyscallConn())(t)
			_ = raw.Read(func(fd uintptr) bool { // until something is there
				_, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
				return err != syscall.EAGAIN
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			var connections, calls atomic.Int64
			left := make(chan struct{})
			path := lying(t, func(conn net.Conn) {
				if connections.Add(1) != 2 { // the first is for signs of life, the second for calls
					greets(func(conn net.Conn, f frame) {
						calls.Add(1)
						write(appendFrame(nil, kindResult, codecJSON, f.callID, []byte("7")))(conn, f)
					})(conn)
					return
				}
				for range 2 {
					f, err := readFrame(bufio.NewReaderSize(conn, headerSize))
					if err != nil {
						t.Error(err)
					}
					answer := appendFrame(nil, kindHello, codecRaw, 0, helloPayload())
					if f.kind == kindLoad {
						answer = appendFrame(nil, kindReady, codecJSON, 0, []byte(`{"functions":["f"]}`))
					}
					_, _ = conn.Write(answer)
				}
				leave(t, conn)
				conn.Close()
				close(left)
			})
			p, ctx := linked(t, path, nil)
			if name == "before it is written" {
				<-left
			}
			if got := must2(Call[int](ctx, p, "f", nil))(t); got != 7 || calls.Load() != 1 {
				t.Errorf("it was called %d times, and said %d", calls.Load(), got)
			}
		})
	}
}
