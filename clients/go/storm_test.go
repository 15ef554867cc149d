// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// storm has many callers call, and give up at any moment. Whatever is answered is the answer to what was asked.
func storm(t *testing.T, p *Pool, ctx context.Context) {
	until := time.Now().Add(1500 * time.Millisecond)
	var group sync.WaitGroup
	for caller := range 8 {
		group.Add(1)
		go func() {
			defer group.Done()
			random := rand.New(rand.NewPCG(1, uint64(caller)))
			for i := 0; time.Now().Before(until) && !t.Failed(); i++ {
				its, stop := context.WithTimeout(ctx, time.Duration(random.IntN(6000))*time.Microsecond)
				number := caller*1_000_000 + i
				var err error
				got, wanted := 0, number
				switch random.IntN(5) {
				case 0:
					got, err = Call[int](its, p, "add", Args{number, 0})
				case 1:
					got, err = Call[int](its, p, "later", Args{number, 0.001})
				case 2:
					err = p.Call(its, "sleep", 0.002, nil)
					got = wanted
				case 3:
					text := make([]byte, random.IntN(200_000))
					for at := range text {
						text[at] = 'a' + byte(caller)
					}
					var back string
					back, err = Call[string](its, p, "echo", string(text))
					if err == nil && back != string(text) {
						t.Errorf("another text came back")
					}
					got = wanted
				case 4:
					got, wanted = 0, 50
					for item, failure := range Stream[int](its, p, "count", 50) {
						if err = failure; err == nil && item != got {
							t.Errorf("item %d came, not %d", item, got)
						}
						got++
					}
				}
				stop()
				if err == nil && got != wanted {
					t.Errorf("%d came, not %d", got, wanted)
				}
				if err != nil && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("a call that was given up, or not, came to %v", err)
				}
			}
		}()
	}
	group.Wait()
	if sum := must2(Call[int](ctx, p, "add", Args{1, 1}))(t); sum != 2 {
		t.Error("it is of no use any more")
	}
}

func TestAStormOfCallsThatAreGivenUp(t *testing.T) {
	t.Run("workers", func(t *testing.T) {
		p, ctx := start(t, func(o *Options) { o.Workers = 2 })
		storm(t, p, ctx)
	})
	t.Run("without lanes", func(t *testing.T) {
		p, ctx := start(t, func(o *Options) { o.Workers, o.NoLane = 2, true })
		storm(t, p, ctx)
	})
	t.Run("a service", func(t *testing.T) {
		path := place(t)
		serve(t, path, "--workers", "2")
		p, ctx := linked(t, path, func(o *Options) { o.MaxInFlight = 4 })
		storm(t, p, ctx)
	})
}
