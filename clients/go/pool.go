// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Options say what is to be called, and how its workers are to be.
type Options struct {
	Python       string   // the interpreter: a path or a name; "python3" if empty
	WorkerFolder string   // the folder of the package atoll_worker; if empty, where $ATOLL_WORKER says or Python finds it
	Service      string   // path of the file whose functions are called
	Module       string   // or the name of a module, if Service is empty
	Class        string   // a Service class of it; if empty, all that is exposed
	SysPath      []string // folders that modules are imported from, beside the environment's
	Environ      []string // more environment variables, as "NAME=value"

	Workers     int // how many there are (1)
	Concurrency int // calls that each runs at a time, on threads of its own (1)
	// MaxInFlight is how many calls are in progress at a time at most, in all workers; 0: as many as they run. One more
	// waits for its turn, which comes in the order of arrival.
	MaxInFlight int
	// MaxQueue is how many calls may wait (100,000); one more gets ErrQueueFull at once. -1: none may wait.
	MaxQueue       int
	StartTimeout   time.Duration // for a worker to be ready (1 min)
	HealthInterval time.Duration // between pings (10 s)
	HealthTimeout  time.Duration // without a sign of life, after which a worker is killed (30 s)
	Restart        Restart

	NoLane bool         // use sockets alone, not shared memory beside them
	NoSpin bool         // sleep at once instead of polling for some microseconds
	Logger *slog.Logger // slog.Default() if nil

	socket string // of Dial
	words  words
	steps  steps
}

func (o *Options) complete() error {
	set := func(what *int, value int) {
		if *what == 0 {
			*what = value
		}
	}
	setTime := func(what *time.Duration, value time.Duration) {
		if *what == 0 {
			*what = value
		}
	}
	set(&o.Workers, 1)
	set(&o.Concurrency, 1)
	set(&o.MaxQueue, 100_000)
	setTime(&o.StartTimeout, time.Minute)
	setTime(&o.HealthInterval, 10*time.Second)
	setTime(&o.HealthTimeout, 30*time.Second)
	if o.socket == "" {
		o.Restart, o.words = o.Restart.or(restartOfWorkers), ofWorkers
	} else {
		o.Restart, o.words = o.Restart.or(restartOfLinks), ofLinks
	}
	if o.steps == (steps{}) {
		o.steps = usualSteps
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	for _, one := range []struct {
		name         string
		found, least int
	}{
		{"Workers", o.Workers, 1}, {"Concurrency", o.Concurrency, 1}, {"MaxInFlight", o.MaxInFlight, 0}, {"MaxQueue", o.MaxQueue, -1},
	} {
		if one.found < one.least {
			return fmt.Errorf("atoll: Options.%s is %d; at least %d is needed", one.name, one.found, one.least)
		}
	}
	for name, found := range map[string]time.Duration{
		"StartTimeout": o.StartTimeout, "HealthInterval": o.HealthInterval, "HealthTimeout": o.HealthTimeout,
		"Restart.First": o.Restart.First, "Restart.Longest": o.Restart.Longest, "Restart.Window": o.Restart.Window,
		"Restart.BreakerFor": o.Restart.BreakerFor,
	} {
		if found < 0 {
			return fmt.Errorf("atoll: Options.%s is %v; it cannot be negative", name, found)
		}
	}
	if o.socket != "" {
		return nil
	}
	if (o.Service == "") == (o.Module == "") {
		return errors.New("atoll: one of Service, the path of a file, and Module, a name, must be given")
	}
	if o.Service != "" {
		path, err := filepath.Abs(o.Service)
		if err != nil {
			return err
		}
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("atoll: the service cannot be read: %w", err)
		}
		o.Service = path
	}
	if o.Python == "" {
		o.Python = "python3"
	}
	python, err := exec.LookPath(o.Python)
	if err != nil {
		return fmt.Errorf("atoll: there is no interpreter: %w", err)
	}
	if o.Python, err = filepath.Abs(python); err != nil {
		return err
	}
	return o.findWorkerFolder()
}

func (o *Options) findWorkerFolder() error {
	if o.WorkerFolder == "" {
		o.WorkerFolder = os.Getenv("ATOLL_WORKER")
	}
	if o.WorkerFolder == "" {
		asked := exec.Command(o.Python, "-c", "import atoll_worker; print(atoll_worker.__path__[0])")
		answer, err := asked.Output()
		if err != nil {
			return fmt.Errorf("atoll: %s does not find the package atoll_worker; "+
				"say in Options.WorkerFolder or $ATOLL_WORKER where it is", o.Python)
		}
		o.WorkerFolder = strings.TrimSpace(string(answer))
	}
	if _, err := os.Stat(filepath.Join(o.WorkerFolder, "__main__.py")); err != nil {
		return fmt.Errorf("atoll: %q is not the folder of the package atoll_worker: %w", o.WorkerFolder, err)
	}
	return nil
}

