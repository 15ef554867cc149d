// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// The fast lane: a pair of slots in shared memory beside a data connection's socket; see "The lane" in docs/wire.md.
// The other side may write at any time: a number is read once, and a frame is copied out before it is parsed.

const (
	laneSlot   = 1 << 23 // memory is taken by what really goes this way only
	laneStride = 128 + laneSlot
	laneSize   = 2 * laneStride

	sysMemfdCreate = 319
	fAddSeals      = 1033
)

type lane struct {
	memory    []byte
	written   uint64 // number of the last frame sent
	read      uint64 // and of the last one seen, with the bit that announces
	mine      *uint64
	theirs    *uint64
	iSleep    *uint64
	theySleep *uint64
	outgoing  []byte
	incoming  []byte
	copied    []byte // the last frame
}

// newLane returns a lane, and the file that the worker maps.
func newLane() (*lane, *os.File, error) {
	name := []byte("atoll-lane\x00")
	fd, _, errno := syscall.Syscall(sysMemfdCreate, uintptr(unsafe.Pointer(&name[0])), 3, 0) // close on exec, seals
	if errno != 0 {
		return nil, nil, os.NewSyscallError("memfd_create", errno)
	}
	file := os.NewFile(fd, "atoll-lane")
	if err := file.Truncate(laneSize); err != nil {
		file.Close()
		return nil, nil, err
	}
	// Of one size for ever: whoever touches it never finds a page gone.
	if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, fd, fAddSeals, 7); errno != 0 {
		file.Close()
		return nil, nil, os.NewSyscallError("fcntl", errno)
	}
	memory, err := syscall.Mmap(int(fd), 0, laneSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		file.Close()
		return nil, nil, os.NewSyscallError("mmap", err)
	}
	word := func(at int) *uint64 { return (*uint64)(unsafe.Pointer(&memory[at])) }
	return &lane{
		memory:    memory,
		mine:      word(0),
		theySleep: word(64),
		outgoing:  memory[128:laneStride],
		theirs:    word(laneStride),
		iSleep:    word(laneStride + 64),
		incoming:  memory[laneStride+128 : laneSize],
	}, file, nil
}

func (l *lane) close() {
	if l.memory != nil {
		_ = syscall.Munmap(l.memory)
		l.memory = nil
	}
}

// put publishes a frame; true if the other side is to be woken. Atomic stores are full fences on this processor.
func (l *lane) put(data []byte) bool {
	copy(l.outgoing, data)
	l.written += 2
	atomic.StoreUint64(l.mine, l.written)
	return atomic.LoadUint64(l.theySleep) != 0
}

// announce says that the next frame comes over the socket.
func (l *lane) announce() {
	l.written += 2
	atomic.StoreUint64(l.mine, l.written+1)
}

func (l *lane) hasNews() bool { return atomic.LoadUint64(l.theirs) != l.read }

// sleptThrough tells of another side that has ended that it slept until then, and took nothing.
func (l *lane) sleptThrough() bool { return atomic.LoadUint64(l.theySleep) != 0 && !l.hasNews() }

func (l *lane) sleeping(is bool) {
	value := uint64(0)
	if is {
		value = 1
	}
	atomic.StoreUint64(l.iSleep, value)
}

// take returns the frame in the slot; announced if it comes over the socket; neither if there is nothing new.
func (l *lane) take() (f frame, ok, announced bool, err error) {
	number := atomic.LoadUint64(l.theirs)
	if number == l.read {
		return f, false, false, nil
	}
	if number&^1 != l.read&^1+2 {
		return f, false, false, protocolError("slot number %d after %d", number, l.read)
	}
	l.read = number
	if number&1 != 0 {
		return f, false, true, nil
	}
	var head [headerSize]byte
	copy(head[:], l.incoming)
	h, err := parseHeader(head[:])
	if err != nil {
		return f, false, false, err
	}
	if h.buffers != 0 || h.length > laneSlot-headerSize {
		return f, false, false, protocolError("a frame of %d bytes and %d buffers in a slot", h.length, h.buffers)
	}
	if h.length > len(l.copied) {
		putMemory(l.copied)
		l.copied = takeMemory(max(h.length, smallest))
	}
	payload := l.copied[:h.length:h.length]
	copy(payload, l.incoming[headerSize:])
	return frame{kind: h.kind, codec: h.codec, callID: h.callID, payload: payload}, true, false, nil
}
