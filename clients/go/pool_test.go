// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// What a test waits for comes within patient. A test of many steps, each of which has the time, is longer than that where
// others want the processors.
const (
	patient = 60 * time.Second
	longest = 5 * patient
)

func options(t testing.TB) Options {
	t.Helper()
	worker, err := filepath.Abs("../../src/atoll_worker")
	if err != nil {
		t.Fatal(err)
	}
	python := os.Getenv("ATOLL_TEST_PYTHON")
	if python == "" {
		python = "python3"
	}
	return Options{
		Python:       python,
		WorkerFolder: worker,
		Service:      "../../tests/go/services/calls.py",
		Logger:       slog.New(slog.NewTextHandler(io.Discard, nil)),
		Restart:      Restart{First: time.Millisecond, MaxDeaths: 1000},
	}
}

func start(t testing.TB, change func(*Options)) (*Pool, context.Context) {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), longest)
	o := options(t)
	if change != nil {
		change(&o)
	}
	p, err := Start(ctx, o)
	if err != nil {
		stop()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer stop()
		if err := p.Shutdown(ctx); err != nil {
			t.Errorf("shutting down: %v", err)
		}
		// Nothing is left of its workers: there is no child but, perhaps, of another test.
	})
	return p, ctx
}

func must[Out any](t testing.TB, out Out, err error) Out {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A mark is a file in which a call of the service's notes that it has begun: how often, it tells.
type mark string

func newMark(t testing.TB) mark { return mark(filepath.Join(t.TempDir(), "mark")) }

func (m mark) count() int {
	text, _ := os.ReadFile(string(m))
	return strings.Count(string(text), "\n")
}

func (m mark) wait(t testing.TB) {
	t.Helper()
	until(t, "the beginning of a call", func() bool { return m.count() > 0 })
}

// A deadline has passed when it is said to, not after some time.
type deadline struct {
	context.Context
	done chan struct{}
}

func (c deadline) Done() <-chan struct{} { return c.done }
func (c deadline) Err() error {
	select {
	case <-c.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// tooLong makes a call whose deadline passes once it has begun.
func tooLong(t testing.TB, p *Pool, name string, args ...any) error {
	t.Helper()
	began := newMark(t)
	ctx := deadline{context.Background(), make(chan struct{})}
	result := make(chan error, 1)
	go func() { result <- p.Call(ctx, name, append(Args(args), began), nil) }()
	began.wait(t)
	close(ctx.done)
	return <-result
}

func exists(pid int) bool { return syscall.Kill(pid, 0) == nil }

func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(patient); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not in time", what)
		}
	}
}

func TestCalls(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"lane":            nil,
		"socket":          func(o *Options) { o.NoLane = true },
		"lane, asleep":    func(o *Options) { o.NoSpin = true },
		"sockets, asleep": func(o *Options) { o.NoLane, o.NoSpin = true, true },
	} {
		t.Run(name, func(t *testing.T) {
			p, ctx := start(t, change)
			for i := range 200 {
				sum, err := Call[int](ctx, p, "add", Args{i, 1})
				if must(t, sum, err) != i+1 {
					t.Fatalf("%d + 1 is %d", i, sum)
				}
			}
			// Around what fits a slot, and beyond what the socket takes at a time.
			for _, size := range []int{1000, 65_536, 300_000, 5_000_000, 8_388_400, 8_388_560, 8_388_580, 8_400_000} {
				text := strings.Repeat("x", size)
				if must2(Call[string](ctx, p, "echo", text))(t) != text {
					t.Errorf("%d characters are not those that were sent", size)
				}
				if length := must2(Call[int](ctx, p, "size", text))(t); length != size {
					t.Errorf("%d characters are %d", size, length)
				}
			}
			for _, text := range []string{"", "\"", "a\\b", "line\nend", "<ä & 🏝>", "\u2028", "\x00", "\x7f"} {
				if got := must2(Call[string](ctx, p, "echo", text))(t); got != text {
					t.Errorf("%q came back as %q", text, got)
				}
			}
			type point struct {
				X, Y float64
				Name string
			}
			if got := must2(Call[point](ctx, p, "echo", point{1, 2.5, "<ä & 🏝>"}))(t); got != (point{1, 2.5, "<ä & 🏝>"}) {
				t.Errorf("got %+v", got)
			}
			if got := must2(Call[map[string]int](ctx, p, "echo", Kwargs{"a": 1}))(t); got["a"] != 1 {
				t.Errorf("got %v", got)
			}
			if err := p.Call(ctx, "later", Args{7}, nil); err != nil {
				t.Error(err)
			}
			if raw := must2(Call[json.RawMessage](ctx, p, "echo", nil))(t); string(raw) != "null" {
				t.Errorf("got %s", raw)
			}
		})
	}
}