// where is what the log says beside what happened to a connection: which service it is to.
func (o *Options) where() []any {
	if o.socket == "" {
		return nil
	}
	return []any{"socket", o.socket}
}

// environment is this program's, less what would make another Python part of the worker's.
func (o *Options) environment() []string {
	var environ []string
	for _, one := range os.Environ() {
		name, _, _ := strings.Cut(one, "=")
		switch name {
		case "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP":
		default:
			environ = append(environ, one)
		}
	}
	return append(environ, o.Environ...)
}

// load is the payload of LOAD.
func (o *Options) load() map[string]any {
	var class any
	if o.Class != "" {
		class = o.Class
	}
	entry := map[string]any{"kind": "file", "path": o.Service, "class": class}
	if o.Service == "" {
		entry = map[string]any{"kind": "module", "module": o.Module, "class": class}
	}
	level := 30
	switch ctx := context.Background(); {
	case o.Logger.Enabled(ctx, slog.LevelDebug):
		level = 10
	case o.Logger.Enabled(ctx, slog.LevelInfo):
		level = 20
	}
	path := o.SysPath
	if path == nil {
		path = []string{}
	}
	return map[string]any{"entry": entry, "sys_path": path, "log_level": level}
}

// A Pool is the workers of one service, or the connections to one that somebody else runs. Its methods may be called from
// any goroutine.
type Pool struct {
	options    Options
	dispatcher dispatcher
	metrics    metrics
	mutex      sync.Mutex
	policy     policy
	deaths     []int // of each worker and those before it in its place, since one answered a call
	start      func(context.Context, *Options) (*worker, error)
	current    atomic.Pointer[worker] // the last that became ready
	unproven   atomic.Bool            // a worker died since the last call that was answered
	workers    sync.WaitGroup
	closing    atomic.Bool
	open       atomic.Int64 // calls
	drained    chan struct{}
	drainOnce  sync.Once
	ending     context.Context // ends when workers are to stop
	endNow     context.CancelFunc
	stopping   context.Context // ends when no more time is left to them
	hurry      context.CancelCauseFunc
	gone       chan struct{} // closed once all have ended
	failure    error         // of the first Shutdown; to be read after that
	errors     []error
}

// Start starts workers, all at a time, and returns when they are ready. Nothing is left behind if that fails. Errors:
// *StartError (the service cannot be loaded, or not in time), *WorkerDied (a worker ended before it was ready), that of ctx;
// and those of options that are wrong.
func Start(ctx context.Context, options Options) (*Pool, error) {
	if err := options.complete(); err != nil {
		return nil, err
	}
	return open(ctx, options, startWorker)
}

func open(ctx context.Context, options Options, start func(context.Context, *Options) (*worker, error)) (*Pool, error) {
	p := &Pool{options: options, policy: policy{restart: options.Restart}, start: start}
	p.deaths = make([]int, options.Workers)
	p.drained, p.gone = make(chan struct{}), make(chan struct{})
	p.dispatcher.maxQueue = max(options.MaxQueue, 0)
	p.dispatcher.maxInFlight = cmp.Or(options.MaxInFlight, math.MaxInt)
	p.ending, p.endNow = context.WithCancel(context.Background())
	p.stopping, p.hurry = context.WithCancelCause(context.Background())
	starting, giveUp := context.WithCancel(ctx)
	defer giveUp()
	type started struct {
		worker *worker
		err    error
	}
	results := make(chan started, options.Workers)
	for range options.Workers {
		go func() {
			w, err := p.startInTime(starting)
			results <- started{w, err}
		}()
	}
	var workers []*worker
	var failure error
	for range options.Workers {
		one := <-results
		if one.err != nil && failure == nil {
			failure = one.err
			giveUp()
		}
		if one.worker != nil {
			workers = append(workers, one.worker)
		}
	}
	if failure != nil {
		for _, w := range workers {
			w.others.kill()
			<-w.exited
			w.close()
		}
		p.endNow()
		return nil, failure
	}
	for place, w := range workers {
		p.workers.Add(1)
		p.takeUp(w)
		go p.supervise(w, place)
	}
	return p, nil
}

func (p *Pool) startInTime(ctx context.Context) (*worker, error) {
	ctx, stop := context.WithTimeout(ctx, p.options.StartTimeout)
	defer stop()
	return p.start(ctx, &p.options)
}

// takeUp has a worker that is ready be given calls.
func (p *Pool) takeUp(w *worker) {
	p.metrics.ready.Add(1)
	p.current.Store(w)
	p.dispatcher.add(w)
}

// supervise keeps the worker of one place alive until the pool ends.
func (p *Pool) supervise(w *worker, place int) {
	defer p.workers.Done()
	for {
		if w != nil {
			p.watch(w)
			p.metrics.ready.Add(-1)
			p.dispatcher.remove(w)
			if p.ending.Err() != nil {
				return
			}
			p.options.Logger.Warn(p.options.words.ended, append(p.options.where(), "pid", w.pid, "status", w.status)...)
		}
		if !p.pause(w, place) {
			return
		}
		var err error
		if w, err = p.startInTime(p.ending); err != nil {
			if p.ending.Err() != nil {
				return
			}
			p.options.Logger.Error(p.options.words.cannotBegin, "error", err)
			w = nil
			continue
		}
		p.metrics.restarts.Add(1)
		p.takeUp(w)
	}
}

