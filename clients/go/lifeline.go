// SPDX-License-Identifier: Apache-2.0

package atoll

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// A lifeline is the pipe whose end the kernel takes for the end of this program: it then sends SIGKILL to the worker and
// to what that started, for as long as a read end that the worker armed is open.
//
// Read ends are kept here too: should the worker end first, and this program be killed before it has seen that, what
// the worker started is still tied to them. They are open files of their own, because the order in which the kernel
// closes the descriptors of a program that ends is not for that to choose:
//
//   - Killed, it lets go of all in rising order, and then closes, in falling order, the files that nobody else has. So
//     one read end, which the worker does not keep, lies below the write end.
//   - A child that is being forked closes its copies in rising order. So another, which the worker keeps, lies above.
type lifeline struct {
	lower, write, upper int
}

func newLifeline() (_ *lifeline, err error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	defer write.Close()
	l := &lifeline{-1, -1, -1}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.lower, err = duplicate(int(read.Fd()), 0); err != nil {
		return nil, err
	}
	if l.write, err = duplicate(int(write.Fd()), l.lower); err != nil {
		return nil, err
	}
	own := fmt.Sprintf("/proc/self/fd/%d", l.lower)
	opened, err := syscall.Open(own, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		opened, err = duplicate(l.lower, 0) // a system without it, where nothing can be armed either
	}
	if err != nil {
		return nil, os.NewSyscallError("open", err)
	}
	l.upper, err = duplicate(opened, l.write)
	syscall.Close(opened)
	return l, err
}

// readEnds returns copies of the read ends, the one that the worker keeps first.
func (l *lifeline) readEnds() ([]*os.File, error) {
	var files []*os.File
	for _, fd := range []int{l.upper, l.lower} {
		copied, err := duplicate(fd, 0)
		if err != nil {
			for _, file := range files {
				file.Close()
			}
			return nil, err
		}
		files = append(files, os.NewFile(uintptr(copied), "atoll-lifeline"))
	}
	return files, nil
}

// close lets go of it, in the order that ends what is left of the worker's group.
func (l *lifeline) close() {
	for _, fd := range []*int{&l.write, &l.lower, &l.upper} {
		if *fd >= 0 {
			syscall.Close(*fd)
			*fd = -1
		}
	}
}

// duplicate copies a descriptor to a number of at least lowest; the copy is closed on exec.
func duplicate(fd, lowest int) (int, error) {
	copied, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_DUPFD_CLOEXEC, uintptr(lowest))
	if errno != 0 {
		return -1, os.NewSyscallError("fcntl", errno)
	}
	return int(copied), nil
}
