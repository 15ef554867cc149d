// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"log"
	"log/slog"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	atoll "atoll/clients/go"
)

// This repository's client over its worker.

func start(python string, count int) (*atoll.Pool, error) {
	return atoll.Start(context.Background(), atoll.Options{
		Python: python, WorkerFolder: filepath.Join(*root, "src/atoll_worker"),
		Service: filepath.Join(*root, "benchmarks/go/service.py"), Workers: count,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
}

func stop(p *atoll.Pool) {
	if err := p.Shutdown(context.Background()); err != nil {
		log.Print(err)
	}
}

func openAtoll(name, python string) (contender, func(), error) {
	one, err := start(python, 1)
	if err != nil {
		return contender{}, nil, err
	}
	several, err := start(python, workers)
	if err != nil {
		stop(one)
		return contender{}, nil, err
	}
	caller := func(_, workers int) (func(string, any, any) error, func()) {
		pool := several
		if workers == 1 {
			pool = one
		}
		return func(method string, in, out any) error {
			return pool.Call(context.Background(), method, in, out)
		}, func() {}
	}
	return contender{name, caller}, func() { stop(one); stop(several) }, nil
}

// underDeadlines has callers make calls that each have a context of their own, and counts those that failed.
func underDeadlines(python string, calls int) int64 {
	p, err := start(python, workers)
	if err != nil {
		log.Fatal(err)
	}
	defer stop(p)
	var failed atomic.Int64
	var group sync.WaitGroup
	for range callers {
		group.Add(1)
		go func() {
			defer group.Done()
			for i := range calls / callers {
				one := func() error {
					ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
					defer cancel()
					got, err := atoll.Call[reply](ctx, p, "predict", request{i})
					if err == nil && got.Result != 2*i {
						log.Fatalf("%d came of %d", got.Result, i)
					}
					return err
				}
				if one() != nil {
					failed.Add(1)
				}
			}
		}()
	}
	group.Wait()
	return failed.Load()
}

// starting times, in turn: so many bare interpreters at a time, to their ends; a pool of as many workers, until all are
// ready; and the first call of that pool. Milliseconds.
func starting(python string, count int) (ready, bare, first []float64) {
	for range *starts {
		began := time.Now()
		var group sync.WaitGroup
		for range count {
			group.Add(1)
			go func() {
				defer group.Done()
				if err := exec.Command(python, "-I", "-c", "pass").Run(); err != nil {
					log.Fatal(err)
				}
			}()
		}
		group.Wait()
		bare = append(bare, milliseconds(time.Since(began)))
		began = time.Now()
		p, err := start(python, count)
		if err != nil {
			log.Fatal(err)
		}
		ready = append(ready, milliseconds(time.Since(began)))
		began = time.Now()
		if _, err := atoll.Call[reply](context.Background(), p, "predict", request{1}); err != nil {
			log.Fatal(err)
		}
		first = append(first, milliseconds(time.Since(began)))
		stop(p)
	}
	return ready, bare, first
}
