// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"testing"
)

// The frames that the Python side's tests read and write, too.

type vectors struct {
	Version int
	Frames  []struct {
		Name           string
		Kind, Codec    byte
		CallID         uint64 `json:"call_id"`
		Payload, Bytes string
		Buffers        []string
	}
	Malformed     []struct{ Name, Bytes string }
	RefusedHellos []struct{ Name, Payload string } `json:"refused_hellos"`
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	data, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func readVectors(t *testing.T) (v vectors) {
	t.Helper()
	data, err := os.ReadFile("../../tests/go/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	if v.Version != wireVersion || len(v.Frames) < 10 || len(v.Malformed) == 0 || len(v.RefusedHellos) == 0 {
		t.Fatal("these vectors are not of this wire")
	}
	return v
}

// readAll gives a reader bytes in pieces.
func readAll(data []byte, step int) (frames []frame, err error) {
	var reader frameReader
	for len(data) > 0 {
		count := copy(reader.space(), data[:min(step, len(data))])
		reader.received(count)
		data = data[count:]
		for {
			f, ok, err := reader.next()
			if err != nil {
				return frames, err
			}
			if !ok {
				break
			}
			f.payload = bytes.Clone(f.payload)
			for i := range f.buffers {
				f.buffers[i] = bytes.Clone(f.buffers[i])
			}
			frames = append(frames, f)
		}
	}
	return frames, nil
}

func TestFramesAreReadAndWrittenAsByPython(t *testing.T) {
	for _, one := range readVectors(t).Frames {
		t.Run(one.Name, func(t *testing.T) {
			data, payload := unhex(t, one.Bytes), unhex(t, one.Payload)
			var buffers [][]byte
			for _, text := range one.Buffers {
				buffers = append(buffers, unhex(t, text))
			}
			if written := appendFrame(nil, one.Kind, one.Codec, one.CallID, payload, buffers...); !bytes.Equal(written, data) {
				t.Errorf("written as %x, not %x", written, data)
			}
			for _, step := range []int{1, 7, 1 << 20} {
				frames, err := readAll(append(append([]byte{0}, data...), 0, 0), step)
				if err != nil || len(frames) != 1 {
					t.Fatalf("%d frames, %v", len(frames), err)
				}
				f := frames[0]
				if f.kind != one.Kind || f.codec != one.Codec || f.callID != one.CallID || !bytes.Equal(f.payload, payload) {
					t.Errorf("read as %+v", f)
				}
				if len(f.buffers) != len(buffers) {
					t.Fatalf("%d buffers", len(f.buffers))
				}
				for i := range buffers {
					if !bytes.Equal(f.buffers[i], buffers[i]) {
						t.Errorf("buffer %d is %x", i, f.buffers[i])
					}
				}
			}
		})
	}
}

// What a service at a socket says means what docs/wire.md has.
func TestWhatAServiceSaysIsUnderstood(t *testing.T) {
	said := map[string][]byte{}
	for _, one := range readVectors(t).Frames {
		said[one.Name] = unhex(t, one.Payload)
	}
	if err := checkHello(said["hello of a service at a socket"]); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(said["cancel of a service at a socket"], cancelled(0, true)) {
		t.Error("it would be told otherwise that a call is given up")
	}
	var about ready
	if err := json.Unmarshal(said["ready of a service at a socket"], &about); err != nil {
		t.Fatal(err)
	}
	if about.PID != 7 || about.MaxSize != 1<<26 || about.InFlight != 2 || len(about.Functions) != 1 {
		t.Errorf("got %+v", about)
	}
	raised := new(RemoteError)
	if err := json.Unmarshal(said["error of a service at a socket"], raised); err != nil {
		t.Fatal(err)
	}
	var died *WorkerDied
	if !errors.As(raised, &died) || died.PID != 8 || died.Status != "exit status 3" || died.Stderr[0] != "last words" {
		t.Errorf("got %+v", died)
	}
	for own, meant := range map[string]error{
		"QueueFull": ErrQueueFull, "CircuitOpen": ErrBreakerOpen, "ServiceClosed": ErrShutdown,
		"CallTimeout": context.DeadlineExceeded,
	} {
		if !errors.Is(&RemoteError{Own: own}, meant) || errors.Is(&RemoteError{Own: own}, context.Canceled) {
			t.Errorf("%s is not %v", own, meant)
		}
	}
}

func TestMalformedFramesAreRefused(t *testing.T) {
	for _, one := range readVectors(t).Malformed {
		if _, err := readAll(unhex(t, one.Bytes), 3); err == nil {
			t.Errorf("%s: was read", one.Name)
		}
	}
	for _, one := range readVectors(t).RefusedHellos {
		if checkHello(unhex(t, one.Payload)) == nil {
			t.Errorf("%s: was accepted", one.Name)
		}
	}
	if err := checkHello(helloPayload()); err != nil {
		t.Error(err)
	}
}
