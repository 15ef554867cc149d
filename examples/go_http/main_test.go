// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"

	atoll "atoll/clients/go"
)

func TestTheServerAnswersWithTheModel(t *testing.T) {
	python := os.Getenv("ATOLL_TEST_SKLEARN")
	if python == "" {
		python = "python3"
	}
	if exec.Command(python, "-c", "import sklearn").Run() != nil {
		t.Skipf("%s has no scikit-learn", python)
	}
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
