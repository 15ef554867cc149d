// SPDX-License-Identifier: Apache-2.0

// An HTTP server in Go that answers with a model of scikit-learn's.
//
//	go run . -python PYTHON     (one that has scikit-learn)
//	go run . -socket PATH       (where `atoll serve --socket PATH services/model.py` is)
//	curl -d '[[5.1, 3.5, 1.4, 0.2]]' localhost:8080/predict
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	atoll "atoll/clients/go"
)

type flower struct {
	Species string  `json:"species"`
	Chance  float64 `json:"chance"`
}

// How long an answer may take.
var limit = 2 * time.Second

func main() {
	python := flag.String("python", "python3", "interpreter that has scikit-learn")
	worker := flag.String("worker", "../../src/atoll_worker", "folder of the package atoll_worker")
	socket := flag.String("socket", "", "use the service at this socket instead of starting workers")
	address := flag.String("address", "127.0.0.1:8080", "where to listen; port 0 for any")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	pool, err := open(ctx, *python, *worker, *socket)
	if err != nil {
		log.Fatal(err)
	}
	if err := serve(ctx, stop, pool, *address); err != nil {
		log.Fatal(err)
	}
}

func open(ctx context.Context, python, worker, socket string) (*atoll.Pool, error) {
	if socket != "" {
		return atoll.Dial(ctx, socket, atoll.Options{})
	}
	return atoll.Start(ctx, atoll.Options{
		Python: python, WorkerFolder: worker, Service: "services/model.py", Workers: 2,
	})
}

// serve answers until ctx ends, and ends the pool then. From there on a signal is as if nobody minded it: a second Ctrl-C
// ends the program at once, and the kernel its workers.
func serve(ctx context.Context, stopMinding func(), pool *atoll.Pool, address string) error {
	server := &http.Server{Handler: routes(pool), ReadHeaderTimeout: 5 * time.Second}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return errors.Join(err, pool.Shutdown(ctx))
	}
	fmt.Printf("listening on http://%s\n", listener.Addr())
	ended := make(chan error, 1)
	go func() {
		<-ctx.Done()
		stopMinding()
		patience, stop := context.WithTimeout(context.Background(), 10*time.Second)
		defer stop()
		// First the requests in progress, then the workers that answer them.
		ended <- errors.Join(server.Shutdown(patience), pool.Shutdown(patience))
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return errors.Join(err, pool.Shutdown(ctx))
	}
	return <-ended
}

func routes(pool *atoll.Pool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /predict", func(w http.ResponseWriter, r *http.Request) {
		var measures [][]float64
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err == nil {
			err = json.Unmarshal(body, &measures)
		}
		if err != nil {
			http.Error(w, "four measures for each flower are needed, as an array of arrays: "+err.Error(), http.StatusBadRequest)
			return
		}
		// A client that goes away, or two seconds that pass, stop the Python code.
		ctx, cancel := context.WithTimeout(r.Context(), limit)
		defer cancel()
		flowers, err := atoll.Call[[]flower](ctx, pool, "predict", measures)
		if err != nil {
			var raised *atoll.RemoteError
			if errors.As(err, &raised) {
				log.Print(raised.Traceback)
			}
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(flowers)
	})
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		if err := pool.Healthy(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		_ = pool.WriteMetrics(w)
	})
	return mux
}
