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
	cooperation  = 500 * time.Millisecond
	interruption = 300 * time.Millisecond
	termination  = 300 * time.Millisecond
	endGrace     = 5 * time.Second
)

type ready struct {
	PID         int      `json:"pid"`
	Functions   []string `json:"functions"`
	Streams     []string `json:"streams"`
	Cooperative bool     `json:"cooperative"`
}

type worker struct {
	*process
	about   ready
	logger  *slog.Logger
	phase   atomic.Value // string
	pong    atomic.Int64 // nanoseconds since the epoch of the last sign of life
	writing sync.Mutex   // of the control connection

	isRemoved bool // the dispatcher's: it has ended, and is to be closed by who has it
}

// startWorker starts a process and has it load the service.
func startWorker(ctx context.Context, o *Options) (*worker, error) {
	p, err := startProcess(o)
	if err != nil {
		return nil, err
	}
	w := &worker{process: p, logger: o.Logger.With("pid", p.pid)}
	w.phase.Store("start")
	go w.listen()
	if err := w.load(ctx, o); err != nil {
		if errors.Is(err, errClosed) {
			err = w.died("")
		}
		w.kill()
		<-w.exited
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *worker) load(ctx context.Context, o *Options) error {
	c := w.data[0]
	spin := c.spin
	c.spin = false // an interpreter takes its time
	defer func() { c.spin = spin }()
	if err := c.send(kindHello, codecRaw, 0, append(make([]byte, headerSize), helloPayload()...)); err != nil {
		return err
	}
	f, err := c.wait(ctx)
	if err != nil {
		return w.notReady(err)
	}
	if f.kind != kindHello {
		return protocolError("a frame of kind %d came where HELLO was due", f.kind)
	}
	if err := checkHello(f.payload); err != nil {
		return err
	}
	load, err := json.Marshal(o.load())
	if err != nil {
		return err
	}
	if err := c.send(kindLoad, codecJSON, 0, append(make([]byte, headerSize), load...)); err != nil {
		return err
	}
	if f, err = c.wait(ctx); err != nil {
		return w.notReady(err)
	}
	switch {
	case f.kind == kindReady && f.codec == codecJSON:
		return json.Unmarshal(f.payload, &w.about)
	case f.kind == kindError && f.codec == codecJSON:
		var report struct {
			Phase, Text string
			Error       RemoteError
		}
		if err := json.Unmarshal(f.payload, &report); err != nil {
			return err
		}
		return &StartError{Phase: report.Phase, Message: report.Error.Error(), Traceback: report.Text}
	}
	return protocolError("a frame of kind %d and codec %d came where READY was due", f.kind, f.codec)
}

func (w *worker) notReady(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		phase := w.phase.Load().(string)
		return &StartError{Phase: phase, Message: "it was not ready in time, and was stopped in phase " + phase}
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
				w.logger.Warn("the worker broke the rules of the wire", "error", err)
				w.kill()
				return
			}
			if !ok {
				break
			}
			switch f.kind {
			case kindPong:
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

func (w *worker) cancel(callID uint64, force bool) {
	payload := make([]byte, 5) // index of the data connection, and whether to interrupt
	binary.LittleEndian.PutUint32(payload, 0)
	if force {
		payload[4] = 1
	}
	w.say(kindCancel, callID, payload)
}

// died waits for the end of a process that has closed its connection, and says how it ended.
func (w *worker) died(phase string) error {
	select {
	case <-w.exited:
	case <-time.After(endGrace):
		w.kill()
		<-w.exited
	}
	if phase == "" {
		phase = w.phase.Load().(string)
	}
	return &WorkerDied{PID: w.pid, Status: w.status, Phase: phase, Stderr: w.stderr.lines()}
}

// end has the call in progress end: code that asks is told, then Cancelled is raised in it, then the worker is ended.
// It returns whether the worker goes on serving.
func (w *worker) end() bool {
	c := w.data[0]
	over := func(patience time.Duration) (bool, bool) {
		ctx, stop := context.WithTimeout(context.Background(), patience)
		defer stop()
		_, err := c.answer(ctx)
		var broken *ProtocolError
		if errors.As(err, &broken) {
			w.logger.Error("the worker broke the rules of the wire", "error", err)
			w.kill()
		}
		return err == nil, err != nil && !errors.Is(err, context.DeadlineExceeded)
	}
	steps := []time.Duration{cooperation, interruption, interruption}
	for step, patience := range steps {
		if step == 0 && !w.about.Cooperative {
			continue
		}
		w.cancel(c.callID, step > 0)
		if ended, broken := over(patience); ended || broken {
			return ended
		}
	}
	w.logger.Warn("a call does not let itself be cancelled; its worker is stopped")
	w.signal(syscall.SIGTERM)
	select {
	case <-w.exited:
	case <-time.After(termination):
		w.kill()
	}
	return false
}

// stop lets the worker tear its service down, until ctx ends; then it is killed. It returns when it has ended.
func (w *worker) stop(ctx context.Context) error {
	for _, c := range w.data {
		c.hangUp()
	}
	select {
	case <-w.exited:
		return nil
	case <-ctx.Done():
	}
	w.kill()
	<-w.exited
	return fmt.Errorf("atoll: the worker (pid %d) did not end in time, and was killed: %w", w.pid, ctx.Err())
}
