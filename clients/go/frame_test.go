// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
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

func TestLargeResultsBelongToWhoAskedForThem(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"lane":   func(o *Options) { o.Workers = 2 },
		"socket": func(o *Options) { o.Workers, o.NoLane = 2, true },
	} {
		t.Run(name, func(t *testing.T) {
			p, ctx := start(t, change)
			var group sync.WaitGroup
			for caller := range 4 {
				group.Add(1)
				go func() {
					defer group.Done()
					for i := range 20 {
						sent := []string{strings.Repeat(string(rune('a'+caller)), 70_000*(1+i%4)), strings.Repeat("é\n", 1+i)}
						got, err := Call[[]string](ctx, p, "echo", Args{sent})
						if err != nil || !slices.Equal(got, sent) {
							t.Errorf("caller %d, call %d: something else came, or %v", caller, i, err)
							return
						}
					}
				}()
			}
			group.Wait()
		})
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
