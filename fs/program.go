package fs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"memfs/mm/process"
)

// Real programs. A program gets a process when it uses .proc/self, in a folder with its pid for a name, and loses it with
// all its memory when it exits, however it exits: a pidfd tells. What the program is comes from /proc, which is no file of
// ours and may be read from a handler; its executable may be one, and is only named.

// program is a real program, one thread group of the host's.
type program struct {
	pid   uint32
	owner subject        // its effective user and groups when it got its process
	name  string         // of its executable
	limit process.Limits // its RLIMIT_AS and RLIMIT_DATA
	fd    *os.File       // a pidfd, which can be read when the program has exited

	once sync.Once
}

// readlink is the target of .proc/self: the folder of the caller's process, which is started if there is none; or that of
// a notice.
func (c *controlTree) readlink(in *fuse.InHeader) ([]byte, fuse.Status) {
	n, ok := c.node(in.NodeId)
	switch {
	case !ok:
		return nil, fuse.ENOENT
	case n.kind != controlLink:
		return nil, fuse.EINVAL
	}
	if n.row > 0 {
		target, err := c.fs.notices.link(c.fs.sys, n.row-1)
		return []byte(target), errno(err)
	}
	s, st := c.processes.of(in.Pid)
	if !st.Ok() {
		return nil, st
	}
	return []byte(s.name), fuse.OK
}

// of is the process of the program that a thread belongs to. ENOENT if it cannot be told who that is, as of a program
// in another pid namespace.
func (t *processTable) of(tid uint32) (*simulated, fuse.Status) {
	pid, ok := threadGroup(tid)
	if !ok {
		return nil, fuse.ENOENT
	}
	name := strconv.FormatUint(uint64(pid), 10)
	for {
		s := t.find(name)
		switch {
		case s == nil:
		case s.program.exited():
			t.end(s) // an earlier program that had the same pid
			continue
		default:
			return s, fuse.OK
		}
		g, err := openProgram(pid)
		if err != nil {
			return nil, fuse.ENOENT
		}
		if again, ok := threadGroup(tid); !ok || again != pid || g.exited() {
			g.forget()
			return nil, fuse.ENOENT // the caller was killed meanwhile, and its pid may be somebody else's
		}
		image := process.Image{Name: g.name, Arch: t.arch(), Limits: g.limit}
		s, st := t.startImage(&simulated{name: name, owner: g.owner.Owner, groups: g.owner.groups, program: g}, image)
		switch {
		case st == eexist: // another thread of it was faster
			g.forget()
			continue
		case !st.Ok():
			g.forget()
			return nil, st
		}
		go func() {
			g.wait()
			t.end(s)
		}()
		return s, fuse.OK
	}
}

// openProgram looks at a living thread group.
func openProgram(pid uint32) (*program, error) {
	fd, err := unix.PidfdOpen(int(pid), unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	g := &program{pid: pid, fd: os.NewFile(uintptr(fd), "pidfd")}
	status, err := procFields(pid, "status")
	if err != nil {
		g.forget()
		return nil, err
	}
	// Real, effective, saved and of the file system.
	if _, err := fmt.Sscan(status["Uid"], new(uint32), &g.owner.Uid); err != nil {
		g.forget()
		return nil, err
	}
	if _, err := fmt.Sscan(status["Gid"], new(uint32), &g.owner.Gid); err != nil {
		g.forget()
		return nil, err
	}
	g.owner.groups = parseGroups(status["Groups"])
	g.name = status["Name"]
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil {
		g.name = filepath.Base(strings.TrimSuffix(exe, " (deleted)"))
	}
	g.limit = process.Limits{Virtual: procLimit(pid, "Max address space"), Commit: procLimit(pid, "Max data size")}
	return g, nil
}

// exited says whether the program is no more. The process of no program has no program to exit.
func (g *program) exited() bool {
	if g == nil {
		return false
	}
	gone := true // also when the pidfd is closed already
	raw, err := g.fd.SyscallConn()
	if err != nil {
		return true
	}
	_ = raw.Control(func(fd uintptr) { gone = readable(fd) })
	return gone
}

// wait returns when the program has exited, or is forgotten.
func (g *program) wait() {
	raw, err := g.fd.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(readable)
}

// readable says whether a pidfd can be read: the whole thread group has exited.
func readable(fd uintptr) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, 0)
		if err != unix.EINTR {
			return err != nil || n > 0
		}
	}
}

// forget ends the watch over a program, which may be none.
func (g *program) forget() {
	if g != nil {
		g.once.Do(func() { _ = g.fd.Close() })
	}
}

// threadGroup is the pid of the program that a thread belongs to.
func threadGroup(tid uint32) (pid uint32, ok bool) {
	if tid == 0 { // in another pid namespace, or the host kernel itself
		return 0, false
	}
	status, err := procFields(tid, "status")
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(status["Tgid"], 10, 32)
	return uint32(n), err == nil
}

// procFields reads a file of lines "Name: value" in /proc/PID.
func procFields(pid uint32, name string) (map[string]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		return nil, err
	}
	fields := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			fields[key] = strings.TrimSpace(value)
		}
	}
	return fields, nil
}

// procLimit is a program's soft limit in bytes; 0 is none.
func procLimit(pid uint32, name string) uint64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(text) {
		if rest, ok := bytes.CutPrefix(line, []byte(name+" ")); ok {
			if f := bytes.Fields(rest); len(f) > 0 {
				n, _ := strconv.ParseUint(string(f[0]), 10, 64) // "unlimited" is 0
				return n
			}
		}
	}
	return 0
}
