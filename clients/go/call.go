// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"iter"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
	"unsafe"
)

// Args are positional arguments. Anything else that is passed to a call is its only one; nil stands for none.
type Args []any

// Kwargs are named arguments.
type Kwargs map[string]any

const (
	// Larger results are taken out of the connection before they are decoded, so that it serves the next call meanwhile.
	detachFrom = 1 << 16
	maxBatch   = 4096
	// Larger requests are not kept for the next one.
	largestRequest = 1 << 25
)

var requests = sync.Pool{New: func() any { return new(bytes.Buffer) }}

func putRequest(buffer *bytes.Buffer) {
	if buffer.Cap() <= largestRequest {
		requests.Put(buffer)
	}
}

// request writes a call but for its end, behind the place of a frame's header.
func request(name string, in any, stream bool) (*bytes.Buffer, error) {
	buffer := requests.Get().(*bytes.Buffer)
	buffer.Reset()
	var header [headerSize]byte
	buffer.Write(header[:])
	encoder := json.NewEncoder(buffer)
	encoder.SetEscapeHTML(false)
	buffer.WriteString(`{"function":`)
	err := encoder.Encode(name)
	switch in := in.(type) {
	case nil:
	case Args:
		if len(in) > 0 {
			buffer.WriteString(`,"args":`)
			err = errors.Join(err, encoder.Encode(in))
		}
	case Kwargs:
		if len(in) > 0 {
			buffer.WriteString(`,"kwargs":`)
			err = errors.Join(err, encoder.Encode(in))
		}
	case string:
		buffer.WriteString(`,"args":[`)
		if isPlain(unsafe.Slice(unsafe.StringData(in), len(in))) {
			buffer.WriteByte('"')
			buffer.WriteString(in)
			buffer.WriteByte('"')
		} else {
			err = errors.Join(err, encoder.Encode(in))
		}
		buffer.WriteByte(']')
	default:
		buffer.WriteString(`,"args":[`)
		err = errors.Join(err, encoder.Encode(in))
		buffer.WriteByte(']')
	}
	if stream {
		buffer.WriteString(`,"stream":true`)
	}
	if err != nil {
		putRequest(buffer)
		return nil, &EncodeError{err}
	}
	return buffer, nil
}

