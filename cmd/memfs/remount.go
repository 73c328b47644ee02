package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// remountTimeout is how long the kernel gets to change the flags of a mount: it writes back first.
const remountTimeout = time.Minute

// resizeTimeout is how long a live mount gets to change its memory: it pages out first.
const resizeTimeout = 2 * time.Minute

// resizeCommands are what a remount has to say to the mount's ctl: memory, size and min can change while mounted. A guarantee
// that is lifted may be in the way of less memory, and one that is made may need more of it.
func (o *mountOptions) resizeCommands(f *pflag.FlagSet) (commands []string) {
	for _, c := range []struct {
		flag  string
		bytes uint64
		now   bool
	}{
		{"min", uint64(o.reserve), o.reserve == 0}, {"memory", uint64(o.memory), true}, {"size", uint64(o.size), true},
		{"min", uint64(o.reserve), o.reserve > 0},
	} {
		if c.now && f.Changed(c.flag) {
			commands = append(commands, fmt.Sprintf("%s %d", c.flag, c.bytes))
		}
	}
	return commands
}

// runRemount is `mount -o remount,…`: it changes the memory and the size of a live mount if they are said, and its flags
// as the kernel alone would. What is not said stays. The daemon sees the new flags in the mount table.
func runRemount(o *mountOptions) error {
	m, err := findMount(o.mountpoint)
	if err != nil {
		return err
	}
	now := m.flags()
	if now&unix.MS_RDONLY == 0 { // else its ctl can be written afterwards, if at all
		if err := resizeMount(o); err != nil {
			return err
		}
		return remountFlags(o, m, now)
	}
	if err := remountFlags(o, m, now); err != nil {
		return err
	}
	return resizeMount(o)
}

// resizeMount has a live mount change its memory and its size.
func resizeMount(o *mountOptions) error {
	if len(o.resize) == 0 {
		return nil
	}
	c, err := openControl(o.mountpoint)
	if err != nil {
		return err
	}
	for _, command := range o.resize {
		answer, err := c.command(command, resizeTimeout)
		if err != nil {
			return err
		}
		if refused, ok := strings.CutPrefix(answer, "ERR "); ok {
			_, text, _ := strings.Cut(refused, " ") // after the name of the errno
			return fmt.Errorf("%s: remount: %s", o.mountpoint, text)
		}
	}
	return nil
}

// remountFlags changes the flags from what they are now.
func remountFlags(o *mountOptions, m mountEntry, now uintptr) error {
	flags := now&^o.vfs.given | o.vfs.bits
	err := systemCall(remountTimeout, "remount", strconv.FormatUint(uint64(flags), 10), m.mountpoint)
	switch {
	case err == errTimeout:
		return fmt.Errorf("%s: remount: no answer within %v; the daemon may hang (`memfs umount --force %s` ends it)",
			o.mountpoint, remountTimeout, o.mountpoint)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s: remount: %w", o.mountpoint, errNotPermitted)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s: remount: busy: a file is open for writing%s", o.mountpoint, users(m.mountpoint))
	case err != nil:
		return fmt.Errorf("%s: remount: %w", o.mountpoint, err)
	}
	return nil
}

// flags are the MS_ bits of a mount, as the mount table spells them.
func (m mountEntry) flags() uintptr {
	v := vfsFlags{bits: unix.MS_STRICTATIME} // which has no word in the table
	for word := range strings.SplitSeq(m.perMount, ",") {
		v.apply(word)
	}
	for word := range strings.SplitSeq(m.options, ",") {
		if word == "ro" || word == "sync" || word == "dirsync" {
			v.apply(word)
		}
	}
	return v.bits
}

// remountPause is how long changes of the mount table may go unseen after one was seen: a machine that mounts all the
// time must not keep us busy.
const remountPause = 200 * time.Millisecond

// followRemounts tells of the mount's flags whenever they have changed, because the kernel leaves the access times to
// us and does not say that they are wanted otherwise. It returns how to stop it.
func followRemounts(m mountEntry, changed func(flags uintptr)) (stop func(), err error) {
	// Not by package os, which would have Go's poller look at it as well: a change is told once for each open file.
	table, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	quit, stopper, err := os.Pipe()
	if err != nil {
		unix.Close(table)
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer unix.Close(table)
		defer quit.Close()
		watchMountTable(table, int(quit.Fd()), func() { m = m.refresh(changed) })
	}()
	return func() {
		stopper.Close()
		<-done
	}, nil
}

// watchMountTable calls seen after each change of the table, until the other end of quit is closed.
func watchMountTable(table, quit int, seen func()) {
	for {
		fds := []unix.PollFd{{Fd: int32(quit), Events: unix.POLLIN}, {Fd: int32(table), Events: unix.POLLPRI}}
		switch _, err := unix.Poll(fds, -1); {
		case err == unix.EINTR:
			continue
		case err != nil || fds[0].Revents != 0:
			return
		}
		seen()
		fds = fds[:1]
		if n, err := unix.Poll(fds, int(remountPause.Milliseconds())); n > 0 || err != nil && err != unix.EINTR {
			return
		}
	}
}

// refresh looks the mount up again, and tells of its flags if they are others.
func (m mountEntry) refresh(changed func(flags uintptr)) mountEntry {
	table, err := mountTable()
	if err != nil {
		return m
	}
	for _, now := range table {
		if now.device != m.device || now.mountpoint != m.mountpoint {
			continue
		}
		if now.perMount != m.perMount || now.options != m.options {
			changed(now.flags())
		}
		return now
	}
	return m
}
