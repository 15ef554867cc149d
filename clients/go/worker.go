// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// What is said to a worker, and heard of it, beside its calls; and how a call that nobody wants any more is ended.

const (
	termination = 300 * time.Millisecond
	endGrace    = 5 * time.Second
)

// What a call that was given up gets to end: so long once code that asks is told, and so long each of two times that
// Cancelled is raised in it.
type steps struct{ cooperation, interruption time.Duration }

var usualSteps = steps{500 * time.Millisecond, 300 * time.Millisecond}

type ready struct {
	PID         int      `json:"pid"`
	Functions   []string `json:"functions"`
	Cooperative bool     `json:"cooperative"`
	MaxSize     int      `json:"max_size"`  // of a service at a socket: bytes of the largest request
	InFlight    int      `json:"in_flight"` // and how many calls it runs at a time
}

type worker struct {
	*ends
	others  others
	about   ready
	logger  *slog.Logger
	words   *words
	steps   steps
	phase   atomic.Value // string
	state   atomic.Value // string: how a service at a socket says it is
	pong    atomic.Int64 // nanoseconds since the epoch of the last sign of life
	writing sync.Mutex   // of the control connection

	hasAnswered atomic.Bool // a call, before it ended

	// The dispatcher's:
	inFlight  int  // its connections that callers have
	isRemoved bool // it has ended, and is to be closed by the last who has one
}

func newWorker(others others, o *Options, logger *slog.Logger) *worker {
	w := &worker{ends: others.connections(), others: others, logger: logger, words: &o.words, steps: o.steps}
	w.phase.Store("start")
	w.state.Store("")
	for i, c := range w.data {
		c.worker, c.index = w, uint32(i)
	}
	return w
}

// startWorker starts a process and has it load the service.
func startWorker(ctx context.Context, o *Options) (*worker, error) {
	p, err := startProcess(o)
	if err != nil {
		return nil, err
	}
	w := newWorker(p, o, o.Logger.With("pid", p.pid))
	go w.listen()
	if err := w.load(ctx, o); err != nil {
		if errors.Is(err, errClosed) {
			err = p.lost(w, "")
		}
		p.kill()
		<-w.exited
		w.close()
		return nil, err
	}
	return w, nil
}

// hasEnded tells whether its end was seen.
func (w *worker) hasEnded() bool {
	select {
	case <-w.exited:
		return true
	default:
		return false
	}
}

// load has a worker load the service, and its further connections be served.
func (w *worker) load(ctx context.Context, o *Options) error {
	for i, c := range w.data {
		var what any
		if i == 0 {
			what = o.load()
		}
		if err := c.greet(ctx, what, &w.about); err != nil {
			return w.notReady(err)
		}
	}
	return nil
}

// greet has a connection be one that calls can be made on.
func (c *connection) greet(ctx context.Context, load any, about *ready) error {
	spin := c.spin
	c.spin = false // an interpreter takes its time
	defer func() { c.spin = spin }()
	payload, err := json.Marshal(load)
	if err != nil {
		return err
	}
	if err := c.send(ctx, kindHello, codecRaw, 0, append(make([]byte, headerSize), helloPayload()...)); err != nil {
		return err
	}
	f, err := c.wait(ctx)
	if err != nil {
		return err
	}
	if f.kind != kindHello {
		return protocolError("a frame of kind %d came where HELLO was due", f.kind)
	}
	if err := checkHello(f.payload); err != nil {
		return err
	}
	if err := c.send(ctx, kindLoad, codecJSON, 0, append(make([]byte, headerSize), payload...)); err != nil {
		return err
	}
	if f, err = c.wait(ctx); err != nil {
		return err
	}
	switch {
	case f.kind == kindReady && f.codec == codecJSON:
		if err := json.Unmarshal(f.payload, about); err != nil {
			return protocolError("READY says nothing that can be read: %v", err)
		}
		return nil
	case f.kind == kindReady && len(f.payload) == 0:
		return nil
	case f.kind == kindError && f.codec == codecJSON:
		var report struct {
			Phase, Text string
			Error       RemoteError
		}
		if err := json.Unmarshal(f.payload, &report); err != nil {
			return protocolError("an error that is none came: %v", err)
		}
		return &StartError{Phase: report.Phase, Message: report.Error.Error(), Traceback: report.Text}
	}
	return protocolError("a frame of kind %d and codec %d came where READY was due", f.kind, f.codec)
}