// isPlain tells whether a text stands in JSON as it is, in quotes: then it is copied, not taken apart. It looks at eight
// bytes at a time: subtracting borrows into the upper bit of those that are less, or, of a difference, zero.
func isPlain(text []byte) bool {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	at := 0
	for ; at+8 <= len(text); at += 8 {
		eight := binary.LittleEndian.Uint64(text[at:])
		quote, backslash := eight^('"'*ones), eight^('\\'*ones)
		if (eight|(eight-' '*ones)|((quote-ones)&^quote)|((backslash-ones)&^backslash))&tops != 0 {
			return false
		}
	}
	for _, one := range text[at:] {
		if one < ' ' || one == '"' || one == '\\' || one >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// An untaken is why a call failed that certainly never began: its worker had ended before.
type untaken struct{ error }

// ask makes a call by whoever is there to take it, which is the connection that it returns; for the rest see exchange. Who
// ended before taking it has done nothing of it, so it is another's turn.
func (p *Pool) ask(ctx context.Context, request *bytes.Buffer, late late) (c *connection, f frame, give bool, err error) {
	length := request.Len()
	for again := false; ; again = true {
		if c, err = p.take(ctx, again); err != nil {
			return nil, f, false, err
		}
		f, give, err = p.exchange(ctx, c, request, late)
		if _, gone := err.(*untaken); !gone {
			return c, f, give, err
		}
		p.dispatcher.discard(c)
		request.Truncate(length)
	}
}

// A late gets the answer to a call that was given up, and returns whether it has left the connection to be given back.
type late func(*connection, frame) bool

// exchange makes a call on a connection. If give is true the caller has the connection still, and gives it back once it
// has used the answer. One that comes though the call was given up is for late, if that is not nil.
func (p *Pool) exchange(ctx context.Context, c *connection, request *bytes.Buffer, late late) (f frame, give bool, err error) {
	if err := ctx.Err(); err != nil {
		return f, true, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		request.WriteString(`,"timeout":`)
		request.Write(strconv.AppendFloat(request.AvailableBuffer(), time.Until(deadline).Seconds(), 'f', 6, 64))
	}
	request.WriteByte('}')
	w := c.worker
	c.callID++
	err = c.send(ctx, kindCall, codecJSON, c.callID, request.Bytes())
	if err == nil {
		f, err = c.answer(ctx)
	}
	var tooLarge *EncodeError
	var broken *ProtocolError
	switch {
	case err == nil:
		if f.codec != codecJSON {
			err = protocolError("an answer came in codec %d", f.codec)
			w.others.kill()
		}
	case errors.As(err, &tooLarge):
		c.callID--
	case errors.As(err, &broken):
		w.others.kill()
	case errors.Is(err, errClosed):
		lost := w.others.lost(w, "call") // from here on nobody takes anything
		if c.mayBeTaken(err) {
			err = lost
		} else {
			err = &untaken{lost}
		}
	default: // ctx has ended
		var rest []byte
		var half *halfSent
		if errors.As(err, &half) {
			rest, err = bytes.Clone(half.rest), ctx.Err() // what it is part of is used for other requests from here on
		}
		p.open.Add(1)
		go func() {
			defer p.ended()
			if f, answered := p.giveUp(c, rest); !answered || late == nil || late(c, f) {
				p.dispatcher.put(c)
			}
		}()
		return f, false, err
	}
	return f, true, err
}

// giveUp has a call end whose caller has left; rest is what was not sent of it yet.
func (p *Pool) giveUp(c *connection, rest []byte) (f frame, answered bool) {
	if rest != nil {
		ctx, stop := context.WithTimeout(context.Background(), endGrace)
		defer stop()
		if c.write(ctx, rest) != nil {
			p.options.Logger.Error(p.options.words.full, append(p.options.where(), "pid", c.worker.pid)...)
			c.worker.others.kill()
			return f, false
		}
	}
	return c.worker.others.giveUp(c.worker, c)
}

// take returns a connection to a worker that is alive; see dispatcher.take.
func (p *Pool) take(ctx context.Context, again bool) (*connection, error) {
	p.metrics.queued.Add(1)
	defer p.metrics.queued.Add(-1)
	for ; ; again = true {
		c, err := p.dispatcher.take(ctx, again)
		if err != nil {
			return nil, err
		}
		if !c.worker.doomed.Load() && !c.worker.hasEnded() {
			return c, nil
		}
		p.dispatcher.discard(c)
	}
}

// Call calls a function and stores what it returns in out, a pointer, which may be nil.
//
// The deadline of ctx is told to the worker. If ctx ends first, Call returns its error at once; the Python code is then
// interrupted, and its worker ended should that not help. Errors: *RemoteError (the function raised), *WorkerDied,
// *ConnectionLost, *EncodeError, *DecodeError, ErrQueueFull, ErrBreakerOpen, ErrShutdown, and that of ctx.
func (p *Pool) Call(ctx context.Context, name string, in, out any) (err error) {
	if err := p.begin(); err != nil {
		return err
	}
	began := time.Now()
	defer func() {
		p.metrics.count(time.Since(began), err)
		p.ended()
	}()
	request, err := request(name, in, false)
	if err != nil {
		return err
	}
	defer putRequest(request)
	c, f, give, err := p.ask(ctx, request, nil)
	if give {
		if err == nil && len(f.payload) > detachFrom {
			defer putMemory(c.detach()) // whatever was decoded is a copy
			p.dispatcher.put(c)
		} else {
			defer p.dispatcher.put(c)
		}
	}
	if err != nil {
		return err
	}
	return ofContext(ctx, p.decode(c.worker, f, out))
}

// ofContext returns the error of ctx where err is what a service came to for its end: that may be seen there first.
func ofContext(ctx context.Context, err error) error {
	raised, ok := err.(*RemoteError)
	if !ok || raised.Own != "CallTimeout" && raised.Own != "Cancelled" {
		return err
	}
	if ended := ctx.Err(); ended != nil {
		return ended
	}
	if deadline, ok := ctx.Deadline(); ok && !time.Now().Before(deadline) {
		return context.DeadlineExceeded
	}
	return err // the service's own limit
}

func (p *Pool) decode(by *worker, f frame, out any) error {
	// What one that ends in order still answers says nothing of the next.
	if (p.unproven.Load() || !by.hasAnswered.Load()) && !by.hasEnded() {
		by.hasAnswered.Store(true)
		p.mutex.Lock()
		p.unproven.Store(false)
		if p.policy.proved() {
			p.options.Logger.Info(p.options.words.servesAgain, p.options.where()...)
		}
		p.mutex.Unlock()
	}
	if f.kind == kindError {
		raised := new(RemoteError)
		if err := json.Unmarshal(f.payload, raised); err != nil {
			return protocolError("an error that is none came: %v", err)
		}
		return raised
	}
	switch out := out.(type) {
	case nil:
		return nil
	case *string:
		if last := len(f.payload) - 1; out != nil && last > 0 && f.payload[0] == '"' && f.payload[last] == '"' {
			if text := f.payload[1:last]; isPlain(text) {
				*out = string(text)
				return nil
			}
		}
	}
	if err := json.Unmarshal(f.payload, out); err != nil {
		return &DecodeError{err}
	}
	return nil
}

// Call calls a function of a pool's service and returns what it returns.
func Call[Out any](ctx context.Context, p *Pool, name string, in any) (Out, error) {
	var out Out
	err := p.Call(ctx, name, in, &out)
	return out, err
}

// Stream calls a function that returns an iterator, such as a generator, and yields its items as they come. Nothing is
// produced that was not asked for, batches aside that grow while items come quickly. Leaving the loop closes the
// generator. The stream has its place at a worker to itself for as long as it lasts, so a call in the loop's body
// needs another: with MaxInFlight 1 it waits until its context ends. An error is the last that is yielded.
func Stream[Item any](ctx context.Context, p *Pool, name string, in any) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		var none Item
		s, err := p.openStream(ctx, name, in)
		if err != nil {
			yield(none, err)
			return
		}
		defer s.close()
		for batch := 1; ; batch = min(2*batch, maxBatch) {
			var answer struct {
				items []Item
				ended bool
			}
			err := s.call(ctx, "__next__", Args{s.number, batch}, &pair{&answer.items, &answer.ended})
			if err != nil {
				yield(none, err)
				return
			}
			for _, item := range answer.items {
				if !yield(item, nil) {
					return
				}
			}
			if answer.ended {
				s.number = 0
				return
			}
		}
	}
}

