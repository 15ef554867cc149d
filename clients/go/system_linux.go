// SPDX-License-Identifier: Apache-2.0

package atoll

import "syscall"

// What systems have different names for.

func schedYield() { _, _, _ = syscall.RawSyscall(syscall.SYS_SCHED_YIELD, 0, 0, 0) }

// closedOnExec returns a pair of sockets that no other process inherits.
func closedOnExec(kind int) ([2]int, error) {
	return syscall.Socketpair(syscall.AF_UNIX, kind|syscall.SOCK_CLOEXEC, 0)
}
