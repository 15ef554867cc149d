// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"
)

// One end of a data connection: moving frames, and waiting for them. One goroutine at a time uses it. The caller's own
// goroutine writes and reads; there is no other that hands frames on.

const (
	polls  = 50
	yields = 60
	// A sleep ends after this long to look again, so that even a lost wake would not hang a call.
	longestNap = time.Second
	// Calls that took longer than this are waited for asleep the next time.
	patience = 500 * time.Microsecond
	// Some yields take as long as this only if others had the processor meanwhile, who keep it for milliseconds each time;
	// what yields keeps it from the rest of this program, too. Who sleeps is woken, and gets it back at once. So that many
	// waits from there on are slept through.
	crowd        = 300 * time.Microsecond
	crowdedWaits = 200
)

var (
	errClosed = errors.New("atoll: the connection is closed")
	errUnsent = fmt.Errorf("%w, and not all of a frame was written", errClosed)
)

type connection struct {
	fd        int
	file      *os.File
	raw       syscall.RawConn
	lane      *lane
	reader    frameReader
	announced bool
	byLane    bool // the last frame came that way
	bySlot    bool // the last one was sent that way
	unread    bool // the other side closed it, and had not read all that was sent
	spin      bool
	patient   bool
	yield     func()
	crowded   int // so many waits are to be slept through, because others want the processor
	callID    uint64
	largest   int     // bytes of a payload that the other side takes; 0: as the wire has it
	worker    *worker // at its other end
	index     uint32  // which of the worker's it is
}

// newConnection takes over a non-blocking socket.
func newConnection(fd int, lane *lane) (*connection, error) {
	file := os.NewFile(uintptr(fd), "atoll-data")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &connection{fd: fd, file: file, raw: raw, lane: lane, spin: true, yield: schedYield}, nil
}

// hangUp wakes whoever reads; the descriptor stays.
func (c *connection) hangUp() { _ = syscall.Shutdown(c.fd, syscall.SHUT_RDWR) }

func (c *connection) close() {
	c.file.Close()
	if c.lane != nil {
		c.lane.close()
	}
}

// detach leaves the payload of the last frame to whoever has it, and returns the memory it is in; the next one is received
// elsewhere.
func (c *connection) detach() []byte {
	if c.byLane {
		memory := c.lane.copied
		c.lane.copied = nil
		return memory
	}
	memory := c.reader.data
	rest := memory[c.reader.start:c.reader.end]
	c.reader = frameReader{end: len(rest)}
	if len(rest) > 0 {
		c.reader.data = append(make([]byte, 0, max(len(rest), smallest)), rest...)[:max(len(rest), smallest)]
	}
	return memory
}

// send sends a frame whose header's place is the first 16 bytes of data. If ctx ends in the middle of that, the error is a
// *halfSent.
func (c *connection) send(ctx context.Context, kind, codec byte, callID uint64, data []byte) error {
	if largest := cmp.Or(c.largest, maxPayload); len(data)-headerSize > largest {
		return &EncodeError{fmt.Errorf("they are %d bytes as JSON; at most %d are taken", len(data)-headerSize, largest)}
	}
	putHeader(data, kind, codec, callID, len(data)-headerSize)
	if c.lane != nil {
		if len(data) <= laneSlot {
			c.bySlot = true
			if !c.lane.put(data) {
				return nil
			}
			if err := c.write(ctx, []byte{0}); !errors.Is(err, errClosed) {
				return err
			}
			return nil // it may have answered before it ended: who waits for that hears either
		}
		c.lane.announce()
		c.bySlot = false
	}
	return c.write(ctx, data)
}

// A halfSent says that the rest of a frame is still to be sent.
type halfSent struct{ rest []byte }

func (e *halfSent) Error() string { return "atoll: a frame was sent in part" }

func (c *connection) write(ctx context.Context, data []byte) error {
	for {
		count, err := syscall.Write(c.fd, data)
		data = data[max(count, 0):]
		switch {
		case err == nil && len(data) == 0:
			return nil
		case err == syscall.EAGAIN:
			return c.writeRest(ctx, data)
		case err != nil && err != syscall.EINTR:
			return errUnsent
		}
	}
}

// writeRest writes what the other side has no room for yet.
func (c *connection) writeRest(ctx context.Context, data []byte) error {
	_ = c.file.SetWriteDeadline(time.Time{})
	defer c.endWith(ctx, c.file.SetWriteDeadline)()
	count, err := c.file.Write(data)
	if err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return &halfSent{data[count:]}
	}
	if err != nil {
		return errUnsent
	}
	return nil
}

