// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"
)

// Frames: bytes only. How they travel is connection.go's.

const (
	wireVersion = 1
	headerSize  = 16

	kindHello   = 1
	kindLoad    = 2
	kindReady   = 3
	kindCall    = 4
	kindResult  = 5
	kindError   = 6
	kindPing    = 32
	kindPong    = 33
	kindPhase   = 36
	kindCancel  = 37
	kindLog     = 38
	kindRelease = 39
	kindStacks  = 40
	kindForget  = 41

	codecRaw    = 0
	codecPickle = 1
	codecJSON   = 2

	maxPayload = 1 << 30
	maxBuffers = 4096
	maxBuffer  = 1 << 36
	maxFrame   = 1 << 37
)

var magic = []byte("atol")

// A ProtocolError says that the other side broke the rules of the wire.
type ProtocolError struct{ Message string }

func (e *ProtocolError) Error() string { return "atoll: " + e.Message }

func protocolError(format string, values ...any) error {
	return &ProtocolError{fmt.Sprintf(format, values...)}
}

type frame struct {
	kind, codec byte
	callID      uint64
	payload     []byte // valid until the next frame is read
	buffers     [][]byte
}

func isKind(kind byte) bool {
	switch kind {
	case kindHello, kindLoad, kindReady, kindCall, kindResult, kindError, kindPing, kindPong, kindPhase, kindCancel,
		kindLog, kindRelease, kindStacks, kindForget:
		return true
	}
	return false
}

// putHeader writes the header of a frame without buffers.
func putHeader(at []byte, kind, codec byte, callID uint64, length int) {
	at[0], at[1], at[2], at[3] = kind, codec, 0, 0
	binary.LittleEndian.PutUint32(at[4:], uint32(length))
	binary.LittleEndian.PutUint64(at[8:], callID)
}

// appendFrame appends a frame's bytes.
func appendFrame(to []byte, kind, codec byte, callID uint64, payload []byte, buffers ...[]byte) []byte {
	var header [headerSize]byte
	putHeader(header[:], kind, codec, callID, len(payload))
	binary.LittleEndian.PutUint16(header[2:], uint16(len(buffers)))
	to = append(append(to, header[:]...), payload...)
	for _, buffer := range buffers {
		to = binary.LittleEndian.AppendUint64(to, uint64(len(buffer)))
	}
	for _, buffer := range buffers {
		to = append(to, buffer...)
	}
	return to
}

type header struct {
	kind, codec byte
	buffers     int
	length      int
	callID      uint64
}

// parseHeader checks the bounds before anything is allocated.
func parseHeader(at []byte) (header, error) {
	h := header{
		kind:    at[0],
		codec:   at[1],
		buffers: int(binary.LittleEndian.Uint16(at[2:])),
		length:  int(binary.LittleEndian.Uint32(at[4:])),
		callID:  binary.LittleEndian.Uint64(at[8:]),
	}
	if !isKind(h.kind) {
		return h, protocolError("a frame of unknown kind %d", h.kind)
	}
	if h.codec > codecJSON {
		return h, protocolError("a frame with unknown codec %d", h.codec)
	}
	if h.length > maxPayload || h.buffers > maxBuffers {
		return h, protocolError("a frame announces %d payload bytes and %d buffers; at most %d and %d are allowed",
			h.length, h.buffers, maxPayload, maxBuffers)
	}
	return h, nil
}

func helloPayload() []byte {
	payload := append([]byte(nil), magic...)
	payload = binary.LittleEndian.AppendUint16(payload, wireVersion)
	return binary.LittleEndian.AppendUint16(payload, 1<<codecJSON)
}

func checkHello(payload []byte) error {
	if len(payload) < 8 {
		return protocolError("a HELLO of %d bytes; 8 are needed", len(payload))
	}
	if !bytes.Equal(payload[:4], magic) {
		return protocolError("the other side does not speak atoll's wire: HELLO begins with %q", payload[:4])
	}
	if version := binary.LittleEndian.Uint16(payload[4:]); version != wireVersion {
		return protocolError("the other side speaks version %d of the wire, this side version %d", version, wireVersion)
	}
	if binary.LittleEndian.Uint16(payload[6:])&(1<<codecJSON) == 0 {
		return protocolError("the other side does not speak JSON")
	}
	return nil
}

// A frameReader turns a stream of bytes into frames, however it is split. Received bytes go to the slice that space
// returns, and are told to received.
type frameReader struct {
	data       []byte
	start, end int
	size       int // of the frame in the middle of which the bytes end, as far as it is known
}

const (
	smallest = 1 << 16
	// A reader whose memory has grown beyond this lets go of it once the frame was used.
	kept = 1 << 22
	// What is announced is believed up to here. Beyond, memory grows with what really arrived.
	believed = 1 << 24
)

// space returns where received bytes belong; never empty.
func (r *frameReader) space() []byte {
	if r.start == r.end {
		r.start, r.end = 0, 0
		if len(r.data) > kept {
			putMemory(r.data)
			r.data = nil
		}
	}
	have := r.end - r.start
	need := min(r.size, max(believed, 4*have))
	switch {
	case r.data == nil:
		r.data = takeMemory(max(need, smallest))
	case r.start+need > len(r.data) || len(r.data)-r.end < 1024:
		from := r.data[r.start:r.end]
		if need = max(need, have+1024); need > len(r.data) {
			larger := takeMemory(max(need, min(4*len(r.data), kept)))
			copy(larger, from)
			putMemory(r.data)
			r.data = larger
		} else {
			copy(r.data, from)
		}
		r.start, r.end = 0, have
	}
	return r.data[r.end:]
}

// Memory that large frames were received in, for the next ones: new memory is cleared first, and touched for the first
// time, which takes longer than receiving.
var memories sync.Pool

func takeMemory(size int) []byte {
	if size > smallest {
		if kept, ok := memories.Get().(*[]byte); ok && len(*kept) >= size {
			return *kept
		}
	}
	return make([]byte, size)
}

// putMemory is given memory that nobody refers to any more.
func putMemory(memory []byte) {
	if len(memory) > smallest {
		memories.Put(&memory)
	}
}

func (r *frameReader) received(count int) { r.end += count }

// next returns the next complete frame; false when more bytes are needed.
func (r *frameReader) next() (frame, bool, error) {
	for r.start < r.end && r.data[r.start] == 0 {
		r.start++ // a wake
	}
	at := r.data[r.start:r.end]
	r.size = 0
	if len(at) < headerSize {
		if len(at) > 0 && !isKind(at[0]) {
			return frame{}, false, protocolError("a frame of unknown kind %d", at[0])
		}
		return frame{}, false, nil
	}
	h, err := parseHeader(at)
	if err != nil {
		return frame{}, false, err
	}
	body := headerSize + h.length
	table := body + 8*h.buffers
	if len(at) < table {
		r.size = table
		return frame{}, false, nil
	}
	size := table
	for i := range h.buffers {
		length := binary.LittleEndian.Uint64(at[body+8*i:])
		if length > maxBuffer || uint64(size)+length > maxFrame {
			return frame{}, false, protocolError("a buffer of %d bytes was announced, too large for a frame", length)
		}
		size += int(length)
	}
	if len(at) < size {
		r.size = size
		return frame{}, false, nil
	}
	f := frame{kind: h.kind, codec: h.codec, callID: h.callID, payload: at[headerSize:body:body]}
	from := table
	for i := range h.buffers {
		length := int(binary.LittleEndian.Uint64(at[body+8*i:]))
		f.buffers = append(f.buffers, at[from:from+length:from+length])
		from += length
	}
	r.start += size
	return f, true, nil
}