func (w *worker) notReady(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		phase := w.phase.Load().(string)
		return &StartError{Phase: phase, Message: "it was not ready in time, and was stopped in phase " + phase, cause: err}
	}
	return err
}

// listen hears what comes on the control connection, until its end.
func (w *worker) listen() {
	var reader frameReader
	for {
		count, err := w.control.Read(reader.space())
		if err != nil {
			return
		}
		reader.received(count)
		for {
			f, ok, err := reader.next()
			if err != nil {
				w.logger.Warn(w.words.lies, "error", err)
				w.others.kill()
				return
			}
			if !ok {
				break
			}
			switch f.kind {
			case kindPong:
				w.state.Store(string(f.payload))
				w.pong.Store(time.Now().UnixNano())
			case kindPhase:
				w.phase.Store(string(f.payload))
			case kindLog:
				w.log(f)
			case kindStacks:
				w.logger.Warn("where the worker's threads are", "stacks", string(f.payload))
			}
		}
	}
}

// log hands on a record of Python's logging; its fields are those of "LOG" in docs/wire.md.
func (w *worker) log(f frame) {
	var fields []any
	if json.Unmarshal(f.payload, &fields) != nil || len(fields) < 10 {
		return
	}
	number, _ := fields[0].(float64)
	level := slog.LevelDebug
	switch {
	case number >= 40:
		level = slog.LevelError
	case number >= 30:
		level = slog.LevelWarn
	case number >= 20:
		level = slog.LevelInfo
	}
	said, _ := fields[5].(string)
	w.logger.Log(context.Background(), level, said,
		"logger", fields[2], "call", f.callID, "exception", fields[6], "file", fields[7], "line", fields[8])
}

func (w *worker) say(kind byte, callID uint64, payload []byte) {
	w.writing.Lock()
	defer w.writing.Unlock()
	// A worker that does not read for so long answers no ping either.
	_ = w.control.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = w.control.Write(appendFrame(nil, kind, codecRaw, callID, payload))
}

func (w *worker) ping() { w.say(kindPing, 0, nil) }

// cancelled is the payload of CANCEL.
func cancelled(index uint32, force bool) []byte {
	payload := make([]byte, 5)
	binary.LittleEndian.PutUint32(payload, index)
	if force {
		payload[4] = 1
	}
	return payload
}

// lost waits for the end of a process that has closed a connection.
func (p *process) lost(w *worker, phase string) error {
	p.doomed.Store(true)
	select {
	case <-p.exited:
	case <-time.After(endGrace):
		p.kill()
		<-p.exited
	}
	if phase == "" {
		phase = w.phase.Load().(string)
	}
	return &WorkerDied{PID: p.pid, Status: p.status, Phase: phase, Stderr: p.stderr.lines()}
}

// ended waits for the answer to a call that was given up. It returns it, whether it came, and whether none ever will.
func (w *worker) ended(c *connection, patience time.Duration) (f frame, answered, broken bool) {
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	f, err := c.answer(ctx)
	var against *ProtocolError
	if errors.As(err, &against) {
		w.logger.Error(w.words.lies, "error", err)
		w.others.kill()
	}
	return f, err == nil, err != nil && !errors.Is(err, context.DeadlineExceeded)
}

// giveUp: code that asks is told, then Cancelled is raised in it, then the worker is ended.
func (p *process) giveUp(w *worker, c *connection) (frame, bool) {
	for step, patience := range []time.Duration{w.steps.cooperation, w.steps.interruption, w.steps.interruption} {
		if step == 0 && !w.about.Cooperative {
			continue
		}
		w.say(kindCancel, c.callID, cancelled(c.index, step > 0))
		if f, answered, broken := w.ended(c, patience); answered || broken {
			if broken {
				p.doomed.Store(true)
			}
			return f, answered
		}
	}
	p.doomed.Store(true)
	w.logger.Warn("a call does not let itself be cancelled; its worker is stopped")
	p.signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(termination):
		p.kill()
	}
	return frame{}, false
}

// stop lets the worker tear its service down, until ctx ends; then it is killed. It returns when it has ended.
func (w *worker) stop(ctx context.Context) error {
	w.others.letEnd()
	select {
	case <-w.exited:
		return nil
	case <-ctx.Done():
	}
	w.others.kill()
	<-w.exited
	return fmt.Errorf("atoll: the worker (pid %d) did not end in time, and was killed: %w", w.pid, context.Cause(ctx))
}