// endWith has reading or writing end when ctx does, until the function that it returns is called.
func (c *connection) endWith(ctx context.Context, setDeadline func(time.Time) error) func() {
	if ctx.Done() == nil {
		return func() {}
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = setDeadline(time.Unix(1, 0))
		close(fired)
	})
	return func() {
		if !stop() {
			<-fired
		}
	}
}

// poll returns the next frame if it is there.
func (c *connection) poll() (frame, bool, error) {
	if c.lane != nil && !c.announced {
		f, ok, announced, err := c.lane.take()
		c.announced, c.byLane = announced, ok
		if ok || err != nil || !announced {
			return f, ok, err
		}
	}
	for {
		f, ok, err := c.reader.next()
		if ok || err != nil {
			c.announced = false
			return f, ok, err
		}
		count, errno := c.receive()
		if errno == syscall.EAGAIN || errno == syscall.EINTR {
			return f, false, nil
		}
		if errno != 0 || count == 0 {
			return f, false, errClosed
		}
	}
}

// receive reads what the socket holds now, without a word to Go's scheduler: it takes a microsecond.
func (c *connection) receive() (int, syscall.Errno) {
	space := c.reader.space()
	count, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(c.fd),
		uintptr(unsafe.Pointer(unsafe.SliceData(space))), uintptr(len(space)), syscall.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		c.unread = c.unread || errno == syscall.ECONNRESET // so Linux has it; elsewhere the end looks like any other
		return 0, errno
	}
	c.reader.received(int(count))
	return int(count), 0
}

// wait returns the next frame. An error of ctx leaves the connection in the middle of a call: another wait goes on.
func (c *connection) wait(ctx context.Context) (frame, error) {
	if c.spin && !c.patient {
		if c.lane != nil {
			for range polls {
				if c.lane.hasNews() {
					break
				}
			}
		}
		if f, ok, err := c.yieldFor(); ok || err != nil {
			return f, err
		}
	}
	began := time.Now()
	f, err := c.sleep(ctx)
	c.patient = time.Since(began) > patience
	return f, err
}

// yieldFor returns the next frame if it comes while this side lets others have the processor, as long as they give it back
// soon.
func (c *connection) yieldFor() (frame, bool, error) {
	f, ok, err := c.poll()
	if ok || err != nil || c.crowded > 0 {
		c.crowded = max(0, c.crowded-1)
		return f, ok, err
	}
	began := time.Now()
	for range yields {
		c.yield()
		f, ok, err = c.poll()
		if time.Since(began) > crowd {
			c.crowded = crowdedWaits
			break
		}
		if ok || err != nil {
			break
		}
	}
	return f, ok, err
}

func (c *connection) sleep(ctx context.Context) (frame, error) {
	defer c.endWith(ctx, c.file.SetReadDeadline)()
	for {
		f, ok, err := c.nap(ctx)
		if ok || err != nil {
			return f, err
		}
		if err := ctx.Err(); err != nil {
			return frame{}, err
		}
	}
}

func (c *connection) nap(ctx context.Context) (frame, bool, error) {
	slot := c.lane != nil && !c.announced
	if slot {
		c.lane.sleeping(true)
		defer c.lane.sleeping(false)
		if c.lane.hasNews() {
			return c.poll()
		}
	}
	_ = c.file.SetReadDeadline(time.Now().Add(longestNap))
	if ctx.Err() != nil { // its end may have been said before the line above
		return frame{}, false, nil
	}
	count, errno := 0, syscall.Errno(0)
	err := c.raw.Read(func(uintptr) bool {
		count, errno = c.receive()
		return errno != syscall.EAGAIN && errno != syscall.EINTR
	})
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return c.poll()
		}
		return frame{}, false, errClosed
	}
	if errno != 0 || count == 0 {
		// What a dying worker still published in its slot counts as said.
		if slot && c.lane.hasNews() {
			return c.poll()
		}
		return frame{}, false, errClosed
	}
	return c.poll()
}

// answer waits for the answer to the call in progress.
func (c *connection) answer(ctx context.Context) (frame, error) {
	f, err := c.wait(ctx)
	if err != nil {
		return f, err
	}
	if f.kind != kindResult && f.kind != kindError {
		return f, protocolError("a frame of kind %d came where an answer was due", f.kind)
	}
	if f.callID != c.callID {
		return f, protocolError("an answer carries call id %d, but %d is the one in turn", f.callID, c.callID)
	}
	return f, nil
}

// mayBeTaken tells whether the other side may have taken the frame that was sent last, once it has ended and err has come
// of that. It has not if it never got all of it. Nor if its flag says in the lane that it sleeps: who takes a frame lowers
// that first.
func (c *connection) mayBeTaken(err error) bool {
	switch {
	case errors.Is(err, errUnsent):
		return false
	case c.lane == nil:
		return !c.unread
	}
	return !c.bySlot || !c.lane.sleptThrough()
}
