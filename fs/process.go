package fs

import (
	"bytes"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"memfs/fs/ctl"
	"memfs/mm"
	"memfs/mm/process"
	"memfs/mm/win32"
)

// Simulated processes in the control tree: mkdir .proc/NAME starts one, rmdir ends it with all its memory, and so does the
// end of the mount. A name may say what it is: NAME@x86,laa,nxcompat. Its ctl takes the control language of mm/win32.

// simulated is a simulated process with its folder.
type simulated struct {
	name    string
	owner   fuse.Owner
	born    time.Time
	process *process.Process
	session *win32.Session // one for the life of the process: its variables live as long
}

// processTable is the simulated processes of a mount.
type processTable struct {
	machine *process.Machine

	mu sync.Mutex
	// +checklocks:mu
	byName map[string]*simulated
	// +checklocks:mu
	byID map[uint64]*simulated
}

func newProcessTable(sys *mm.System, nx process.Policy, log func(string, ...any)) *processTable {
	t := &processTable{byName: make(map[string]*simulated), byID: make(map[uint64]*simulated)}
	t.machine = process.NewMachine(sys, nx, process.Listener{Violation: func(p *process.Process, address uint64) {
		log("process %d: DEP violation: 0x%x is not executable", p.ID(), address)
	}})
	return t
}

func (t *processTable) find(name string) *simulated {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byName[name]
}

func (t *processTable) get(id uint64) *simulated {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

// all lists the processes by number.
func (t *processTable) all() []*simulated {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*simulated, 0, len(t.byID))
	for _, s := range t.byID {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *simulated) int { return int(int64(a.process.ID()) - int64(b.process.ID())) })
	return all
}

const (
	maxProcesses   = 1024
	maxProcessName = 64
)

// parseImage reads what a folder's name says of its process: NAME or NAME@WORD,WORD…
func parseImage(name string) (process.Image, bool) {
	bare, words, _ := strings.Cut(name, "@")
	i := process.Image{Name: bare}
	if bare == "" || len(name) > maxProcessName || strings.HasPrefix(bare, ".") {
		return i, false
	}
	for _, r := range bare {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", r) {
			return i, false
		}
	}
	for word := range strings.SplitSeq(words, ",") {
		arch, isArch := process.ParseArch(word)
		switch {
		case isArch:
			i.Arch = arch
		case word == "laa":
			i.LargeAddressAware = true
		case word == "nxcompat":
			i.NXCompat = true
		case word != "":
			return i, false
		}
	}
	return i, true
}

// start makes a process with a folder. EEXIST, EINVAL for a name that cannot be, ENOSPC without memory for it.
func (t *processTable) start(name string, owner fuse.Owner) (*simulated, fuse.Status) {
	image, ok := parseImage(name)
	if !ok {
		return nil, fuse.EINVAL
	}
	p, err := t.machine.Start(image)
	if err != nil {
		return nil, enospc // its records do not fit
	}
	s := &simulated{name: name, owner: owner, born: time.Now(), process: p}
	s.session = win32.NewSession(t.machine, p, func(other string) (*process.Process, error) { return t.peer(other, owner) })
	t.mu.Lock()
	_, exists := t.byName[name]
	full := len(t.byName) >= maxProcesses
	if !exists && !full {
		t.byName[name], t.byID[uint64(p.ID())] = s, s
	}
	t.mu.Unlock()
	switch {
	case exists:
		t.machine.End(p)
		return nil, eexist
	case full:
		t.machine.End(p)
		return nil, fuse.EAGAIN
	}
	return s, fuse.OK
}

// peer is the process that a line names (P2: …): the owner's own of that name, started at the first use.
func (t *processTable) peer(name string, owner fuse.Owner) (*process.Process, error) {
	s := t.find(name)
	if s == nil {
		var st fuse.Status
		if s, st = t.start(name, owner); !st.Ok() {
			return nil, syscall.Errno(st)
		}
	}
	if s.owner.Uid != owner.Uid && owner.Uid != 0 {
		return nil, errors.New("the process is another user's")
	}
	return s.process, nil
}

// end ends a process and takes its folder away.
func (t *processTable) end(s *simulated) {
	t.mu.Lock()
	delete(t.byName, s.name)
	delete(t.byID, uint64(s.process.ID()))
	t.mu.Unlock()
	t.machine.End(s.process)
}

// close ends all processes.
func (t *processTable) close() {
	for _, s := range t.all() {
		t.end(s)
	}
}

// described is the process as its control files describe it.
func (s *simulated) described() *ctl.Process {
	return &ctl.Process{Process: s.process, Name: s.name, UID: s.owner.Uid}
}

// list is all processes, for ps.
func (t *processTable) list() (list []*ctl.Process) {
	for _, s := range t.all() {
		list = append(list, s.described())
	}
	return list
}

// execute runs the lines of one write. The errno is that of the last line that was one.
func (s *simulated) execute(input []byte) (replies []byte, failed syscall.Errno) {
	lines := bytes.Split(input, []byte{'\n'})
	if len(input) > ctl.MaxWrite || len(lines) > ctl.MaxCommands+1 {
		return []byte("ERR 87 ERROR_INVALID_PARAMETER (too much for one write; nothing was done)\n"), syscall.E2BIG
	}
	for _, line := range lines {
		reply, errno := s.line(string(line))
		if reply == "" {
			continue
		}
		replies = append(append(replies, reply...), '\n')
		failed = errno
	}
	return replies, failed
}

// line runs one line: a call, or translate ADDRESS, which shows the walk through the page table.
func (s *simulated) line(line string) (reply string, failed syscall.Errno) {
	words := strings.Fields(line)
	if len(words) == 2 && words[0] == "translate" {
		address, err := strconv.ParseUint(words[1], 0, 64)
		if err != nil {
			return "ERR 87 ERROR_INVALID_PARAMETER (not an address: " + strconv.Quote(words[1]) + ")", syscall.EINVAL
		}
		return strings.TrimRight(s.process.Translate(address).String(), "\n"), 0
	}
	return s.session.Execute(line)
}

// mkdir starts a process.
func (c *controlTree) mkdir(in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, ok := c.node(in.NodeId)
	switch {
	case !ok:
		return fuse.ENOENT
	case dir.kind != controlRoot:
		return fuse.EPERM
	}
	if _, exists := c.find(&dir, name); exists {
		return eexist
	}
	s, st := c.processes.start(name, in.Caller.Owner)
	if !st.Ok() {
		return st
	}
	c.enter(&controlNode{kind: controlProcess, proc: s}, out)
	return fuse.OK
}

// rmdir ends a process.
func (c *controlTree) rmdir(in *fuse.InHeader, name string) fuse.Status {
	dir, ok := c.node(in.NodeId)
	if !ok {
		return fuse.ENOENT
	}
	n, ok := c.find(&dir, name)
	switch {
	case !ok:
		return fuse.ENOENT
	case n.kind != controlProcess:
		return fuse.EPERM
	case n.proc.owner.Uid != in.Uid && !c.steers(&in.Caller):
		return fuse.EACCES
	}
	c.processes.end(n.proc)
	return fuse.OK
}

// policyRows are the files of .proc/policy.
var policyRows = []string{ctl.PolicyNX}

// policy is what a file of .proc/policy says.
func (c *controlTree) policy() []byte { return []byte(c.processes.machine.Policy().String() + "\n") }

// setPolicy is a write to it.
func (c *controlTree) setPolicy(text []byte) fuse.Status {
	p, ok := ctl.ParseNX(text)
	if !ok {
		return fuse.EINVAL
	}
	c.processes.machine.SetPolicy(p)
	return fuse.OK
}
