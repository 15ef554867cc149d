// SPDX-License-Identifier: Apache-2.0

// Package atoll calls Python functions from Go. It starts workers of a service, each in a process of its own with its own
// interpreter and packages, keeps them alive, and calls their functions in JSON over atoll's wire (docs/wire.md). Or it
// connects to a service that somebody else runs, at a socket. docs/go.md is its manual.
//
//	pool, err := atoll.Start(ctx, atoll.Options{Python: ".venv/bin/python", Service: "service.py", Workers: 2})
//	pool, err := atoll.Dial(ctx, "/run/user/1000/service.sock", atoll.Options{})
//	sum, err := atoll.Call[int](ctx, pool, "add", atoll.Args{2, 3})
//	defer pool.Shutdown(ctx)
//
// A file is about one thing: frame.go knows bytes, connection.go and lane_linux_amd64.go move them; process.go knows how
// a worker is born and dies, link.go how a service at a socket is reached, ends.go what the two have in common; worker.go
// speaks with either, dispatcher.go says whose turn it is, policy.go decides when a worker is started again, pool.go does
// it, words.go says what the log calls it; call.go makes calls. What always holds: a call that was given up stops the Python
// code, or ends its worker; nothing of a worker outlives this program, however it ends.
package atoll
