// SPDX-License-Identifier: Apache-2.0

// Measures calls from Go, side by side and in one run: this repository's client over its worker; run_worker under
// pyproc's wire, and a plain Go program in its place, both called by the least that a client of that wire can be. All
// workers are up at the same time and are measured in turn, round by round. Prints one line of JSON, see results.
//
//	go run . -fast PYTHON -standard PYTHON
//
// benchmarks/go_client.py runs it and makes figures of what it prints.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"
)

var (
	fast      = flag.String("fast", "python3", "interpreter that has msgspec or orjson")
	standard  = flag.String("standard", "", "interpreter that has neither; left out if empty")
	root      = flag.String("root", "../..", "the repository")
	rounds    = flag.Int("rounds", 10, "interleaved rounds")
	seconds   = flag.Float64("seconds", 0.3, "of each measurement, in each round")
	deadlines = flag.Int("deadlines", 100_000, "calls under a deadline of their own")
	starts    = flag.Int("starts", 15, "starts of workers, each beside one of bare interpreters")
	serve     = flag.String("serve", "", "be the plain Go worker at this socket instead")
)

const workers, callers = 2, 4

type request struct {
	Value int `json:"value"`
}

type reply struct {
	Result int `json:"result"`
}

type holder struct {
	Data string `json:"data"`
}

// A contender is a way to call. Each caller has a function of its own, and calls from one goroutine.
type contender struct {
	name string
	// caller returns how to call the first of so many workers, or whichever of them is next, and how to be done with it.
	caller func(number, workers int) (call func(method string, in, out any) error, done func())
}

// A sample is what one round gave: microseconds of a call, or calls a second.
type sample struct {
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	Rate float64 `json:"rate"`
}

type results struct {
	Go         string                          `json:"go"`
	Samples    map[string]map[string][]sample  `json:"samples"` // of each contender, of each kind, by round
	Deadlines  int                             `json:"deadlines"`
	Failed     int64                           `json:"failed"`
	Starts     map[string]map[string][]float64 `json:"starts"` // milliseconds, by how many at a time, "ready" and "bare"
	FirstCalls map[string][]float64            `json:"first_calls"`
}

var sizes = []int{1_000, 100_000, 5_000_000}

func microseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

func milliseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// timed has callers call for a while, and checks every answer.
func (c contender) timed(count, workers, size int) sample {
	times := make([][]time.Duration, count)
	var group, prepared sync.WaitGroup
	begin := make(chan struct{})
	for number := range count {
		call, done := c.caller(number, workers)
		one := c.small(call)
		if size > 0 {
			one = c.large(call, size)
		}
		group.Add(1)
		prepared.Add(1)
		go func() {
			defer group.Done()
			defer done()
			one(0) // connected, and awake
			prepared.Done()
			<-begin
			until := time.Now().Add(time.Duration(*seconds * float64(time.Second)))
			for i := 1; ; i++ {
				began := time.Now()
				if i > 1 && began.After(until) { // one is made at least, however late it is
					return
				}
				one(i)
				times[number] = append(times[number], time.Since(began))
			}
		}()
	}
	prepared.Wait()
	began := time.Now()
	close(begin)
	group.Wait()
	took := time.Since(began)
	all := slices.Concat(times...)
	slices.Sort(all)
	return sample{
		P50: microseconds(all[(len(all)-1)/2]), P99: microseconds(all[(len(all)-1)*99/100]),
		Rate: float64(len(all)) / took.Seconds(),
	}
}

func (c contender) small(call func(string, any, any) error) func(int) {
	return func(i int) {
		var got reply
		if err := call("predict", request{i}, &got); err != nil || got.Result != 2*i {
			log.Fatalf("%s: %d came of %d: %v", c.name, got.Result, i, err)
		}
	}
}

// large sends a text of so many bytes within an object there and back.
func (c contender) large(call func(string, any, any) error, size int) func(int) {
	text := make([]byte, size)
	for i := range text {
		text[i] = 'a' + byte(i%26)
	}
	sent := holder{string(text)}
	return func(int) {
		var got holder
		if err := call("echo", sent, &got); err != nil || len(got.Data) != size || got.Data[size-1] != sent.Data[size-1] {
			log.Fatalf("%s: %d bytes came of %d: %v", c.name, len(got.Data), size, err)
		}
	}
}

func (c contender) round(into map[string][]sample) {
	into["one caller"] = append(into["one caller"], c.timed(1, 1, 0))
	into["many callers"] = append(into["many callers"], c.timed(callers, workers, 0))
	for _, size := range sizes {
		kind := fmt.Sprint(size)
		into[kind] = append(into[kind], c.timed(1, 1, size))
	}
}

// Workers are to end with this program: the kernel sees to it once the thread that started them ends.
func init() { runtime.LockOSThread() }

func main() {
	log.SetFlags(0)
	flag.Parse()
	if *serve != "" {
		servePlainly(*serve)
		return
	}
	folder, err := filepath.Abs(*root)
	if err != nil {
		log.Fatal(err)
	}
	*root = folder
	place, err := os.MkdirTemp("", "atoll-go-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(place)
	var contenders []contender
	add := func(name string, open func(string) (contender, func(), error)) {
		c, done, err := open(name)
		if err != nil {
			os.RemoveAll(place)
			log.Fatalf("%s: %v", name, err)
		}
		contenders = append(contenders, c)
		finally = append(finally, done)
	}
	defer end()
	add("atoll", func(name string) (contender, func(), error) { return openAtoll(name, *fast) })
	add("pyproc, run_worker", func(name string) (contender, func(), error) { return openRunWorker(name, place, "auto") })
	if *standard != "" {
		add("atoll, standard", func(name string) (contender, func(), error) { return openAtoll(name, *standard) })
		add("pyproc, run_worker, standard", func(name string) (contender, func(), error) {
			return openRunWorker(name, place, "json")
		})
	}
	add("pyproc, plain Go", func(name string) (contender, func(), error) { return openPlainGo(name, place) })

	got := results{
		Go: runtime.Version(), Samples: map[string]map[string][]sample{}, Starts: map[string]map[string][]float64{},
		FirstCalls: map[string][]float64{}, Deadlines: *deadlines,
	}
	for _, c := range contenders {
		got.Samples[c.name] = map[string][]sample{}
	}
	for round := range *rounds {
		for i := range contenders { // whoever follows whom is another one each time
			c := contenders[(i*(1+round%2)+round)%len(contenders)]
			c.round(got.Samples[c.name])
		}
	}
	got.Failed = underDeadlines(*fast, *deadlines)
	python := *standard
	if python == "" {
		python = *fast
	}
	for kind, python := range map[string]string{"1": python, "4": python, "1, fast": *fast} {
		ready, bare, first := starting(python, int(kind[0]-'0'))
		got.Starts[kind] = map[string][]float64{"ready": ready, "bare": bare}
		got.FirstCalls[kind] = first
	}
	if err := json.NewEncoder(os.Stdout).Encode(got); err != nil {
		log.Fatal(err)
	}
}

var finally []func()

func end() {
	for _, done := range slices.Backward(finally) {
		done()
	}
}
