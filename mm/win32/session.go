// Package win32 is the control language: Win32 calls, one a line, on simulated processes.
//
//	r = VirtualAlloc 0 0x10000 MEM_RESERVE|MEM_COMMIT PAGE_READWRITE
//	Write $r+0x1000 c3
//
// Arguments are in Win32 order without the process handle and without out-parameters: numbers (decimal or 0x), constants
// joined by |, $name of a variable with + or − a number, strings in double quotes, or bytes in hexadecimal. A trailing NULL
// says that an out-parameter is NULL. The reply to a line is one line:
//
//	OK 0x10000 OldProtect=PAGE_READWRITE    the result, and fields named after structure members and out-parameters
//	ERR 487 ERROR_INVALID_ADDRESS           the call failed with this last error
//	EXC 0xC0000005 write 0x11000            the access raised this exception
//
// Calls are rows of a table (calls.go); packages above add their own by Register.
package win32

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"

	"memfs/mm/process"
)

// Session is one program's conversation: its process, its variables, and the other processes that it knows by name.
type Session struct {
	Machine *process.Machine

	spawn Spawn // nil = there are no others

	mu sync.Mutex
	// +checklocks:mu
	peers map[string]*peer
}

// peer is a process with its variables and what packages keep for it.
type peer struct {
	process   *process.Process
	variables map[string]uint64
	values    map[any]any
}

// Spawn finds or makes a process by name. If program is not empty it makes one, which runs the file at that path:
// AlreadyExists if there is one of that name.
type Spawn func(name, program string) (*process.Process, error)

// NewSession makes a session in which p is the process that lines without a name mean. spawn makes the others at the first
// use of their name; nil = there are none.
func NewSession(m *process.Machine, p *process.Process, spawn Spawn) *Session {
	s := &Session{Machine: m, peers: make(map[string]*peer), spawn: spawn}
	s.peers[""] = newPeer(p)
	return s
}

func newPeer(p *process.Process) *peer {
	return &peer{process: p, variables: make(map[string]uint64), values: make(map[any]any)}
}

// peer finds or makes a process by name. It may do I/O: the lock is not held meanwhile.
func (s *Session) peer(name string) (*peer, error) {
	if name == "SELF" || name == "P1" {
		name = ""
	}
	if p, err := s.known(name); p != nil || err != nil {
		return p, err
	}
	p, err := s.spawn(name, "")
	if err != nil {
		return nil, err
	}
	return s.enter(name, p), nil
}

// enter makes a process a peer. If two lines came at once it is ended, and the other one's is the peer.
func (s *Session) enter(name string, p *process.Process) *peer {
	s.mu.Lock()
	other := s.peers[name]
	if other == nil {
		other = newPeer(p)
		s.peers[name] = other
	}
	s.mu.Unlock()
	if other.process != p {
		s.Machine.End(p)
	}
	return other
}

// start makes a new process, which runs a program if that is not empty. AlreadyExists.
func (s *Session) start(name, program string) (*peer, error) {
	switch p, err := s.known(name); {
	case err != nil:
		return nil, err
	case p != nil, name == "SELF", name == "P1":
		return nil, process.AlreadyExists
	}
	p, err := s.spawn(name, program)
	if err != nil {
		return nil, err
	}
	if c := s.enter(name, p); c.process == p {
		return c, nil
	}
	return nil, process.AlreadyExists
}

// known is peer for a process that there is; nil if one can be made. One that has ended is forgotten.
func (s *Session) known(name string) (*peer, error) {
	s.mu.Lock()
	p, n := s.peers[name], len(s.peers)
	s.mu.Unlock()
	if p != nil && name != "" && s.spawn != nil && p.process.Ended() {
		s.mu.Lock()
		if s.peers[name] == p {
			delete(s.peers, name)
		}
		s.mu.Unlock()
		p = nil
	}
	switch {
	case p != nil:
		return p, nil
	case s.spawn == nil:
		return nil, syntaxf("there is no process %s", name)
	case n >= maxPeers:
		return nil, syntaxf("there are %d processes already", maxPeers)
	}
	return nil, nil
}

// What a session keeps at most, so that a program cannot fill the daemon's own memory by talking to it.
const (
	maxVariables = 4096 // of one process
	maxPeers     = 64
)