// must2 lets the results of a call be the argument of a function.
func must2[Out any](out Out, err error) func(testing.TB) Out {
	return func(t testing.TB) Out {
		t.Helper()
		return must(t, out, err)
	}
}

func TestErrors(t *testing.T) {
	p, ctx := start(t, nil)
	var raised *RemoteError
	_, err := Call[int](ctx, p, "fail", "no")
	if !errors.As(err, &raised) || raised.Type != "ValueError" || raised.Message != "no" || raised.Own != "" ||
		!strings.Contains(raised.Traceback, "in fail") || err.Error() != "ValueError: no" {
		t.Errorf("got %#v", err)
	}
	for name, own := range map[string]string{"nothing": "FunctionNotFound", "not_a_number": "EncodeError"} {
		if _, err := Call[int](ctx, p, name, nil); !errors.As(err, &raised) || raised.Own != own {
			t.Errorf("%s: got %#v", name, err)
		}
	}
	var encode *EncodeError
	if _, err := Call[int](ctx, p, "echo", make(chan int)); !errors.As(err, &encode) {
		t.Errorf("got %#v", err)
	}
	var decode *DecodeError
	if _, err := Call[int](ctx, p, "echo", "text"); !errors.As(err, &decode) {
		t.Errorf("got %#v", err)
	}
	if err := p.Call(ctx, "echo", "text", (*string)(nil)); !errors.As(err, &decode) {
		t.Errorf("got %#v", err)
	}
	if sum := must2(Call[int](ctx, p, "add", Args{1, 2}))(t); sum != 3 {
		t.Error("the worker is of no use afterwards")
	}
}

func TestManyCallersAtOnce(t *testing.T) {
	p, ctx := start(t, func(o *Options) { o.Workers = 2 })
	var group sync.WaitGroup
	for caller := range 8 {
		group.Add(1)
		go func() {
			defer group.Done()
			for i := range 200 {
				its, cancel := context.WithTimeout(ctx, patient)
				sum, err := Call[int](its, p, "add", Args{caller * 1000, i})
				cancel()
				if err != nil || sum != caller*1000+i {
					t.Errorf("%d, %v", sum, err)
					return
				}
			}
		}()
	}
	group.Wait()
}

// To who does not get the processor the usual time may be none, and then its worker is ended.
func (s steps) patiently(o *Options) { o.steps = s }

var (
	untilTold        = steps{patient, patient}
	untilInterrupted = steps{usualSteps.cooperation, patient}
)

func TestACallThatIsGivenUpStopsThePythonCode(t *testing.T) {
	p, ctx := start(t, untilInterrupted.patiently)
	pid := must2(Call[int](ctx, p, "pid", nil))(t)
	if err := tooLong(t, p, "sleep", 1000); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	ended := must2(Call[[]string](ctx, p, "ended", nil))(t)
	if len(ended) != 1 || ended[0] != "Cancelled" {
		t.Errorf("it ended with %v", ended)
	}
	if now := must2(Call[int](ctx, p, "pid", nil))(t); now != pid {
		t.Error("its worker was ended for it")
	}
	p, ctx = start(t, untilTold.patiently)
	if err := tooLong(t, p, "until_cancelled"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	until(t, "code that asks is told", func() bool {
		ended := must2(Call[[]string](ctx, p, "ended", nil))(t)
		return len(ended) == 1 && ended[0] == "cooperative"
	})
}

func TestAWorkerWhoseCallCannotBeStoppedIsReplaced(t *testing.T) {
	p, ctx := start(t, nil)
	pid := must2(Call[int](ctx, p, "pid", nil))(t)
	if err := tooLong(t, p, "stubborn", 1000); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	// The next call never sees any of it.
	if now := must2(Call[int](ctx, p, "pid", nil))(t); now == pid {
		t.Error("it is the same worker")
	}
	if exists(pid) {
		t.Error("the first worker is still there")
	}
}

func TestADeadWorkerIsReportedAndReplaced(t *testing.T) {
	p, ctx := start(t, nil)
	var died *WorkerDied
	err := p.Call(ctx, "die", 7, nil)
	if !errors.As(err, &died) || died.Status != "exit status 7" || len(died.Stderr) != 1 || died.Stderr[0] != "last words" {
		t.Fatalf("got %#v", err)
	}
	until(t, "another worker", func() bool {
		sum, err := Call[int](ctx, p, "add", Args{1, 1})
		return err == nil && sum == 2
	})
	var text bytes.Buffer
	if err := p.WriteMetrics(&text); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`atoll_calls_total{outcome="died"} 1`, "atoll_worker_restarts_total 1", "atoll_workers_ready 1",
		"# TYPE atoll_call_seconds histogram", `atoll_call_seconds_bucket{le="+Inf"}`,
	} {
		if !strings.Contains(text.String(), line) {
			t.Errorf("no %s in\n%s", line, text.String())
		}
	}
}

