package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// selfExe is the binary that this process runs, also after its file has been removed.
const selfExe = "/proc/self/exe"

// errTimeout says that a call did not return in its time.
var errTimeout = errors.New("no answer in time")

// callFailed is the exit code of the child for an error that is no errno.
const callFailed = 255

// systemCall makes one call in a child process, so that a mount that never answers hangs that child and not us: a system
// call in a FUSE mount may be beyond any signal, and a process cannot even exit while one of its threads is in it.
// The calls are "statfs PATH", "umount FLAGS PATH" and "remount FLAGS PATH". The error is the call's errno, or errTimeout.
func systemCall(timeout time.Duration, args ...string) error {
	child := exec.Command(selfExe, append([]string{"syscall"}, args...)...)
	child.Args[0] = "memfs"
	code, _, err := runChild(child, timeout)
	switch {
	case err != nil:
		return err
	case code == 0:
		return nil
	case code == callFailed:
		return fmt.Errorf("%s failed", strings.Join(args, " "))
	}
	return unix.Errno(code)
}

// runChild runs a command and returns its exit code and what it printed. After the time-out the child is killed, but not
// waited for.
func runChild(child *exec.Cmd, timeout time.Duration) (code int, output string, err error) {
	var out bytes.Buffer
	child.Stdout, child.Stderr = &out, &out
	if err := child.Start(); err != nil {
		return 0, "", err
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	select {
	case err = <-ended:
	case <-ctx.Done():
		child.Process.Kill()
		return 0, "", errTimeout
	}
	var exitErr *exec.ExitError
	if errors.As(err, &exitErr) {
		if code = exitErr.ExitCode(); code < 0 {
			code = callFailed
		}
		err = nil
	}
	return code, strings.TrimSpace(out.String()), err
}

// newSyscallCommand is the child's side: the errno is the exit code.
func newSyscallCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "syscall statfs PATH | umount FLAGS PATH | remount FLAGS PATH",
		Short:  "Make one system call (used by memfs itself)",
		Hidden: true,
		Args:   cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			err := errors.New("unknown call")
			switch {
			case args[0] == "statfs" && len(args) == 2:
				var st unix.Statfs_t
				err = unix.Statfs(args[1], &st)
			case args[0] == "umount" && len(args) == 3:
				var flags int
				if flags, err = strconv.Atoi(args[1]); err == nil {
					err = unix.Unmount(args[2], flags)
				}
			case args[0] == "remount" && len(args) == 3:
				var flags uint64
				if flags, err = strconv.ParseUint(args[1], 10, 32); err == nil {
					err = unix.Mount("none", args[2], "", unix.MS_REMOUNT|uintptr(flags), "")
				}
			}
			if err == nil {
				return nil
			}
			var errno unix.Errno
			if errors.As(err, &errno) && errno < callFailed {
				return exitError{code: int(errno)}
			}
			return exitError{code: callFailed}
		},
	}
}
