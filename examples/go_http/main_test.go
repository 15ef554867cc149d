// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	atoll "atoll/clients/go"
)

// TestMain lets this program be the example's, too.
func TestMain(m *testing.M) {
	if os.Getenv("ATOLL_TEST_MAIN") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// interpreter returns one that has scikit-learn.
func interpreter(t *testing.T) string {
	t.Helper()
	python := os.Getenv("ATOLL_TEST_SKLEARN")
	if python == "" {
		python = "python3"
	}
	if exec.Command(python, "-c", "import sklearn").Run() != nil {
		t.Skipf("%s has no scikit-learn", python)
	}
	return python
}

func TestASecondInterruptionEndsItAtOnce(t *testing.T) {
	program := exec.Command(os.Args[0], "-python", interpreter(t), "-address", "127.0.0.1:0")
	program.Env = append(os.Environ(), "ATOLL_TEST_MAIN=1")
	output, err := program.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	defer program.Process.Kill()
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	address := strings.TrimSpace(strings.TrimPrefix(line, "listening on http://"))
	open, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	// A request that is never finished, which the first signal has the server wait for.
	if _, err := io.WriteString(open, "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if answer, err := bufio.NewReader(open).ReadString('\n'); err != nil || !strings.Contains(answer, "100 Continue") {
		t.Fatalf("%q, %v", answer, err)
	}
	interrupt := func() {
		if err := program.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
	}
	interrupt()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			break // it does not listen any more
		}
		conn.Close()
		if time.Now().After(end) {
			t.Fatal("it goes on listening")
		}
	}
	interrupt()
	_ = program.Wait()
	if how := program.ProcessState.Sys().(syscall.WaitStatus); !how.Signaled() || how.Signal() != syscall.SIGINT {
		t.Errorf("it ended with %v", program.ProcessState)
	}
}

func TestTheServerAnswersWithTheModel(t *testing.T) {
	python := interpreter(t)
	limit = time.Minute // it is not how soon that is asked here
	pool, err := atoll.Start(context.Background(), atoll.Options{
		Python: python, WorkerFolder: "../../src/atoll_worker", Service: "services/model.py",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := pool.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	server := httptest.NewServer(routes(pool))
	defer server.Close()
	post := func(body string) (int, string) {
		answer, err := http.Post(server.URL+"/predict", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, string(text)
	}
	status, text := post("[[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]")
	var flowers []flower
	if err := json.Unmarshal([]byte(text), &flowers); err != nil || status != http.StatusOK {
		t.Fatalf("%d: %s", status, text)
	}
	if len(flowers) != 2 || flowers[0].Species != "setosa" || flowers[1].Species != "virginica" {
		t.Errorf("got %v", flowers)
	}
	if status, text := post("[[1]]"); status != http.StatusBadGateway || !strings.Contains(text, "ValueError") {
		t.Errorf("%d: %s", status, text)
	}
	if status, text := post("flowers"); status != http.StatusBadRequest {
		t.Errorf("%d: %s", status, text)
	}
}