func TestTheBreakerRefusesCallsWhileWorkersKeepDying(t *testing.T) {
	p, ctx := start(t, func(o *Options) {
		o.Restart = Restart{First: time.Millisecond, MaxDeaths: 2, BreakerFor: time.Second}
	})
	until(t, "the breaker", func() bool { return errors.Is(p.Call(ctx, "die", 3, nil), ErrBreakerOpen) })
	if p.Healthy() == nil {
		t.Error("a pool without workers is healthy")
	}
	until(t, "a worker on trial", func() bool {
		sum, err := Call[int](ctx, p, "add", Args{1, 1})
		return err == nil && sum == 2
	})
	if err := p.Healthy(); err != nil {
		t.Error(err)
	}
}

func TestAWorkerThatGivesNoSignOfLifeIsKilled(t *testing.T) {
	p, ctx := start(t, func(o *Options) { o.HealthInterval, o.HealthTimeout = 20*time.Millisecond, 500*time.Millisecond })
	began, result := newMark(t), make(chan error, 1)
	go func() { result <- p.Call(ctx, "sleep", Args{1000, began}, nil) }()
	// It may seem silent to who is kept from listening: that is no other end; and before it has the call, another gets it.
	until(t, "the call", func() bool { return began.count() > 0 || len(result) > 0 })
	kill(p.current.Load(), syscall.SIGSTOP)
	var died *WorkerDied
	if err := <-result; !errors.As(err, &died) || died.Status != "signal: killed" {
		t.Errorf("got %v", err)
	}
}

func TestStreams(t *testing.T) {
	p, ctx := start(t, nil)
	for _, name := range []string{"count", "count_slowly"} {
		next := 0
		for number, err := range Stream[int](ctx, p, name, 3000) {
			if must(t, number, err) != next {
				t.Fatalf("%d came, not %d", number, next)
			}
			next++
		}
		if next != 3000 {
			t.Errorf("%d items", next)
		}
	}
	var raised *RemoteError
	var failure error
	items := 0
	for _, err := range Stream[int](ctx, p, "count", Args{5, 2}) {
		if failure = err; err == nil {
			items++
		}
	}
	if items != 2 || !errors.As(failure, &raised) || raised.Message != "no 2" {
		t.Errorf("%d items, then %v", items, failure)
	}
	before := len(must2(Call[[]string](ctx, p, "ended", nil))(t))
	for range Stream[int](ctx, p, "count", 1_000_000) {
		break
	}
	if now := len(must2(Call[[]string](ctx, p, "ended", nil))(t)); now != before+1 {
		t.Error("the generator was not closed")
	}
}

func TestStreamsThatAreGivenUpAreClosed(t *testing.T) {
	theirs := place(t)
	serve(t, theirs)
	for name, begin := range map[string]func() (*Pool, context.Context){
		"worker":  func() (*Pool, context.Context) { return start(t, untilInterrupted.patiently) },
		"service": func() (*Pool, context.Context) { return linked(t, theirs, nil) },
	} {
		p, ctx := begin()
		closed := len(must2(Call[[]string](ctx, p, "ended", nil))(t))
		for how, read := range map[string]func(context.Context, context.CancelFunc){
			"between two items": func(ctx context.Context, stop context.CancelFunc) {
				for range Stream[int](ctx, p, "count", 1_000_000) {
					stop()
				}
			},
			"while one is waited for": func(ctx context.Context, stop context.CancelFunc) {
				for range Stream[int](ctx, p, "count_patiently", Args{1_000_000, 0.05}) {
					time.AfterFunc(5*time.Millisecond, stop)
				}
			},
			"an item that does not fit": func(ctx context.Context, _ context.CancelFunc) {
				for range Stream[string](ctx, p, "count", 1_000_000) {
				}
			},
		} {
			its, stop := context.WithCancel(ctx)
			read(its, stop)
			stop()
			closed++
			until(t, name+", "+how+": the end of the generator", func() bool {
				return len(must2(Call[[]string](ctx, p, "ended", nil))(t)) == closed
			})
		}
	}
}

