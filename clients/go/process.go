// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// A worker's process: its descriptors, its end, and how to bring that about.
//
// It ends when this program does, however that ends: see lifeline.

const (
	keptLines   = 20
	longestLine = 4096
)

type process struct {
	ends
	command  *exec.Cmd
	lifeline *lifeline
	stderr   *lineWriter
	mutex    sync.Mutex // kill or reap, never both
	reaped   bool
}

func socketPair(kind int) (ours int, theirs *os.File, err error) {
	pair, err := closedOnExec(kind)
	if err != nil {
		return -1, nil, os.NewSyscallError("socketpair", err)
	}
	if err := syscall.SetNonblock(pair[0], true); err != nil {
		syscall.Close(pair[0])
		syscall.Close(pair[1])
		return -1, nil, os.NewSyscallError("fcntl", err)
	}
	return pair[0], os.NewFile(uintptr(pair[1]), "atoll-worker"), nil
}

// startProcess starts a worker; it greets over its first data connection when it is up.
func startProcess(o *Options) (_ *process, err error) {
	p := &process{ends: ends{exited: make(chan struct{})}}
	var theirs []*os.File
	defer func() {
		for _, file := range theirs {
			file.Close()
		}
		if err != nil {
			p.close()
			if p.lifeline != nil {
				p.lifeline.close()
			}
		}
	}()
	add := func(file *os.File) int { // the number it will have there
		theirs = append(theirs, file)
		return 2 + len(theirs)
	}
	ours, file, err := socketPair(syscall.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	p.control = os.NewFile(uintptr(ours), "atoll-control")
	control := add(file)
	if p.lifeline, err = newLifeline(); err != nil {
		return nil, err
	}
	readEnds, err := p.lifeline.readEnds()
	if err != nil {
		return nil, err
	}
	lifeline := fmt.Sprintf("%d:%d", add(readEnds[0]), add(readEnds[1]))
	// Segments are no matter of calls in JSON, but a worker has the socket for them.
	ours, file, err = socketPair(syscall.SOCK_SEQPACKET)
	if err != nil {
		return nil, err
	}
	syscall.Close(ours)
	descriptors := add(file)
	spin := "1"
	if o.NoSpin {
		spin = "0"
	}
	folder := o.WorkerFolder
	arguments := []string{"-I", filepath.Join(folder, "__main__.py"),
		strconv.Itoa(control), lifeline, strconv.Itoa(descriptors), spin}
	for range o.Concurrency {
		ours, file, err = socketPair(syscall.SOCK_STREAM)
		if err != nil {
			return nil, err
		}
		data := add(file)
		laneNumber := -1
		var fast *lane
		if !o.NoLane {
			var laneFile *os.File
			if fast, laneFile, err = newLane(); err == nil {
				laneNumber = add(laneFile)
			}
		}
		c, err := newConnection(ours, fast)
		if err != nil {
			return nil, err
		}
		c.spin = !o.NoSpin
		p.data = append(p.data, c)
		arguments = append(arguments, fmt.Sprintf("%d:%d", data, laneNumber))
	}

	p.command = exec.Command(o.Python, arguments...)
	p.command.Env = o.environment()
	p.command.ExtraFiles = theirs
	p.command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	p.stderr = &lineWriter{logger: o.Logger, stream: "stderr"}
	p.command.Stdout = &lineWriter{logger: o.Logger, stream: "stdout"}
	p.command.Stderr = p.stderr
	p.command.WaitDelay = time.Second // descendants may hold the pipes
	if err := p.command.Start(); err != nil {
		return nil, &StartError{Phase: "start", Message: err.Error()}
	}
	p.pid = p.command.Process.Pid
	go p.reap()
	return p, nil
}

// reap waits for the end, and ends what the worker left behind in its group while the number is surely its own.
func (p *process) reap() {
	var info [128]byte
	for {
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, 1, uintptr(p.pid), uintptr(unsafe.Pointer(&info[0])),
			syscall.WEXITED|syscall.WNOWAIT, 0, 0)
		if errno != syscall.EINTR {
			break
		}
	}
	_ = syscall.Kill(-p.pid, syscall.SIGKILL)
	p.mutex.Lock()
	p.reaped = true
	p.mutex.Unlock()
	_ = p.command.Wait()
	if state := p.command.ProcessState; state != nil {
		p.status = state.String()
	}
	p.lifeline.close()
	p.hangUp()
	close(p.exited)
}

func (p *process) signal(number syscall.Signal) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if !p.reaped {
		_ = syscall.Kill(p.pid, number)
	}
}

// kill ends the worker and what it started in its group.
func (p *process) kill() {
	p.doomed.Store(true)
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if !p.reaped {
		_ = syscall.Kill(-p.pid, syscall.SIGKILL)
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
}

// letEnd closes the data connections: the worker tears its service down, and ends.
func (p *process) letEnd() { p.hangUp() }

// A lineWriter hands on what a worker prints to the log, and keeps the last lines.
type lineWriter struct {
	logger *slog.Logger
	stream string
	mutex  sync.Mutex
	rest   []byte
	last   []string
}

func (w *lineWriter) Write(data []byte) (int, error) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.rest = append(w.rest, data...)
	for {
		end := bytes.IndexByte(w.rest, '\n')
		if end < 0 && len(w.rest) < longestLine {
			return len(data), nil
		}
		next := end + 1
		if end < 0 {
			end, next = longestLine, longestLine
		}
		line := string(w.rest[:end])
		w.rest = w.rest[next:]
		w.logger.Info(line, "stream", w.stream)
		w.last = append(w.last, line)
		if len(w.last) > keptLines {
			w.last = w.last[1:]
		}
	}
}

func (w *lineWriter) lines() []string {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	lines := append([]string(nil), w.last...)
	if len(w.rest) > 0 {
		lines = append(lines, string(w.rest))
	}
	return lines
}
