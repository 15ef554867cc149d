// SPDX-License-Identifier: Apache-2.0

// Measures the Go client against a real worker, and prints JSON: microseconds, calls a second, or counts.
//
//	go run . -python ../../.venv/bin/python
package main

import (
	"context"
	"encoding/json"
	"flag"
	"io"
	"log"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	atoll "atoll/clients/go"
)

type request struct {
	Value int `json:"value"`
}

type reply struct {
	Result int `json:"result"`
}

var (
	python = flag.String("python", "python3", "interpreter")
	folder = flag.String("worker", "../../src/atoll_worker", "folder of atoll_worker")
	calls  = flag.Int("calls", 20_000, "calls of each measurement")
)

func pool(workers int, noLane bool) *atoll.Pool {
	p, err := atoll.Start(context.Background(), atoll.Options{
		Python: *python, WorkerFolder: *folder, Service: "service.py", Workers: workers, NoLane: noLane,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		log.Fatal(err)
	}
	return p
}

func stop(p *atoll.Pool) {
	if err := p.Shutdown(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func median(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)/2]
}

func microseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// oneCaller is the p50 of a small call.
func oneCaller(noLane bool) float64 {
	p := pool(1, noLane)
	defer stop(p)
	ctx := context.Background()
	times := make([]time.Duration, 0, *calls)
	for i := range *calls {
		began := time.Now()
		got, err := atoll.Call[reply](ctx, p, "predict", request{i})
		if err != nil || got.Result != 2*i {
			log.Fatal(got, err)
		}
		times = append(times, time.Since(began))
	}
	return microseconds(median(times))
}

// manyCallers is calls a second of four callers of two workers, and how many failed, each under a deadline of its own.
func manyCallers(noLane bool, total int) (float64, int64) {
	p := pool(2, noLane)
	defer stop(p)
	var failed atomic.Int64
	var group sync.WaitGroup
	began := time.Now()
	for range 4 {
		group.Add(1)
		go func() {
			defer group.Done()
			for i := range total / 4 {
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				got, err := atoll.Call[reply](ctx, p, "predict", request{i})
				cancel()
				if err != nil || got.Result != 2*i {
					failed.Add(1)
				}
			}
		}()
	}
	group.Wait()
	return float64(total) / time.Since(began).Seconds(), failed.Load()
}

// payload is the p50 of a text of so many bytes there and back.
func payload(p *atoll.Pool, size, rounds int) float64 {
	text := strings.Repeat("x", size)
	times := make([]time.Duration, 0, rounds)
	for range rounds {
		began := time.Now()
		got, err := atoll.Call[string](context.Background(), p, "echo", text)
		if err != nil || len(got) != size {
			log.Fatal(len(got), err)
		}
		times = append(times, time.Since(began))
	}
	return microseconds(median(times))
}

// object is the same for a text that is part of something, which the standard library's JSON takes apart.
func object(p *atoll.Pool, size, rounds int) float64 {
	type holder struct {
		Text string `json:"text"`
	}
	sent := holder{strings.Repeat("x", size)}
	times := make([]time.Duration, 0, rounds)
	for range rounds {
		began := time.Now()
		got, err := atoll.Call[holder](context.Background(), p, "echo", sent)
		if err != nil || len(got.Text) != size {
			log.Fatal(len(got.Text), err)
		}
		times = append(times, time.Since(began))
	}
	return microseconds(median(times))
}

// starting is the p50 of starting so many workers, as a multiple of starting as many bare interpreters, both at a time.
func starting(workers int) (float64, float64) {
	var ours, bare []time.Duration
	for range 9 {
		began := time.Now()
		var group sync.WaitGroup
		for range workers {
			group.Add(1)
			go func() {
				defer group.Done()
				if err := exec.Command(*python, "-I", "-c", "pass").Run(); err != nil {
					log.Fatal(err)
				}
			}()
		}
		group.Wait()
		bare = append(bare, time.Since(began))
		began = time.Now()
		p := pool(workers, false)
		ours = append(ours, time.Since(began))
		stop(p)
	}
	return median(ours).Seconds() * 1e3, float64(median(ours)) / float64(median(bare))
}

func main() {
	flag.Parse()
	results := map[string]any{}
	results["one caller, µs"] = oneCaller(false)
	results["one caller, socket alone, µs"] = oneCaller(true)
	rate, failed := manyCallers(false, 5**calls)
	results["4 callers of 2 workers, calls/s"], results["failed under deadlines"] = rate, failed
	results["4 callers of 2 workers, socket alone, calls/s"], _ = manyCallers(true, 5**calls)
	p := pool(1, false)
	results["100 KB in an object, µs"] = object(p, 100_000, 300)
	results["5 MB in an object, µs"] = object(p, 5_000_000, 15)
	results["1 KB, µs"] = payload(p, 1_000, 2_000)
	results["100 KB, µs"] = payload(p, 100_000, 300)
	results["5 MB, µs"] = payload(p, 5_000_000, 15)
	stop(p)
	for name, workers := range map[string]int{"1 worker": 1, "4 workers": 4} {
		milliseconds, times := starting(workers)
		results["ready "+name+", ms"], results["ready "+name+", times the interpreter's start"] = milliseconds, times
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(results); err != nil {
		log.Fatal(err)
	}
}