// pause waits until the next worker may be started in the place of one that died, or nil: that could not be started; false
// if none is to be.
func (p *Pool) pause(died *worker, place int) bool {
	p.mutex.Lock()
	if died != nil && died.hasAnswered.Load() {
		p.deaths[place] = 0
	}
	p.deaths[place]++
	now := time.Now()
	until := p.policy.died(now, p.deaths[place])
	p.unproven.Store(true)
	refuses := p.policy.refuses(now) && p.metrics.ready.Load() == 0
	if refuses && p.ending.Err() == nil {
		p.options.Logger.Error(p.options.words.keepFailing, append(p.options.where(), "until", until)...)
		p.metrics.breaker.Store(1)
		p.dispatcher.refuse(ErrBreakerOpen)
	}
	p.mutex.Unlock()
	for {
		timer := time.NewTimer(time.Until(until))
		select {
		case <-timer.C:
		case <-p.ending.Done():
			timer.Stop()
			return false
		}
		p.mutex.Lock()
		// Another worker may have died meanwhile.
		if until = p.policy.refusesUntil(); p.metrics.breaker.Load() == 0 || !time.Now().Before(until) {
			break
		}
		p.mutex.Unlock()
	}
	defer p.mutex.Unlock()
	if p.metrics.breaker.Swap(0) == 1 {
		p.options.Logger.Info(p.options.words.onTrial, p.options.where()...)
		p.dispatcher.refuse(nil)
	}
	return true
}

// watch pings a worker until it has ended, which it brings about if there is no answer or the pool ends.
func (p *Pool) watch(w *worker) {
	w.pong.Store(time.Now().UnixNano())
	ticker := time.NewTicker(p.options.HealthInterval)
	defer ticker.Stop()
	for {
		select {
		case <-w.exited:
			return
		case <-p.ending.Done():
			if err := w.stop(p.stopping); err != nil {
				p.mutex.Lock()
				p.errors = append(p.errors, err)
				p.mutex.Unlock()
			}
			return
		case <-ticker.C:
			if time.Since(time.Unix(0, w.pong.Load())) > p.options.HealthTimeout {
				p.options.Logger.Error(p.options.words.silent, append(p.options.where(), "pid", w.pid)...)
				w.others.kill()
				<-w.exited
				return
			}
			// On a goroutine of its own: a worker that is stopped does not read.
			go w.ping()
		}
	}
}

// Functions returns the names of what can be called, as an idle worker has them.
func (p *Pool) Functions(ctx context.Context) ([]string, error) {
	c, err := p.take(ctx, false)
	if err != nil {
		return nil, err
	}
	defer p.dispatcher.put(c)
	return c.worker.about.Functions, nil
}

// Healthy returns nil if at least one worker is ready, and a service at a socket says that it runs, as far as is known
// since the last sign of life; or why calls would fail.
func (p *Pool) Healthy() error {
	if p.closing.Load() {
		return ErrShutdown
	}
	if p.metrics.breaker.Load() == 1 {
		return ErrBreakerOpen
	}
	if p.metrics.ready.Load() == 0 {
		return errors.New(p.options.words.noneReady)
	}
	if w := p.current.Load(); w != nil {
		if l, ok := w.others.(*link); ok {
			return l.whyNot(w)
		}
	}
	return nil
}

func (p *Pool) begin() error {
	p.open.Add(1)
	if p.closing.Load() {
		p.ended()
		return ErrShutdown
	}
	return nil
}

func (p *Pool) ended() {
	if p.open.Add(-1) == 0 && p.closing.Load() {
		p.drainOnce.Do(func() { close(p.drained) })
	}
}

// Shutdown refuses new calls, lets those in progress and those that wait come to their end, has the workers tear their
// service down, and returns when all have ended. When ctx ends first, what is left is killed, and its error returned. Who
// calls it meanwhile waits for the same, no longer than their own ctx lasts; who calls it afterwards gets nil.
func (p *Pool) Shutdown(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { p.hurry(ctx.Err()) })()
	if p.closing.Swap(true) {
		select {
		case <-p.gone:
			return nil
		default:
		}
		<-p.gone
		return p.failure
	}
	p.open.Add(1)
	p.ended()
	var late error
	select {
	case <-p.drained:
	case <-p.stopping.Done():
		late = fmt.Errorf("atoll: calls were in progress when the time to shut down was over: %w", context.Cause(p.stopping))
	}
	p.mutex.Lock()
	p.endNow()
	p.dispatcher.refuse(ErrShutdown)
	p.mutex.Unlock()
	p.workers.Wait()
	p.failure = errors.Join(append([]error{late}, p.errors...)...)
	close(p.gone)
	return p.failure
}
