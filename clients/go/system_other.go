// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package atoll

import (
	"runtime"
	"syscall"
)

func schedYield() { runtime.Gosched() }

func closedOnExec(kind int) ([2]int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, kind, 0)
	if err == nil {
		syscall.CloseOnExec(pair[0])
		syscall.CloseOnExec(pair[1])
	}
	return pair, err
}