func TestAStreamHoldsItsPlace(t *testing.T) {
	p, ctx := start(t, func(o *Options) { o.Workers, o.MaxInFlight = 2, 1 })
	for range Stream[int](ctx, p, "count", 3) {
		short, stop := context.WithTimeout(ctx, 10*time.Millisecond)
		if err := p.Call(short, "add", Args{1, 1}, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		stop()
	}
	if sum := must2(Call[int](ctx, p, "add", Args{1, 1}))(t); sum != 2 {
		t.Error("its place is lost")
	}
}

type explosive struct{}

func (explosive) MarshalJSON() ([]byte, error) { panic("it explodes") }

func TestAnArgumentThatPanicsLeavesNoCallBehind(t *testing.T) {
	p, ctx := start(t, nil)
	for _, call := range []func(){
		func() { _ = p.Call(ctx, "echo", explosive{}, nil) },
		func() {
			for range Stream[int](ctx, p, "count", explosive{}) {
			}
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("it did not panic")
				}
			}()
			call()
		}()
	}
	if open := p.open.Load(); open != 0 {
		t.Errorf("%d calls count as open", open)
	}
}

func TestShutdownLetsCallsEnd(t *testing.T) {
	p, ctx := start(t, nil)
	result := make(chan error, 1)
	go func() { result <- p.Call(ctx, "sleep", 0.2, nil) }()
	until(t, "the call", func() bool { return p.open.Load() == 1 })
	if err := p.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := <-result; err != nil {
		t.Errorf("the call in progress: %v", err)
	}
	if err := p.Call(ctx, "add", Args{1, 1}, nil); !errors.Is(err, ErrShutdown) {
		t.Errorf("got %v", err)
	}
}

