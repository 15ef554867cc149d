// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
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
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// served runs `atoll serve --socket` until the test has ended.
type served struct {
	t    testing.TB
	path string
	*exec.Cmd
}

func serve(t testing.TB, path string, more ...string) *served {
	t.Helper()
	return serveFile(t, options(t).Service, path, more...)
}

func serveFile(t testing.TB, file, path string, more ...string) *served {
	t.Helper()
	o := options(t)
	service, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	arguments := append([]string{"-m", "atoll.cli", "serve", "--socket", path, service}, more...)
	s := &served{t: t, path: path, Cmd: exec.Command(o.Python, arguments...)}
	s.Env = append(os.Environ(), "PYTHONPATH="+filepath.Dir(o.WorkerFolder))
	var log bytes.Buffer
	s.Stderr = &log
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.end(syscall.SIGKILL) })
	until(t, "the service at the socket", func() bool {
		conn, err := net.Dial("unix", path)
		if err == nil {
			conn.Close()
		}
		if err != nil && s.hasEnded() {
			t.Fatalf("the service has ended: %s", log.String())
		}
		return err == nil
	})
	return s
}

func (s *served) hasEnded() bool {
	state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.Process.Pid))
	return err != nil || strings.Contains(string(state), ") Z ")
}

func (s *served) end(number syscall.Signal) {
	if s.ProcessState == nil {
		_ = s.Process.Signal(number)
		_ = s.Wait()
	}
}

func place(t testing.TB) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "atoll") // the path of a socket is 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	return filepath.Join(folder, "s")
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func linked(t testing.TB, path string, change func(*Options)) (*Pool, context.Context) {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), longest)
	o := Options{Logger: quiet(), Restart: Restart{First: time.Millisecond, MaxDeaths: 10_000}}
	if change != nil {
		change(&o)
	}
	p, err := Dial(ctx, path, o)
	if err != nil {
		stop()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer stop()
		if err := p.Shutdown(ctx); err != nil {
			t.Errorf("shutting down: %v", err)
		}
	})
	return p, ctx
}