// A pair is a JSON array of two.
type pair struct{ first, second any }

func (p *pair) UnmarshalJSON(data []byte) error {
	parts := []any{p.first, p.second}
	return json.Unmarshal(data, &parts)
}

type stream struct {
	pool       *Pool
	connection *connection // nil once it is somebody else's
	number     int
	began      time.Time
	err        error
}

func (p *Pool) openStream(ctx context.Context, name string, in any) (*stream, error) {
	opening, err := request(name, in, true) // before the stream counts as begun: it runs code of the caller's, which may panic
	if err := p.begin(); err != nil {
		return nil, err
	}
	s := &stream{pool: p, began: time.Now()}
	if err == nil {
		defer putRequest(opening)
		err = s.answered(ctx, &s.number, func(late late) (*connection, frame, bool, error) {
			return p.ask(ctx, opening, late)
		})
	}
	if err != nil {
		s.err = err
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *stream) call(ctx context.Context, name string, args Args, out any) error {
	request, err := request(name, args, false)
	if err != nil {
		return err
	}
	defer putRequest(request)
	return s.answered(ctx, out, func(late late) (*connection, frame, bool, error) {
		f, give, err := s.pool.exchange(ctx, s.connection, request, late)
		if gone, ok := err.(*untaken); ok {
			err = gone.error // the iterator is there, and nowhere else
		}
		return s.connection, f, give, err
	})
}

// answered makes a call of the stream's, as exchange does, and stores the answer.
func (s *stream) answered(ctx context.Context, out any, exchange func(late) (*connection, frame, bool, error)) error {
	number := s.number
	c, f, give, err := exchange(func(c *connection, f frame) bool {
		if number == 0 && f.kind == kindResult && json.Unmarshal(f.payload, &number) != nil {
			return true
		}
		return s.pool.closeIterator(c, number)
	})
	if s.connection = c; !give {
		s.connection = nil
	}
	if err == nil {
		err = ofContext(ctx, s.pool.decode(c.worker, f, out))
	}
	if err != nil {
		s.err = err
	}
	return err
}

// closeIterator has an iterator end that is not read any more, whatever it has come to; 0 stands for none. It returns
// whether the caller has the connection still.
func (p *Pool) closeIterator(c *connection, number int) bool {
	if number == 0 || c.worker.doomed.Load() || c.worker.hasEnded() {
		return true
	}
	closing, err := request("__close__", Args{number}, false)
	if err != nil {
		return true
	}
	defer putRequest(closing)
	ctx, stop := context.WithTimeout(context.Background(), endGrace)
	defer stop()
	_, give, _ := p.exchange(ctx, c, closing, nil)
	return give
}

func (s *stream) close() {
	if s.connection != nil && s.pool.closeIterator(s.connection, s.number) {
		s.pool.dispatcher.put(s.connection)
	}
	s.pool.metrics.count(time.Since(s.began), s.err)
	s.pool.ended()
}
