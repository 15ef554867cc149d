// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
)

var (
	// ErrShutdown is returned by calls of a pool that is shut down.
	ErrShutdown = errors.New("atoll: the pool is shut down")
	// ErrQueueFull is returned at once when Options.MaxQueue calls wait already.
	ErrQueueFull = errors.New("atoll: too many calls wait for their turn")
	// ErrBreakerOpen is returned at once while workers are not started again, because they kept dying.
	ErrBreakerOpen = errors.New("atoll: workers of this service, or connections to it, keep failing; the next is tried after a pause")
)

// A RemoteError is what a Python function raised.
type RemoteError struct {
	Type      string   `json:"type"`      // name of the exception's class, such as "ValueError"
	Module    string   `json:"module"`    // that the class is from
	Message   string   `json:"message"`   // str() of the exception
	Notes     []string `json:"notes"`     // its __notes__
	Traceback string   `json:"traceback"` // as Python prints it
	// Own names an error of atoll's own, such as "FunctionNotFound"; see docs/wire.md. Empty for what the function raised.
	Own string `json:"atoll"`
	// Died says more where Own is "WorkerDied".
	Died *struct {
		PID      int      `json:"pid"`
		ExitCode *int     `json:"exit_code"`
		Signal   *int     `json:"signal"`
		Phase    string   `json:"phase"`
		Stderr   []string `json:"stderr"`
	} `json:"died"`
}

// Is lets errors.Is find in what a service at a socket says what it means here.
func (e *RemoteError) Is(target error) bool {
	switch e.Own {
	case "QueueFull":
		return target == ErrQueueFull
	case "CircuitOpen":
		return target == ErrBreakerOpen
	case "ServiceClosed":
		return target == ErrShutdown
	case "CallTimeout":
		return target == context.DeadlineExceeded
	}
	return false
}

// As lets errors.As find a *WorkerDied in what a service at a socket says of its worker.
func (e *RemoteError) As(target any) bool {
	died, ok := target.(**WorkerDied)
	if !ok || e.Died == nil {
		return false
	}
	status := "connection closed"
	switch {
	case e.Died.Signal != nil:
		status = "signal: " + syscall.Signal(*e.Died.Signal).String()
	case e.Died.ExitCode != nil:
		status = fmt.Sprintf("exit status %d", *e.Died.ExitCode)
	}
	*died = &WorkerDied{PID: e.Died.PID, Status: status, Phase: e.Died.Phase, Stderr: e.Died.Stderr}
	return true
}

func (e *RemoteError) Error() string {
	name := e.Type
	if e.Own != "" {
		name = e.Own
	}
	if e.Message == "" {
		return name
	}
	return name + ": " + e.Message
}

// An EncodeError says that arguments cannot be written as JSON.
type EncodeError struct{ Err error }

func (e *EncodeError) Error() string {
	return "atoll: the arguments cannot be passed: " + e.Err.Error()
}
func (e *EncodeError) Unwrap() error { return e.Err }

// A DecodeError says that a result does not fit what it was to be stored in.
type DecodeError struct{ Err error }

func (e *DecodeError) Error() string { return "atoll: the result does not fit: " + e.Err.Error() }
func (e *DecodeError) Unwrap() error { return e.Err }

// A WorkerDied says that a worker's process ended while it was needed.
type WorkerDied struct {
	PID    int
	Status string   // how it ended, such as "exit status 3" or "signal: killed"
	Phase  string   // "start", "setup" or "call"
	Stderr []string // the last lines it printed there
}

func (e *WorkerDied) Error() string {
	text := fmt.Sprintf("atoll: the worker (pid %d) ended with %s during %s", e.PID, e.Status, e.Phase)
	if len(e.Stderr) > 0 {
		text += "; the last it said:\n" + strings.Join(e.Stderr, "\n")
	}
	return text
}

// A ConnectionLost says that there is no connection to a service at a socket, or no more.
type ConnectionLost struct {
	Path string
	Err  error
}

func (e *ConnectionLost) Error() string {
	return fmt.Sprintf("atoll: there is no connection to the service at %s: %v", e.Path, e.Err)
}
func (e *ConnectionLost) Unwrap() error { return e.Err }

// A StartError says why a worker could not be started, or why a service at a socket does not let itself be called.
type StartError struct {
	Phase     string
	Message   string
	Traceback string // of what the service raised, if it did

	socket string // of Dial
	cause  error  // context.DeadlineExceeded, if it took too long
}

func (e *StartError) Unwrap() error { return e.cause }

func (e *StartError) Error() string {
	text := "atoll: the worker could not be started: " + e.Message
	if e.socket != "" {
		text = fmt.Sprintf("atoll: the service at %s refuses to be called: %s", e.socket, e.Message)
	}
	if e.Traceback != "" {
		text += "\n" + strings.TrimRight(e.Traceback, "\n")
	}
	return text
}
