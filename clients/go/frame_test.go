// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

func TestLargeFramesAreReadHoweverTheyCome(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var sent bytes.Buffer
	var payloads [][]byte
	for _, size := range []int{0, 10, smallest, 3 * smallest, kept + 1, 20, believed + 5, 1 << 20, 7} {
		payload := bytes.Repeat([]byte{byte(random.Uint32())}, size)
		payloads = append(payloads, payload)
		sent.Write(appendFrame(nil, kindCall, codecJSON, uint64(len(payloads)), payload))
		if size%2 == 0 {
			sent.WriteByte(0)
		}
	}
	var reader frameReader
	for number, payload := range payloads {
		for {
			f, ok, err := reader.next()
			if err != nil {
				t.Fatal(err)
			}
			if ok {
				if f.callID != uint64(number+1) || !bytes.Equal(f.payload, payload) {
					t.Fatalf("frame %d of %d bytes came as %d with %d", number+1, len(payload), f.callID, len(f.payload))
				}
				if number%2 == 0 { // the payload is somebody else's from here on
					c := connection{reader: reader}
					memory := c.detach()
					reader = c.reader
					if !bytes.Equal(f.payload, payload) {
						t.Fatal("detached, the payload is another")
					}
					clear(memory)
					putMemory(memory)
				}
				break
			}
			space := reader.space()
			count, err := sent.Read(space[:min(len(space), 1+random.IntN(200_000))])
			if err != nil {
				t.Fatalf("frame %d did not come", number+1)
			}
			reader.received(count)
		}
	}
}

func TestMemoryDoesNotFollowWhatIsOnlyAnnounced(t *testing.T) {
	var reader frameReader
	header := make([]byte, headerSize)
	putHeader(header, kindResult, codecJSON, 1, maxPayload)
	reader.received(copy(reader.space(), header))
	if _, ok, err := reader.next(); ok || err != nil {
		t.Fatal(ok, err)
	}
	if size := len(reader.space()); size > believed {
		t.Errorf("%d bytes are kept for a header", size)
	}
}

func TestWhatIsPlain(t *testing.T) {
	for one := range 256 {
		for place := range 20 {
			text := bytes.Repeat([]byte("x"), 20)
			text[place] = byte(one)
			expected := one >= ' ' && one < 0x80 && one != '"' && one != '\\'
			if isPlain(text) != expected {
				t.Errorf("byte %#x at %d", one, place)
			}
		}
	}
}
