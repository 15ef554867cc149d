// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// pyproc's wire, by the least that a client and a worker of it can be: a length of four bytes, and JSON; one connection
// for each caller, one call at a time on each.

const maxFrame = 10 << 20

func readFrame(from *bufio.Reader, into []byte) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(from, head[:]); err != nil {
		return into, err
	}
	length := int(binary.BigEndian.Uint32(head[:]))
	if length > maxFrame {
		return into, fmt.Errorf("a frame of %d bytes", length)
	}
	if cap(into) < length {
		into = make([]byte, length)
	}
	into = into[:length]
	_, err := io.ReadFull(from, into)
	return into, err
}

func writeFrame(to net.Conn, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	var head [4]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(text)))
	buffers := net.Buffers{head[:], text}
	_, err = buffers.WriteTo(to)
	return err
}

type wireRequest struct {
	ID     uint64 `json:"id"`
	Method string `json:"method"`
	Body   any    `json:"body"`
}

type wireReply struct {
	ID    uint64          `json:"id"`
	OK    bool            `json:"ok"`
	Body  json.RawMessage `json:"body"`
	Error string          `json:"error"`
}

type wireClient struct {
	conn   net.Conn
	reader *bufio.Reader
	buffer []byte
	id     uint64
}

func (c *wireClient) call(method string, in, out any) error {
	c.id++
	if err := writeFrame(c.conn, wireRequest{c.id, method, in}); err != nil {
		return err
	}
	var err error
	if c.buffer, err = readFrame(c.reader, c.buffer); err != nil {
		return err
	}
	var got wireReply
	if err := json.Unmarshal(c.buffer, &got); err != nil {
		return err
	}
	if got.ID != c.id {
		return fmt.Errorf("reply %d to request %d", got.ID, c.id)
	}
	if !got.OK {
		return errors.New(got.Error)
	}
	return json.Unmarshal(got.Body, out)
}

// openWire starts workers that listen at sockets, and waits until they do.
func openWire(name, place string, command func(path string) *exec.Cmd) (contender, func(), error) {
	var started []*exec.Cmd
	var paths []string
	done := func() {
		for _, one := range started {
			_ = one.Process.Signal(syscall.SIGINT)
			late := time.AfterFunc(5*time.Second, func() { _ = one.Process.Kill() })
			_ = one.Wait()
			late.Stop()
		}
	}
	for number := range workers {
		path := filepath.Join(place, fmt.Sprintf("%d.%d", len(finally), number))
		one := command(path)
		one.Stderr = os.Stderr
		one.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := one.Start(); err != nil {
			done()
			return contender{}, nil, err
		}
		started, paths = append(started, one), append(paths, path)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, path := range paths {
		for {
			conn, err := net.Dial("unix", path)
			if err == nil {
				conn.Close()
				break
			}
			if ctx.Err() != nil {
				done()
				return contender{}, nil, err
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	caller := func(number, workers int) (func(string, any, any) error, func()) {
		conn, err := net.Dial("unix", paths[number%workers])
		if err != nil {
			return func(string, any, any) error { return err }, func() {}
		}
		client := &wireClient{conn: conn, reader: bufio.NewReaderSize(conn, 1<<16)}
		return client.call, func() { conn.Close() }
	}
	return contender{name, caller}, done, nil
}

// openRunWorker opens our worker under pyproc's wire.
func openRunWorker(name, place, codec string) (contender, func(), error) {
	return openWire(name, place, func(path string) *exec.Cmd {
		one := exec.Command(*fast, "-m", "benchmarks.pyproc_worker", "atoll")
		one.Dir = *root
		one.Env = append(os.Environ(), "PYPROC_SOCKET_PATH="+path, "PYPROC_CODEC_TYPE="+codec)
		return one
	})
}

// openPlainGo opens workers that are this program.
func openPlainGo(name, place string) (contender, func(), error) {
	self, err := os.Executable()
	if err != nil {
		return contender{}, nil, err
	}
	return openWire(name, place, func(path string) *exec.Cmd { return exec.Command(self, "-serve", path) })
}

// servePlainly is what one would write in Go instead of a worker in Python.
func servePlainly(path string) {
	listener, err := net.Listen("unix", path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			reader := bufio.NewReaderSize(conn, 1<<16)
			var buffer []byte
			for {
				var err error
				if buffer, err = readFrame(reader, buffer); err != nil {
					return
				}
				if err := writeFrame(conn, answer(buffer)); err != nil {
					return
				}
			}
		}()
	}
}

func answer(text []byte) map[string]any {
	var asked struct {
		ID     uint64
		Method string
		Body   json.RawMessage
	}
	err := json.Unmarshal(text, &asked)
	reply := map[string]any{"id": asked.ID, "ok": false}
	switch {
	case err != nil:
	case asked.Method == "echo":
		var body any
		if err = json.Unmarshal(asked.Body, &body); err == nil {
			reply["ok"], reply["body"] = true, body
		}
	case asked.Method == "predict":
		var body request
		if err = json.Unmarshal(asked.Body, &body); err == nil {
			reply["ok"], reply["body"] = true, map[string]any{"result": 2 * body.Value}
		}
	default:
		err = fmt.Errorf("there is no %q", asked.Method)
	}
	if err != nil {
		reply["error"] = err.Error()
	}
	return reply
}
