// SPDX-License-Identifier: Apache-2.0

package atoll

// What the log and errors call that which becomes of workers, and of connections to a service: a pool has either.

type words struct {
	ended, cannotBegin, keepFailing, onTrial, servesAgain, silent, full, lies string

	noneReady string // an error's
}

var (
	ofWorkers = words{
		ended:       "a worker has ended",
		cannotBegin: "a worker cannot be started",
		keepFailing: "workers keep dying; calls are refused for a while",
		onTrial:     "a worker is tried again; calls wait for it",
		servesAgain: "workers serve again",
		silent:      "a worker gives no sign of life, and is given up",
		full:        "a worker does not take what is sent, and is given up",
		lies:        "the worker broke the rules of the wire",
		noneReady:   "atoll: no worker is ready",
	}
	ofLinks = words{
		ended:       "the connection to the service has ended",
		cannotBegin: "the service cannot be connected to",
		keepFailing: "connecting to the service keeps failing; calls are refused for a while",
		onTrial:     "connecting to the service is tried again; calls wait for it",
		servesAgain: "the service answers again",
		silent:      "the service gives no sign of life; its connection is given up",
		full:        "the service does not take what is sent; its connection is given up",
		lies:        "the service broke the rules of the wire",
		noneReady:   "atoll: there is no connection to the service",
	}
)