// caller is the process that a statement is of, with room for its variable.
func (s *Session) caller(st *statement) (*peer, error) {
	p, err := s.peer(st.process)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := p.variables[st.variable]; !ok && st.variable != "" && len(p.variables) >= maxVariables {
		return nil, syntaxf("there are %d variables already", maxVariables)
	}
	return p, nil
}

// Peers are the names of the processes that lines have used, the session's own not among them.
func (s *Session) Peers() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := slices.Sorted(maps.Keys(s.peers))
	return slices.DeleteFunc(names, func(n string) bool { return n == "" })
}

// variable reads a variable of a peer.
func (s *Session) variable(p *peer, name string) (uint64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := p.variables[name]
	return n, ok
}

// Execute does one line and returns the reply, empty for an empty line, and the errno nearest to it, 0 if all went well.
// Lines of one session may be executed at once; each sees the variables as they are.
func (s *Session) Execute(line string) (string, syscall.Errno) {
	st, err := parse(line)
	if err != nil {
		return refused(err)
	}
	if st == nil {
		return "", 0
	}
	row := lookUp(st.call)
	if row == nil {
		return refused(syntaxf("there is no call %s", st.call))
	}
	p, err := s.caller(st)
	if err != nil {
		return refused(err)
	}
	c := &Call{Session: s, Process: p.process, peer: p, row: row}
	if err := c.setThread(st.thread); err != nil {
		return refused(err)
	}
	if err := c.bind(st.args); err != nil {
		return refused(err)
	}
	err = row.do(c)
	if err == nil && st.variable != "" {
		s.mu.Lock()
		p.variables[st.variable] = c.result
		s.mu.Unlock()
	}
	return c.reply(err)
}

// refused is the reply to a line that is no call: nothing was done.
func refused(err error) (string, syscall.Errno) {
	var e process.Error
	if errors.As(err, &e) {
		return fmt.Sprintf("ERR %d %v", uint32(e), e), errno(e)
	}
	return "ERR 87 ERROR_INVALID_PARAMETER (" + err.Error() + ")", syscall.EINVAL
}

// reply renders the outcome of a call.
func (c *Call) reply(err error) (string, syscall.Errno) {
	var exc *process.Exception
	var e process.Error
	var raised *heapError
	switch {
	case errors.As(err, &raised):
		return "EXC " + raised.Error(), syscall.EFAULT
	case errors.As(err, &exc):
		return fmt.Sprintf("EXC 0x%08X %v 0x%x", exc.Code, exc.Kind, exc.Address), syscall.EFAULT
	case errors.As(err, &e):
		if !c.row.returnsError {
			c.Process.SetLastError(e)
		}
		return fmt.Sprintf("ERR %d %v%s", uint32(e), e, c.fields()), errno(e)
	case err != nil:
		return refused(err)
	}
	if c.left {
		c.Set("LastError", uint32(c.Process.LastError()))
	}
	return fmt.Sprintf("OK 0x%x%s", c.result, c.fields()), 0
}

func (c *Call) fields() string {
	var b strings.Builder
	for _, f := range c.out {
		fmt.Fprintf(&b, " %s=%v", f.name, f.value)
	}
	return b.String()
}

// Errno is the nearest errno of a Win32 error.
func Errno(e process.Error) syscall.Errno { return errno(e) }

func errno(e process.Error) syscall.Errno {
	switch e {
	case process.Success:
		return 0
	case process.AccessDenied:
		return syscall.EACCES
	case process.PrivilegeNotHeld:
		return syscall.EPERM
	case process.InvalidHandle:
		return syscall.EBADF
	case process.NotEnoughMemory, process.CommitmentLimit, process.NoSystemResources, process.WorkingSetQuota:
		return syscall.ENOMEM // of a quota too, as from mlock(2): whoever gets EAGAIN waits to be woken
	case process.NotLocked, process.NotOwner:
		return syscall.EPERM
	case process.NoAccessError, process.PartialCopy, process.GuardPageViolation, process.InvalidAddress:
		return syscall.EFAULT
	case process.NotSupported:
		return syscall.EOPNOTSUPP
	case process.FileNotFound:
		return syscall.ENOENT
	case process.AlreadyExists:
		return syscall.EEXIST
	case process.Busy, process.UserMappedFile, process.SharingViolation:
		return syscall.EBUSY
	case process.DiskFull:
		return syscall.ENOSPC
	case process.BadExeFormat:
		return syscall.ENOEXEC
	case process.SwapError, process.UnexpNetErr, process.GenFailure:
		return syscall.EIO
	}
	return syscall.EINVAL
}