func TestShutdownHonoursItsContext(t *testing.T) {
	p, ctx := start(t, nil)
	pid := must2(Call[int](ctx, p, "pid", nil))(t)
	result := make(chan error, 1)
	go func() { result <- p.Call(ctx, "stubborn", 1000, nil) }()
	until(t, "the call", func() bool { return p.open.Load() == 1 })
	short, stop := context.WithTimeout(ctx, 100*time.Millisecond)
	defer stop()
	if err := p.Shutdown(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if exists(pid) {
		t.Error("the worker is still there")
	}
	if err := <-result; err == nil {
		t.Error("the call came to its end")
	}
}

func TestWhoeverShutsDownAgainIsHonouredToo(t *testing.T) {
	p, ctx := start(t, nil)
	go func() { _ = p.Call(ctx, "stubborn", 1000, nil) }()
	until(t, "the call", func() bool { return p.open.Load() == 1 })
	first := make(chan error, 1)
	go func() { first <- p.Shutdown(context.Background()) }()
	until(t, "the first", p.closing.Load)
	short, stop := context.WithTimeout(ctx, 10*time.Millisecond)
	defer stop()
	for _, err := range []error{p.Shutdown(short), <-first} {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	}
	if err := p.Shutdown(ctx); err != nil {
		t.Errorf("once all has ended: %v", err)
	}
}

func TestAServiceThatCannotBeLoaded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "broken.py")
	if err := os.WriteFile(path, []byte("raise ValueError('not today')\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := options(t)
	o.Service, o.Workers = path, 2
	_, err := Start(context.Background(), o)
	var failed *StartError
	if !errors.As(err, &failed) || !strings.Contains(failed.Message, "not today") || !strings.Contains(failed.Traceback, "broken.py") {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(path, []byte("import os\nos._exit(5)\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var died *WorkerDied
	if _, err := Start(context.Background(), o); !errors.As(err, &died) || died.Status != "exit status 5" {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(path, []byte("import time\ntime.sleep(1000)\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer stop()
	if _, err := Start(short, o); !errors.As(err, &failed) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	its, cancel := context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := Start(its, o); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	o.Service = path + "x"
	if _, err := Start(context.Background(), o); err == nil || !strings.Contains(err.Error(), "broken.pyx") {
		t.Errorf("got %v", err)
	}
}

func TestWhatAWorkerSaysIsLogged(t *testing.T) {
	log, logger := recorded()
	p, ctx := start(t, func(o *Options) { o.Logger = logger })
	if err := p.Call(ctx, "log", "a word", nil); err != nil {
		t.Fatal(err)
	}
	until(t, "both lines", func() bool {
		text := log()
		return strings.Contains(text, "level=WARN msg=\"a word\"") && strings.Contains(text, "stream=stdout")
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(data []byte) (int, error) { return f(data) }

// TestNoOrphans runs this very program once more, and kills it: the worker ends, and what that had started, even if it
// is the worker that ended first, and the program had no time to see it.
func TestNoOrphans(t *testing.T) {
	if os.Getenv("ATOLL_TEST_ORPHANS") != "" {
		p, ctx := start(t, func(o *Options) { o.Workers = 2 })
		pids := must2(Call[[]int](ctx, p, "start_child", nil))(t)
		fmt.Printf("worker %d %d\n", pids[0], pids[1])
		_ = p.Call(ctx, "stubborn", 1000, nil)
		return
	}
	for _, workerFirst := range []bool{false, true} {
		t.Run(fmt.Sprintf("workerFirst=%v", workerFirst), func(t *testing.T) {
			command := exec.Command(os.Args[0], "-test.run=^TestNoOrphans$", "-test.v")
			command.Env = append(os.Environ(), "ATOLL_TEST_ORPHANS=1")
			output, err := command.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := command.Start(); err != nil {
				t.Fatal(err)
			}
			var worker, child int
			var text []byte
			for piece := make([]byte, 1000); worker == 0; {
				count, err := output.Read(piece)
				text = append(text, piece[:count]...)
				if _, after, found := strings.Cut(string(text), "worker "); found && strings.Contains(after, "\n") {
					if _, err := fmt.Sscan(after, &worker, &child); err != nil {
						t.Fatal(err)
					}
				}
				if err != nil && worker == 0 {
					t.Fatalf("it said %q", text)
				}
			}
			if !exists(worker) || !exists(child) {
				t.Fatal("there is no worker, or none that it started")
			}
			if workerFirst {
				_ = command.Process.Signal(syscall.SIGSTOP)
				until(t, "the program to stop", func() bool { return stateOf(command.Process.Pid) == "T" })
				_ = syscall.Kill(worker, syscall.SIGKILL)
				until(t, "the end of the worker", func() bool { return hasEnded(worker) })
				if hasEnded(child) {
					t.Fatal("what the worker started has ended with it")
				}
			}
			_ = command.Process.Kill()
			_ = command.Wait()
			for _, pid := range []int{worker, child} {
				until(t, "the end of all that it started", func() bool { return hasEnded(pid) })
			}
		})
	}
}

func hasEnded(pid int) bool { state := stateOf(pid); return state == "" || state == "Z" }

// stateOf returns the letter that the kernel has for what a process does; "" without one.
func stateOf(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, after, _ := strings.Cut(string(text), ") ")
	return after[:1]
}

func TestAWorkerRunsSeveralCallsAtATime(t *testing.T) {
	p, ctx := start(t, func(o *Options) { o.Concurrency, o.steps = 3, untilTold })
	pid := must2(Call[int](ctx, p, "pid", nil))(t)
	first, second := newMark(t), newMark(t)
	its, giveUp := context.WithCancel(ctx)
	defer giveUp()
	given := make(chan error, 1)
	kept := make(chan error, 1)
	go func() { given <- p.Call(its, "until_cancelled", Args{first}, nil) }()
	other, letGo := context.WithCancel(ctx)
	defer letGo()
	go func() { kept <- p.Call(other, "until_cancelled", Args{second}, nil) }()
	first.wait(t)
	second.wait(t)
	if sum := must2(Call[int](ctx, p, "add", Args{1, 1}))(t); sum != 2 {
		t.Error("a third one is not served beside them")
	}
	giveUp()
	if err := <-given; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	until(t, "the end of the one that was given up", func() bool {
		return len(must2(Call[[]string](ctx, p, "ended", nil))(t)) == 1
	})
	select {
	case err := <-kept:
		t.Errorf("the other one ended, too: %v", err)
	default:
	}
	letGo()
	if err := <-kept; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if now := must2(Call[int](ctx, p, "pid", nil))(t); now != pid {
		t.Error("its worker was ended for it")
	}
}

func TestOnlySoManyCallsAreInFlight(t *testing.T) {
	p, ctx := start(t, func(o *Options) { o.Workers, o.MaxInFlight, o.MaxQueue = 3, 2, 1 })
	its, giveUp := context.WithCancel(ctx)
	defer giveUp()
	results := make(chan error, 3)
	for range 2 {
		go func() { results <- p.Call(its, "sleep", 1000, nil) }()
	}
	until(t, "two calls in flight", func() bool {
		p.dispatcher.mutex.Lock()
		defer p.dispatcher.mutex.Unlock()
		return p.dispatcher.inFlight == 2
	})
	go func() { results <- p.Call(its, "sleep", 1000, nil) }()
	until(t, "one that waits", func() bool { return p.dispatcher.queued() == 1 })
	if err := p.Call(ctx, "add", Args{1, 1}, nil); !errors.Is(err, ErrQueueFull) {
		t.Errorf("a fourth one: %v", err)
	}
	var text bytes.Buffer
	if err := p.WriteMetrics(&text); err != nil || !strings.Contains(text.String(), "atoll_calls_waiting 1\n") ||
		!strings.Contains(text.String(), `atoll_calls_total{outcome="refused"} 1`) {
		t.Errorf("%v in\n%s", err, text.String())
	}
	giveUp()
	for range 3 {
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	if sum := must2(Call[int](ctx, p, "add", Args{1, 1}))(t); sum != 2 {
		t.Error("places are lost")
	}
}

func TestOptionsThatAreWrong(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"HealthInterval":  func(o *Options) { o.HealthInterval = -1 },
		"Restart.Longest": func(o *Options) { o.Restart.Longest = -1 },

		"Workers":      func(o *Options) { o.Workers = -1 },
		"Concurrency":  func(o *Options) { o.Concurrency = -1 },
		"MaxInFlight":  func(o *Options) { o.MaxInFlight = -1 },
		"MaxQueue":     func(o *Options) { o.MaxQueue = -2 },
		"Service":      func(o *Options) { o.Service = "" },
		"interpreter":  func(o *Options) { o.Python = "no-such-python" },
		"atoll_worker": func(o *Options) { o.WorkerFolder = "/nowhere" },
	} {
		o := options(t)
		change(&o)
		if _, err := Start(context.Background(), o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// A pause that ends lets one worker be tried. If that dies, too, calls are refused again, at once; if it answers, the
// pauses begin anew.
func TestTheBreakerOfASingleWorkerIsHalfOpenForATrial(t *testing.T) {
	p, ctx := start(t, func(o *Options) {
		o.Restart = Restart{First: time.Millisecond, MaxDeaths: 3, BreakerFor: time.Second}
	})
	var died *WorkerDied
	deaths := 0
	dies := func() bool {
		err := p.Call(ctx, "die", 3, nil)
		if errors.As(err, &died) {
			deaths++
		}
		return errors.Is(err, ErrBreakerOpen)
	}
	until(t, "the breaker", dies)
	if deaths != 3 {
		t.Errorf("it took %d deaths", deaths)
	}
	for trial := range 2 {
		until(t, "a trial", func() bool { dies(); return deaths == 4+trial })
		until(t, "its end to be seen", func() bool { return p.metrics.breaker.Load() == 1 })
		if err := p.Call(ctx, "add", Args{1, 1}, nil); !errors.Is(err, ErrBreakerOpen) {
			t.Errorf("after trial %d: %v", trial, err)
		}
		if p.Healthy() == nil {
			t.Error("it is healthy")
		}
	}
	var raised *RemoteError
	until(t, "one that answers, be it with an error", func() bool { return errors.As(p.Call(ctx, "fail", "no", nil), &raised) })
	if err := p.Call(ctx, "die", 3, nil); !errors.As(err, &died) {
		t.Errorf("got %v", err)
	}
	if sum := must2(Call[int](ctx, p, "add", Args{1, 1}))(t); sum != 2 { // waits for the next one, which is not long
		t.Error("one more death opens it again")
	}
}

func TestACallCanBeGivenUpWhileItIsSent(t *testing.T) {
	p, ctx := start(t, untilTold.patiently)
	pid := must2(Call[int](ctx, p, "pid", nil))(t)
	text := strings.Repeat("x", 20_000_000)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(ctx, 100*time.Millisecond)
	defer stop()
	began := time.Now()
	if err := p.Call(short, "size", text, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > patient/2 {
		t.Errorf("that took %v", took)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// What was left of the request is sent all the same, so the worker is of use.
	if now := must2(Call[int](ctx, p, "pid", nil))(t); now != pid {
		t.Error("its worker was ended for it")
	}
	if length := must2(Call[int](ctx, p, "size", text))(t); length != len(text) {
		t.Errorf("%d characters arrived", length)
	}
}

// No call of those that have the time fails for the end of another's context.
func TestNoCallFailsForItsContext(t *testing.T) {
	p, ctx := start(t, func(o *Options) { o.Workers = 2 })
	count := 5000
	if testing.Short() {
		count = 500
	}
	call := func(i int) error {
		its, cancel := context.WithTimeout(ctx, patient) // each, however long all of them take
		defer cancel()
		sum, err := Call[int](its, p, "add", Args{i, 1})
		if err == nil && sum != i+1 {
			err = fmt.Errorf("%d + 1 is %d", i, sum)
		}
		return err
	}
	var group sync.WaitGroup
	for range 4 {
		group.Add(1)
		go func() {
			defer group.Done()
			for i := range count {
				if err := call(i); err != nil {
					t.Errorf("call %d: %v", i, err)
					return
				}
			}
		}()
	}
	group.Wait()
	var text bytes.Buffer
	_ = p.WriteMetrics(&text)
	if !strings.Contains(text.String(), fmt.Sprintf("atoll_calls_total{outcome=\"ok\"} %d\n", 4*count)) {
		t.Errorf("there are failures in\n%s", text.String())
	}
}

func TestCallsAreServedInTheOrderTheyCame(t *testing.T) {
	p, ctx := start(t, nil)
	its, giveUp := context.WithCancel(ctx)
	blocking := make(chan error, 1)
	go func() { blocking <- p.Call(its, "sleep", 1000, nil) }()
	until(t, "the worker to be busy", p.dispatcher.isTaken)
	results := make(chan error, 20)
	for i := range 20 {
		go func() { results <- p.Call(ctx, "note", i, nil) }()
		until(t, "its place in the line", func() bool { return p.dispatcher.queued() == i+1 })
	}
	giveUp()
	<-blocking
	for range 20 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if served := must2(Call[[]int](ctx, p, "noted", nil))(t); len(served) != 20 || !slices.IsSorted(served) {
		t.Errorf("they were served as %v", served)
	}
}

func TestAWorkerThatCannotBeStartedAgainLeavesNobodyWaiting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fragile.py")
	text := "import os\nfrom atoll_worker import expose\n@expose\ndef die():\n    os._exit(4)\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p, ctx := start(t, func(o *Options) {
		o.Service, o.Restart = path, Restart{First: time.Millisecond, MaxDeaths: 3, BreakerFor: time.Hour}
	})
	if err := os.WriteFile(path, []byte("raise ValueError('not any more')\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var died *WorkerDied
	if err := p.Call(ctx, "die", nil, nil); !errors.As(err, &died) {
		t.Errorf("got %v", err)
	}
	if err := p.Call(ctx, "die", nil, nil); !errors.Is(err, ErrBreakerOpen) && !errors.As(err, &died) {
		t.Errorf("got %v", err)
	}
	until(t, "the breaker", func() bool { return errors.Is(p.Call(ctx, "die", nil, nil), ErrBreakerOpen) })
}

func TestAnInterpreterThatIsNotThereAnyMore(t *testing.T) {
	nothingIsLeft(t, func(t *testing.T) {
		python := filepath.Join(t.TempDir(), "python")
		p, ctx := start(t, func(o *Options) {
			found, err := exec.LookPath(o.Python)
			if err == nil {
				err = os.Symlink(must2(filepath.Abs(found))(t), python)
			}
			if err != nil {
				t.Fatal(err)
			}
			o.Python, o.Restart = python, Restart{First: time.Millisecond, MaxDeaths: 3, BreakerFor: time.Hour}
		})
		if err := os.Remove(python); err != nil {
			t.Fatal(err)
		}
		_ = p.Call(ctx, "die", 3, nil)
		until(t, "the breaker", func() bool { return errors.Is(p.Call(ctx, "die", 3, nil), ErrBreakerOpen) })
	})
	o := options(t)
	o.Environ = []string{"NAME=\x00"}
	var failed *StartError
	if _, err := Start(context.Background(), o); !errors.As(err, &failed) {
		t.Errorf("got %v", err)
	}
}

func TestAWorkerThatKeepsDyingIsNotHelpedByWhatAnotherAnswers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "torn.py")
	text := "import os\nfrom atoll_worker import expose\nif os.path.exists(__file__ + '.broken'):\n    os._exit(4)\n" +
		"@expose\ndef pid():\n    return os.getpid()\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p, ctx := start(t, func(o *Options) { o.Service, o.Workers = path, 2 })
	if err := os.WriteFile(path+".broken", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(must2(Call[int](ctx, p, "pid", nil))(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	deaths := func() []int {
		p.mutex.Lock()
		defer p.mutex.Unlock()
		return append([]int(nil), p.deaths...)
	}
	until(t, "pauses that grow", func() bool {
		var died *WorkerDied
		if err := p.Call(ctx, "pid", nil, nil); err != nil && !errors.As(err, &died) {
			t.Fatal(err)
		}
		return max(deaths()[0], deaths()[1]) >= 5
	})
	if err := os.Remove(path + ".broken"); err != nil {
		t.Fatal(err)
	}
	until(t, "both workers", func() bool { return p.metrics.ready.Load() == 2 })
	// The other one, once it has answered, begins anew: with a row of one.
	until(t, "a row of one in both places", func() bool {
		pid, err := Call[int](ctx, p, "pid", nil)
		if err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		return deaths()[0] == 1 && deaths()[1] == 1
	})
}

func descriptors(t testing.TB) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("there is no /proc here")
	}
	return len(names)
}

// nothingIsLeft runs something twice, since the first run starts what Go keeps, and compares what there is then.
func nothingIsLeft(t *testing.T, something func(t *testing.T)) {
	t.Helper()
	t.Run("once", something)
	files, routines := descriptors(t), runtime.NumGoroutine()
	t.Run("twice", something)
	for what, count := range map[string]func() int{
		"descriptors": func() int { return descriptors(t) - files },
		"goroutines":  func() int { return runtime.NumGoroutine() - routines },
	} {
		for end := time.Now().Add(patient); count() > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				stacks := make([]byte, 1<<20)
				t.Fatalf("%d %s more than before\n%s", count(), what, stacks[:runtime.Stack(stacks, true)])
			}
		}
	}
}

func TestNothingIsLeftOfWorkers(t *testing.T) {
	nothingIsLeft(t, func(t *testing.T) {
		p, ctx := start(t, func(o *Options) { o.Workers, o.Concurrency = 2, 2 })
		for range 8 {
			_ = p.Call(ctx, "die", 3, nil)
		}
		short, stop := context.WithTimeout(ctx, 20*time.Millisecond)
		defer stop()
		_ = p.Call(short, "until_cancelled", nil, nil)
		for range Stream[int](ctx, p, "count", 1_000_000) {
			break
		}
		until(t, "a worker", func() bool { return p.Call(ctx, "add", Args{1, 1}, nil) == nil })
	})
}

func TestNothingIsLeftOfConnections(t *testing.T) {
	path := place(t)
	serve(t, path, "--workers", "2")
	nothingIsLeft(t, func(t *testing.T) {
		p, ctx := linked(t, path, func(o *Options) { o.HealthInterval = 10 * time.Millisecond })
		for range 8 {
			w := p.current.Load()
			w.others.kill()
			until(t, "another connection", func() bool { return p.current.Load() != w && p.Call(ctx, "add", Args{1, 1}, nil) == nil })
		}
		short, stop := context.WithTimeout(ctx, 20*time.Millisecond)
		defer stop()
		_ = p.Call(short, "until_cancelled", nil, nil)
		for range Stream[int](ctx, p, "count", 1_000_000) {
			break
		}
	})
}

func TestNothingIsLeftOfWhatCouldNotBeStarted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "broken.py")
	if err := os.WriteFile(path, []byte("raise ValueError('not today')\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	silent := lying(t, func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
	nothingIsLeft(t, func(t *testing.T) {
		o := options(t)
		o.Workers, o.Concurrency = 3, 2
		for _, after := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond, 60 * time.Millisecond} {
			ctx, stop := context.WithTimeout(context.Background(), after)
			if p, err := Start(ctx, o); err == nil {
				_ = p.Shutdown(context.Background())
			}
			stop()
		}
		o.Service = path
		if _, err := Start(context.Background(), o); err == nil {
			t.Error("a broken service was started")
		}
		for range 3 {
			ctx, stop := context.WithTimeout(context.Background(), 10*time.Millisecond)
			if _, err := Dial(ctx, silent, Options{Logger: quiet()}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
			stop()
			if _, err := Dial(context.Background(), silent+"x", Options{Logger: quiet()}); err == nil {
				t.Error("there was nobody")
			}
		}
	})
}