func TestAServiceAtASocket(t *testing.T) {
	path := place(t)
	service := serve(t, path, "--workers", "2", "--max-size", "1MB")
	p, ctx := linked(t, path, nil)

	t.Run("calls", func(t *testing.T) {
		for i := range 100 {
			if sum := must2(Call[int](ctx, p, "add", Args{i, 1}))(t); sum != i+1 {
				t.Fatalf("%d + 1 is %d", i, sum)
			}
		}
		text := strings.Repeat("x", 900_000)
		if must2(Call[string](ctx, p, "echo", text))(t) != text {
			t.Error("a large text is not what was sent")
		}
		if pid := must2(Call[int](ctx, p, "pid", nil))(t); pid == service.Process.Pid || pid == os.Getpid() {
			t.Error("it runs in no process of its own")
		}
		if names := must2(p.Functions(ctx))(t); len(names) < 5 {
			t.Errorf("there are %v", names)
		}
		if err := p.Healthy(); err != nil {
			t.Error(err)
		}
	})
	t.Run("errors", func(t *testing.T) {
		var raised *RemoteError
		_, err := Call[int](ctx, p, "fail", "no")
		if !errors.As(err, &raised) || raised.Type != "ValueError" || raised.Message != "no" || raised.Own != "" ||
			!strings.Contains(raised.Traceback, "in fail") {
			t.Errorf("got %#v", err)
		}
		for name, own := range map[string]string{"nothing": "FunctionNotFound", "not_a_number": "EncodeError"} {
			if _, err := Call[int](ctx, p, name, nil); !errors.As(err, &raised) || raised.Own != own {
				t.Errorf("%s: got %#v", name, err)
			}
		}
		var encode *EncodeError
		if _, err := Call[int](ctx, p, "size", strings.Repeat("x", 1_000_001)); !errors.As(err, &encode) ||
			!strings.Contains(err.Error(), "1000000") {
			t.Errorf("got %v", err)
		}
		var died *WorkerDied
		if err := p.Call(ctx, "die", 7, nil); !errors.As(err, &died) || died.Status != "exit status 7" ||
			len(died.Stderr) != 1 || died.Stderr[0] != "last words" || outcomeOf(err) != outcomeDied {
			t.Errorf("got %v", err)
		}
		if sum := must2(Call[int](ctx, p, "add", Args{1, 1}))(t); sum != 2 {
			t.Error("the connection is of no use afterwards")
		}
	})
	t.Run("streams", func(t *testing.T) {
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
		items := 0
		var failure error
		for _, err := range Stream[int](ctx, p, "count", Args{5, 2}) {
			if failure = err; err == nil {
				items++
			}
		}
		var raised *RemoteError
		if items != 2 || !errors.As(failure, &raised) || raised.Message != "no 2" {
			t.Errorf("%d items, then %v", items, failure)
		}
		for range Stream[int](ctx, p, "count", 1_000_000) {
			break
		}
	})
	t.Run("many callers", func(t *testing.T) {
		var group sync.WaitGroup
		for caller := range 8 {
			group.Add(1)
			go func() {
				defer group.Done()
				for i := range 100 {
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
	})
}

func TestACallOfAServiceThatIsGivenUpStopsThePythonCode(t *testing.T) {
	path := place(t)
	serve(t, path)
	p, ctx := linked(t, path, func(o *Options) { o.MaxInFlight = 2 })
	for range 3 {
		short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
		if _, err := Call[string](short, p, "sleep", 1000); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		stop()
		its, cancel := context.WithCancel(ctx)
		time.AfterFunc(20*time.Millisecond, cancel)
		if _, err := Call[string](its, p, "sleep", 1000); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	}
	// Its one worker serves the next call only once those have ended.
	for _, one := range must2(Call[[]string](ctx, p, "ended", nil))(t) {
		if one != "Cancelled" {
			t.Errorf("one ended with %s", one)
		}
	}
}

func TestThePlacesAtAServiceAreBounded(t *testing.T) {
	path := place(t)
	serve(t, path, "--workers", "2")
	p, ctx := linked(t, path, func(o *Options) { o.MaxInFlight, o.MaxQueue = 1, -1 })
	its, cancel := context.WithCancel(ctx)
	result := make(chan error, 1)
	go func() { result <- p.Call(its, "sleep", 1000, nil) }()
	until(t, "the call", p.dispatcher.isTaken)
	if err := p.Call(ctx, "add", Args{1, 1}, nil); !errors.Is(err, ErrQueueFull) {
		t.Errorf("got %v", err)
	}
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestAServiceThatComesBackIsConnectedToAgain(t *testing.T) {
	path := place(t)
	service := serve(t, path)
	p, ctx := linked(t, path, nil)
	began, result := newMark(t), make(chan error, 1)
	go func() { result <- p.Call(ctx, "sleep", Args{1000, began}, nil) }()
	began.wait(t)
	service.end(syscall.SIGKILL)
	var lost *ConnectionLost
	if err := <-result; !errors.As(err, &lost) || lost.Path != path {
		t.Errorf("got %v", err)
	}
	until(t, "the end to be seen", func() bool { return p.Healthy() != nil })
	waiting := make(chan error, 1)
	go func() { waiting <- p.Call(ctx, "add", Args{1, 1}, nil) }() // waits for its return
	serve(t, path)
	if err := <-waiting; err != nil {
		t.Errorf("got %v", err)
	}
	if err := p.Healthy(); err != nil {
		t.Error(err)
	}
	var text bytes.Buffer
	if err := p.WriteMetrics(&text); err != nil || !strings.Contains(text.String(), `calls_total{outcome="died"} 1`) {
		t.Errorf("%v in\n%s", err, text.String())
	}
}

func TestTheBreakerOpensWhileAServiceIsAway(t *testing.T) {
	path := place(t)
	service := serve(t, path)
	log, logger := recorded()
	p, ctx := linked(t, path, func(o *Options) {
		o.Restart = Restart{First: time.Millisecond, MaxDeaths: 3, BreakerFor: 200 * time.Millisecond}
		o.Logger = logger
	})
	service.end(syscall.SIGTERM)
	until(t, "the breaker", func() bool { return errors.Is(p.Call(ctx, "add", Args{1, 1}, nil), ErrBreakerOpen) })
	if err := p.Healthy(); err == nil || !errors.Is(err, ErrBreakerOpen) && !strings.Contains(err.Error(), "no connection") {
		t.Errorf("got %v", err)
	}
	serve(t, path)
	until(t, "the service's return", func() bool { return p.Call(ctx, "add", Args{1, 1}, nil) == nil })
	text := log()
	for _, said := range []string{
		ofLinks.ended, ofLinks.cannotBegin, ofLinks.keepFailing, ofLinks.onTrial, ofLinks.servesAgain, path,
	} {
		if !strings.Contains(text, said) {
			t.Errorf("no %q in\n%s", said, text)
		}
	}
	if strings.Contains(text, "worker") {
		t.Errorf("there are no workers here:\n%s", text)
	}
}

// recorded returns a logger, and what it has said.
func recorded() (said func() string, logger *slog.Logger) {
	var mutex sync.Mutex
	var text bytes.Buffer
	write := writerFunc(func(data []byte) (int, error) {
		mutex.Lock()
		defer mutex.Unlock()
		return text.Write(data)
	})
	return func() string {
		mutex.Lock()
		defer mutex.Unlock()
		return text.String()
	}, slog.New(slog.NewTextHandler(write, nil))
}

func TestPausesGrowThoughAServiceThatEndsStillAnswers(t *testing.T) {
	path := place(t)
	service := serve(t, path)
	p, ctx := linked(t, path, func(o *Options) { o.Restart.First, o.Restart.Longest = 20*time.Millisecond, time.Hour })
	for number, err := range Stream[int](ctx, p, "count_patiently", Args{1_000_000, 0.001}) {
		if must(t, number, err) == 0 {
			_ = service.Process.Signal(syscall.SIGTERM)
		}
		p.mutex.Lock()
		lost := p.deaths[0]
		p.mutex.Unlock()
		if lost >= 5 {
			return
		}
	}
}

func TestAServiceWhoseWorkersKeepDyingSaysSo(t *testing.T) {
	path := place(t)
	text := "# /// script\n# [tool.atoll]\n# restart = {backoff = 0.001}\n# breaker = {failures = 2, cooldown = 1000}\n# ///\n" +
		"import os\nfrom atoll_worker import expose\n@expose\ndef add(a, b):\n    return a + b\n@expose\ndef die(code):\n    os._exit(code)\n"
	if err := os.WriteFile(path+".py", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	serveFile(t, path+".py", path)
	p, ctx := linked(t, path, func(o *Options) { o.HealthInterval = 10 * time.Millisecond })
	until(t, "its breaker", func() bool { return errors.Is(p.Call(ctx, "die", 3, nil), ErrBreakerOpen) })
	until(t, "what it says of itself", func() bool { return errors.Is(p.Healthy(), ErrBreakerOpen) })
	var raised *RemoteError
	if err := p.Call(ctx, "add", Args{1, 1}, nil); !errors.As(err, &raised) || raised.Own != "CircuitOpen" ||
		outcomeOf(err) != outcomeRefused {
		t.Errorf("got %v", err)
	}
}

func TestAServiceThatEndsInOrderAnswersFirst(t *testing.T) {
	path := place(t)
	service := serve(t, path)
	p, ctx := linked(t, path, nil)
	result := make(chan error, 1)
	began := newMark(t)
	go func() { result <- p.Call(ctx, "sleep", Args{0.5, began}, nil) }()
	began.wait(t)
	service.end(syscall.SIGTERM)
	if err := <-result; err != nil {
		t.Errorf("got %v", err)
	}
	if code := service.ProcessState.ExitCode(); code != 0 {
		t.Errorf("it ended with %d", code)
	}
}

func (d *dispatcher) isTaken() bool {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	return d.inFlight > 0
}

func TestWhoeverShutsDownLeavesTheServiceToOthers(t *testing.T) {
	path := place(t)
	serve(t, path)
	first, ctx := linked(t, path, nil)
	second, _ := linked(t, path, nil)
	result := make(chan error, 1)
	go func() { result <- first.Call(ctx, "sleep", 0.2, nil) }()
	until(t, "the call", func() bool { return first.open.Load() == 1 })
	if err := first.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := <-result; err != nil {
		t.Errorf("the call in progress: %v", err)
	}
	if err := first.Call(ctx, "add", Args{1, 1}, nil); !errors.Is(err, ErrShutdown) {
		t.Errorf("got %v", err)
	}
	if sum := must2(Call[int](ctx, second, "add", Args{1, 1}))(t); sum != 2 {
		t.Error("the service is gone")
	}
}

func TestAServiceThatIsStoppedGivesNoSignOfLife(t *testing.T) {
	path := place(t)
	service := serve(t, path)
	p, ctx := linked(t, path, func(o *Options) { o.HealthInterval, o.HealthTimeout = 20*time.Millisecond, 300*time.Millisecond })
	began, result := newMark(t), make(chan error, 1)
	go func() { result <- p.Call(ctx, "sleep", Args{1000, began}, nil) }()
	// It may seem silent to who is kept from listening: that is no other end.
	until(t, "the call", func() bool { return began.count() > 0 || len(result) > 0 })
	if err := service.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var lost *ConnectionLost
	if err := <-result; !errors.As(err, &lost) {
		t.Errorf("got %v", err)
	}
	if err := service.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	until(t, "its return", func() bool { return p.Call(ctx, "add", Args{1, 1}, nil) == nil })
}

func TestWhatCannotBeDialled(t *testing.T) {
	ctx := context.Background()
	var lost *ConnectionLost
	if _, err := Dial(ctx, "/nowhere/at/all", Options{Logger: quiet()}); !errors.As(err, &lost) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, err := Dial(ctx, "", Options{}); err == nil {
		t.Error("no path is one")
	}
	if _, err := Dial(ctx, "x", Options{Workers: 2}); err == nil || !strings.Contains(err.Error(), "Options.Workers") {
		t.Errorf("got %v", err)
	}
	path := place(t)
	serve(t, path, "--max-connections", "1")
	var failed *StartError
	if _, err := Dial(ctx, path, Options{Logger: quiet()}); !errors.As(err, &failed) || !strings.Contains(err.Error(), "1 clients") ||
		!strings.HasPrefix(err.Error(), "atoll: the service at "+path) {
		t.Errorf("got %v", err)
	}
}

// A punctual context is one whose end is known at once to who asks, and told to nobody: in its place, one whose end and an
// answer come at the same time.
type punctual struct {
	context.Context
	deadline time.Time
	ended    atomic.Pointer[error]
}

func (c *punctual) Deadline() (time.Time, bool) { return c.deadline, !c.deadline.IsZero() }
func (c *punctual) Done() <-chan struct{}       { return nil }
func (c *punctual) Err() error {
	if err := c.ended.Load(); err != nil {
		return *err
	}
	return nil
}

func TestTheErrorIsThatOfTheContextHoweverSoonTheServiceSawItsEnd(t *testing.T) {
	for own, kinds := range map[string][]error{
		"CallTimeout": {context.Canceled, context.DeadlineExceeded}, "Cancelled": {context.Canceled},
	} {
		for _, wanted := range kinds {
			for _, how := range []string{"call", "stream"} {
				t.Run(own+", "+wanted.Error()+", "+how, func(t *testing.T) {
					its := &punctual{Context: context.Background()}
					if wanted == context.DeadlineExceeded {
						its.deadline = time.Now().Add(20 * time.Millisecond)
					}
					path := lying(t, greets(func(conn net.Conn, f frame) {
						if wanted == context.DeadlineExceeded {
							time.Sleep(time.Until(its.deadline)) // what the service does
						} else {
							its.ended.Store(&wanted)
						}
						_, _ = conn.Write(appendFrame(nil, kindError, codecJSON, f.callID, []byte(`{"type":"x","atoll":"`+own+`"}`)))
					}))
					p, _ := linked(t, path, nil)
					err := error(nil)
					if how == "call" {
						err = p.Call(its, "f", nil, nil)
					} else {
						for _, err = range Stream[int](its, p, "f", nil) {
						}
					}
					if err != wanted {
						t.Errorf("got %#v", err)
					}
				})
			}
		}
	}
}

func TestAServicesOwnLimitIsNotTheContexts(t *testing.T) {
	path := place(t)
	serve(t, path, "--timeout", "0.05")
	p, ctx := linked(t, path, nil)
	var raised *RemoteError
	if err := p.Call(ctx, "sleep", 1000, nil); !errors.As(err, &raised) || raised.Own != "CallTimeout" ||
		!errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %#v", err)
	}
}

func TestDiallingThatIsGivenUpSaysSo(t *testing.T) {
	silent := lying(t, func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
	for _, before := range []bool{true, false} {
		ctx, cancel := context.WithCancel(context.Background())
		if before {
			cancel()
		} else {
			time.AfterFunc(20*time.Millisecond, cancel)
		}
		if _, err := Dial(ctx, silent, Options{Logger: quiet()}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		cancel()
	}
}

// -- services that lie -------------------------------------------------------------------------------------------------

// lying listens at a socket, and does what it likes with who connects.
func lying(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	path := place(t)
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	var mutex sync.Mutex
	var conns []net.Conn
	group.Add(1)
	go func() {
		defer group.Done()
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mutex.Lock()
			conns = append(conns, conn)
			mutex.Unlock()
			group.Add(1)
			go func() {
				defer group.Done()
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		mutex.Lock()
		for _, conn := range conns {
			conn.Close()
		}
		mutex.Unlock()
		group.Wait()
	})
	return path
}

func readFrame(from *bufio.Reader) (f frame, err error) {
	var at [headerSize]byte
	if _, err := io.ReadFull(from, at[:]); err != nil {
		return f, err
	}
	h, err := parseHeader(at[:])
	if err != nil {
		return f, err
	}
	f = frame{kind: h.kind, callID: h.callID, payload: make([]byte, h.length)}
	_, err = io.ReadFull(from, f.payload)
	return f, err
}

// greets does what is due, and then as is said of each call.
func greets(answer func(net.Conn, frame)) func(net.Conn) {
	return func(conn net.Conn) {
		from := bufio.NewReader(conn)
		for {
			f, err := readFrame(from)
			if err != nil {
				return
			}
			switch f.kind {
			case kindHello:
				_, _ = conn.Write(appendFrame(nil, kindHello, codecRaw, 0, helloPayload()))
			case kindLoad:
				_, _ = conn.Write(appendFrame(nil, kindReady, codecJSON, 0, []byte(`{"functions":["f"]}`)))
			case kindPing:
				_, _ = conn.Write(appendFrame(nil, kindPong, codecRaw, f.callID, []byte("running")))
			case kindCall:
				answer(conn, f)
			}
		}
	}
}

func write(data []byte) func(net.Conn, frame) {
	return func(conn net.Conn, _ frame) { _, _ = conn.Write(data) }
}

func TestWhatIsAskedOfAService(t *testing.T) {
	asked := make(chan map[string]any, 1)
	path := lying(t, greets(func(conn net.Conn, f frame) {
		var request map[string]any
		_ = json.Unmarshal(f.payload, &request)
		asked <- request
		_, _ = conn.Write(appendFrame(nil, kindResult, codecJSON, f.callID, []byte("null")))
	}))
	p, ctx := linked(t, path, nil)
	request := func(ctx context.Context, in any) map[string]any {
		if err := p.Call(ctx, "f", in, nil); err != nil {
			t.Fatal(err)
		}
		return <-asked
	}
	free := context.Background()
	for _, one := range []struct {
		in     any
		wanted string
	}{
		{nil, `{"function":"f"}`},
		{7, `{"args":[7],"function":"f"}`},
		{[]int{1, 2}, `{"args":[[1,2]],"function":"f"}`},
		{Args{1, "two"}, `{"args":[1,"two"],"function":"f"}`},
		{Kwargs{"a": 1}, `{"function":"f","kwargs":{"a":1}}`},
	} {
		if got, _ := json.Marshal(request(free, one.in)); string(got) != one.wanted {
			t.Errorf("%v is asked for as %s, not %s", one.in, got, one.wanted)
		}
	}
	short, stop := context.WithTimeout(ctx, patient/2)
	defer stop()
	if seconds, ok := request(short, nil)["timeout"].(float64); !ok || seconds > (patient/2).Seconds() || seconds <= 0 {
		t.Errorf("the deadline is told as %v", seconds)
	}
}

func TestServicesThatLieWhenTheyGreet(t *testing.T) {
	huge := appendFrame(nil, kindReady, codecJSON, 0, nil)
	binary.LittleEndian.PutUint32(huge[4:], maxPayload+1)
	hello := appendFrame(nil, kindHello, codecRaw, 0, helloPayload())
	for name, said := range map[string][]byte{
		"http":        []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"nothing":     {},
		"half":        hello[:10],
		"silence":     nil,
		"halfReady":   append(bytes.Clone(hello), appendFrame(nil, kindReady, codecJSON, 0, []byte(`{}`))[:17]...),
		"otherKind":   appendFrame(nil, kindResult, codecJSON, 0, []byte("1")),
		"otherReady":  append(bytes.Clone(hello), appendFrame(nil, kindResult, codecJSON, 0, []byte("1"))...),
		"hugeReady":   append(bytes.Clone(hello), huge...),
		"noJSON":      append(bytes.Clone(hello), appendFrame(nil, kindReady, codecJSON, 0, []byte("{"))...),
		"noJSONError": append(bytes.Clone(hello), appendFrame(nil, kindError, codecJSON, 0, []byte("["))...),
	} {
		t.Run(name, func(t *testing.T) {
			path := lying(t, func(conn net.Conn) {
				_, _ = conn.Write(said)
				if said == nil || strings.HasPrefix(name, "half") {
					_, _ = io.Copy(io.Discard, conn) // until the client has enough
				}
			})
			ctx, stop := context.WithTimeout(context.Background(), patient)
			defer stop()
			_, err := Dial(ctx, path, Options{Logger: quiet(), StartTimeout: 200 * time.Millisecond})
			if err == nil {
				t.Fatal("it was believed")
			}
			if ctx.Err() != nil {
				t.Error("it took too long")
			}
		})
	}
}

func TestServicesThatLieWhenTheyAnswer(t *testing.T) {
	huge := appendFrame(nil, kindResult, codecJSON, 1, nil)
	binary.LittleEndian.PutUint32(huge[4:], maxPayload+1)
	for name, said := range map[string][]byte{
		"another id":    appendFrame(nil, kindResult, codecJSON, 9, []byte("1")),
		"another kind":  appendFrame(nil, kindCall, codecJSON, 1, []byte("{}")),
		"unknown kind":  {99, 0, 0, 0},
		"another codec": appendFrame(nil, kindResult, codecPickle, 1, []byte("N.")),
		"too large":     huge,
		"no error":      appendFrame(nil, kindError, codecJSON, 1, []byte("7")),
	} {
		t.Run(name, func(t *testing.T) {
			path := lying(t, greets(write(said)))
			p, ctx := linked(t, path, nil)
			var against *ProtocolError
			if err := p.Call(ctx, "f", nil, nil); !errors.As(err, &against) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("half an answer, then silence", func(t *testing.T) {
		path := lying(t, greets(write(appendFrame(nil, kindResult, codecJSON, 1, make([]byte, 1000))[:500])))
		p, ctx := linked(t, path, nil)
		short, stop := context.WithTimeout(ctx, 100*time.Millisecond)
		defer stop()
		if err := p.Call(short, "f", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("it leaves", func(t *testing.T) {
		path := lying(t, greets(func(conn net.Conn, _ frame) { conn.Close() }))
		p, ctx := linked(t, path, nil)
		var lost *ConnectionLost
		if err := p.Call(ctx, "f", nil, nil); !errors.As(err, &lost) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("it announces much", func(t *testing.T) {
		announced := appendFrame(nil, kindResult, codecJSON, 1, []byte("1"))
		binary.LittleEndian.PutUint32(announced[4:], maxPayload)
		var before, after runtime.MemStats
		path := lying(t, greets(write(announced)))
		p, ctx := linked(t, path, nil)
		runtime.ReadMemStats(&before)
		short, stop := context.WithTimeout(ctx, 100*time.Millisecond)
		defer stop()
		if err := p.Call(short, "f", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if runtime.ReadMemStats(&after); after.TotalAlloc-before.TotalAlloc > 100<<20 {
			t.Errorf("it was given %d MB", (after.TotalAlloc-before.TotalAlloc)>>20)
		}
	})
}
