package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The daemon is the same command line run once more, in a session of its own, with the writing end of a pipe. It says on
// the pipe, a line each, what went wrong or that the mount is live; then the parent is done and the daemon's standard
// streams go to nowhere or to the log file.
const (
	readyEnv   = "_MEMFS_READY_FD"   // number of the pipe's descriptor
	flusherEnv = "_MEMFS_IO_FLUSHER" // set when becoming an I/O flusher has been tried
)

const (
	saysWarning = "W "
	saysFailed  = "E "
	saysReady   = "R"
)

// startDaemon starts the daemon with a command line and returns when it is ready, or with the reason why it will not be.
func startDaemon(args []string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return systemError{err}
	}
	defer r.Close()
	keepFromChildren()
	child := exec.Command(selfExe, args...)
	child.Args[0] = "memfs"
	child.Env = append(os.Environ(), readyEnv+"=3")
	child.Stderr = os.Stderr // for what ends it before it can speak for itself
	child.ExtraFiles = []*os.File{w}
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}

	// The flag belongs to a thread; the child is forked from this one and keeps it.
	runtime.LockOSThread()
	flusher := setIOFlusher(true) == nil
	err = child.Start()
	if flusher {
		setIOFlusher(false)
	}
	runtime.UnlockOSThread()
	w.Close()
	if err != nil {
		return systemError{fmt.Errorf("cannot start the daemon: %s", reason(err))}
	}

	ready, err := hear(r, printWarning)
	if ready {
		return nil
	}
	waitErr := child.Wait()
	if err == nil {
		err = fmt.Errorf("the daemon ended before the mount was live: %v", waitErr)
		if child.ProcessState.ExitCode() == exitBug {
			err = exitError{exitBug, err}
		}
	}
	return err
}

// keepFromChildren closes what we were started with, beyond the standard streams, in every process that we start: a daemon
// that holds somebody's pipe keeps its reader waiting for ever.
func keepFromChildren() { unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) }

// hear reads what the daemon says until it is ready (true), has failed, or says no more.
func hear(r io.Reader, warn func(string, ...any)) (ready bool, err error) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		line := lines.Text()
		if text, ok := strings.CutPrefix(line, saysWarning); ok {
			warn("%s", text)
		} else if text, ok := strings.CutPrefix(line, saysFailed); ok {
			return false, errors.New(text)
		} else if line == saysReady {
			return true, nil
		}
	}
	return false, nil
}

// parentPipe is the daemon's end of the pipe. A nil one is that of a session in front, which has nobody to tell.
type parentPipe struct {
	file *os.File
	told bool // the parent knows how it went
}

// readinessPipe is the pipe that our parent gave us, nil if we are nobody's daemon.
func readinessPipe() *parentPipe {
	fd, err := strconv.Atoi(os.Getenv(readyEnv))
	os.Unsetenv(readyEnv)
	if err != nil || fd < 3 {
		return nil
	}
	unix.CloseOnExec(fd)
	return &parentPipe{file: os.NewFile(uintptr(fd), "readiness pipe")}
}

func (p *parentPipe) say(line string) error {
	_, err := p.file.WriteString(line + "\n")
	return err
}

// warn passes a warning on to whoever typed the command.
func (p *parentPipe) warn(err error) {
	if p != nil && !p.told {
		p.say(saysWarning + oneLine(err))
	}
}

// fail tells the parent that there will be no mount.
func (p *parentPipe) fail(err error) {
	if p != nil && !p.told {
		p.told = true
		p.say(saysFailed + oneLine(err))
		p.file.Close()
	}
}

// ready tells the parent that the mount is live, and lets go of its terminal. An error means that the parent has gone:
// somebody stopped the command before it was done.
func (p *parentPipe) ready(log *os.File) error {
	if p == nil {
		return nil
	}
	if err := detach(log); err != nil {
		return err
	}
	err := p.say(saysReady)
	p.told = err == nil
	return errors.Join(err, p.file.Close())
}

// detach leads the standard streams to the log file, or to nowhere without one.
func detach(log *os.File) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	out := null
	if log != nil {
		out = log
	}
	for fd, to := range []*os.File{null, out, out} {
		if err := unix.Dup3(int(to.Fd()), fd, 0); err != nil {
			return err
		}
	}
	return nil
}

// runDaemon is what the background process does. Whatever happens is told through the pipe, later in the log.
func runDaemon(o *mountOptions, parent *parentPipe) error {
	err := runSession(o, parent)
	if err == nil {
		return nil
	}
	parent.fail(err)
	return exitError{code: exitFailed}
}

// setIOFlusher says whether this thread is one that memory reclaim depends on: the kernel then lets its allocations not
// wait for write-back, which would be write-back to ourselves. It takes CAP_SYS_RESOURCE.
func setIOFlusher(on bool) error {
	value := uintptr(0)
	if on {
		value = 1
	}
	return unix.Prctl(unix.PR_SET_IO_FLUSHER, value, 0, 0, 0)
}

// becomeIOFlusher makes all threads of this process I/O flushers, by starting the program anew from one that is. Where it
// may not, nothing happens.
func becomeIOFlusher() error {
	if os.Getenv(flusherEnv) != "" {
		os.Unsetenv(flusherEnv)
		return nil
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if setIOFlusher(true) != nil {
		return nil
	}
	err := unix.Exec(selfExe, append([]string{"memfs"}, os.Args[1:]...), append(os.Environ(), flusherEnv+"=1"))
	setIOFlusher(false)
	return fmt.Errorf("cannot start anew as an I/O flusher: %w", err)
}

// isIOFlusher reports whether this process's threads are I/O flushers. Asking the kernel takes the same capability as
// setting it, but the flag shows in /proc.
func isIOFlusher() bool {
	const memallocNoIO = 0x80000 // PF_MEMALLOC_NOIO
	text, err := os.ReadFile("/proc/thread-self/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(text[strings.LastIndexByte(string(text), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(fields[6], 10, 64) // field 9 of proc_pid_stat(5)
	return err == nil && flags&memallocNoIO != 0
}
