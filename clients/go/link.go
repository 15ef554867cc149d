// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"
)

// Connections to a service that somebody else runs, and that listens at a socket; see "A service at a socket" in
// docs/wire.md. One is for signs of life alone: when it ends, no call is begun on the others any more, and new ones are
// made. A call in progress goes on: a service that ends in order still answers it.

type link struct {
	ends
	path string
	once sync.Once
}

// dial connects to the socket once.
func dial(ctx context.Context, path string) (*connection, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	// A descriptor of our own: Go's cannot be read but through its scheduler.
	copied, failure := -1, error(nil)
	if err := raw.Control(func(fd uintptr) {
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
		if copied, failure = syscall.Dup(int(fd)); failure == nil {
			syscall.CloseOnExec(copied)
			failure = syscall.SetNonblock(copied, true)
		}
	}); err != nil || failure != nil {
		return nil, errors.Join(err, failure)
	}
	return newConnection(copied, nil)
}

// startLink connects to a service as often as calls may be in progress, or as it runs them at a time.
func startLink(ctx context.Context, o *Options) (w *worker, err error) {
	l := &link{ends: ends{exited: make(chan struct{})}, path: o.socket}
	defer func() {
		if err != nil {
			l.close()
			var remote *StartError
			if errors.As(err, &remote) {
				remote.socket = o.socket
			} else {
				err = &ConnectionLost{Path: o.socket, Err: err}
			}
		}
	}()
	var about ready
	greeted := func() (*connection, error) {
		c, err := dial(ctx, o.socket)
		if err != nil {
			return nil, err
		}
		c.spin = !o.NoSpin
		if err := c.greet(ctx, nil, &about); err != nil {
			c.close()
			return nil, err
		}
		return c, nil
	}
	first, err := greeted()
	if err != nil {
		return nil, err
	}
	l.control, l.pid = first.file, about.PID
	_ = l.control.SetReadDeadline(time.Time{}) // greeting has set one
	count := o.MaxInFlight
	if count == 0 {
		count = max(1, about.InFlight)
	}
	for range count {
		c, err := greeted()
		if err != nil {
			return nil, err
		}
		c.largest = about.MaxSize
		l.data = append(l.data, c)
	}
	w = newWorker(l, o, o.Logger.With("socket", o.socket))
	w.about = about
	go func() {
		w.listen() // until its end
		l.retire()
	}()
	w.ping()
	return w, nil
}

// retire has no more calls begun.
func (l *link) retire() {
	l.once.Do(func() {
		l.status = "connection closed"
		close(l.exited)
	})
}

// kill ends all connections; the service goes on.
func (l *link) kill() {
	l.retire()
	if raw, err := l.control.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = syscall.Shutdown(int(fd), syscall.SHUT_RDWR) })
	}
	l.hangUp()
}

func (l *link) letEnd() { l.kill() }

// giveUp says so to the service, which sees to it that the code ends, and answers at once.
func (l *link) giveUp(w *worker, c *connection) (f frame, answered bool) {
	ctx, stop := context.WithTimeout(context.Background(), endGrace)
	defer stop()
	cancel := append(make([]byte, headerSize), cancelled(0, true)...)
	broken := errors.Is(c.send(ctx, kindCancel, codecRaw, c.callID, cancel), errClosed)
	if !broken {
		f, answered, broken = w.ended(c, endGrace)
	}
	switch {
	case broken: // the others may be answered still
		l.retire()
	case !answered:
		l.kill()
	}
	return f, answered
}

func (l *link) lost(*worker, string) error {
	l.retire()
	return &ConnectionLost{Path: l.path, Err: errClosed}
}

// whyNot returns why calls of a service would fail, in its own words.
func (l *link) whyNot(w *worker) error {
	switch state := w.state.Load().(string); state {
	case "", "new", "running", "half-open":
		return nil
	case "open":
		return ErrBreakerOpen
	default:
		return fmt.Errorf("atoll: the service at %s says that it is %q", l.path, state)
	}
}

// Dial connects to a service that listens at a socket, as `atoll serve --socket PATH` has it, and returns what Start
// does. Connections that end are made anew, with the pauses and the breaker of Options.Restart.
//
// Options about workers, from Python to Concurrency, are not for it. Options.MaxInFlight says how many connections there
// are; if it is 0, as many as the service runs calls at a time.
func Dial(ctx context.Context, path string, options Options) (*Pool, error) {
	for name, given := range map[string]bool{
		"Python": options.Python != "", "WorkerFolder": options.WorkerFolder != "", "Service": options.Service != "",
		"Module": options.Module != "", "Class": options.Class != "", "SysPath": options.SysPath != nil,
		"Environ": options.Environ != nil, "Workers": options.Workers != 0, "Concurrency": options.Concurrency != 0,
	} {
		if given {
			return nil, fmt.Errorf("atoll: Options.%s is about workers that Start starts; Dial connects to a service that has its own", name)
		}
	}
	if path == "" {
		return nil, errors.New("atoll: Dial needs the path of a socket")
	}
	options.socket = path
	if err := options.complete(); err != nil {
		return nil, err
	}
	return open(ctx, options, startLink)
}
