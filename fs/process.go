package fs

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"memfs/fs/ctl"
	"memfs/mm"
	"memfs/mm/process"
	"memfs/mm/win32"
)

// Processes in the control tree: mkdir .proc/NAME starts one, rmdir ends it with all its memory, and so does the end of the
// mount. A name may say what it is: NAME@x86,laa,nxcompat (see parseImage). Its ctl takes the control language of mm/win32.
// Real programs have one as well, see program.go.

// simulated is a process with its folder.
type simulated struct {
	id      uint64 // of its nodes: never used again, unlike the pids of programs
	name    string
	owner   fuse.Owner
	groups  []uint32 // the owner's supplementary ones
	born    time.Time
	program *program   // whose it is; nil = nobody's, it ends by rmdir
	system  bool       // the system process, which never ends
	parent  *simulated // whose line started it, and with which it ends; nil = it was started by mkdir, or is a program's
	raises  raises     // of guard pages, through mappings of its mem
	run     atomic.Pointer[running]
}

// running is the process in a folder. An option puts another one in its place, which nobody can tell until it is used.
type running struct {
	process *process.Process
	session *win32.Session // one for the life of the process: its variables live as long

	mu sync.Mutex
	// +checklocks:mu
	used bool // by a call, or through mem: its options are settled
}

func (s *simulated) process() *process.Process { return s.run.Load().process }

// use is the process to be used for good.
func (s *simulated) use() *running {
	for {
		r := s.run.Load()
		r.mu.Lock()
		r.used = r.used || s.run.Load() == r
		used := r.used
		r.mu.Unlock()
		if used {
			return r
		}
	}
}

// processTable is the processes of a mount.
type processTable struct {
	machine *process.Machine
	root    uint32        // whose the mount is
	newArch atomic.Uint32 // process.Arch of those whose name does not say

	mu sync.Mutex
	// +checklocks:mu
	byName map[string]*simulated
	// +checklocks:mu
	byID map[uint64]*simulated
	// +checklocks:mu
	lastID uint64
	// +checklocks:mu
	closed bool // the mount has ended
}

func newProcessTable(sys *mm.System, root uint32, nx process.Policy, log func(string, ...any)) *processTable {
	t := &processTable{root: root, byName: make(map[string]*simulated), byID: make(map[uint64]*simulated)}
	t.machine = process.NewMachine(sys, nx, process.Listener{Violation: func(p *process.Process, address uint64) {
		log("process %d (%s): DEP violation: 0x%x is not executable", p.ID(), p.Image().Name, address)
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
	slices.SortFunc(all, func(a, b *simulated) int { return cmp.Compare(a.id, b.id) })
	return all
}

const (
	maxProcesses     = 1024 // of the mount
	maxUserProcesses = 256  // of one user, who is neither root nor the mount's owner
	ownProcesses     = 128  // of maxProcesses, that only these two may have
	maxProcessName   = 128
)

// parseImage reads what a folder's name says of its process: NAME or NAME@WORD,WORD… A name of digits is not one: such
// folders are the programs' with that pid. The words are an architecture; laa, large address aware; nxcompat, linked with
// /NXCOMPAT; system, a binary of the system; lockmemory, which has SeLockMemoryPrivilege, for the mount's owner and root; and
// of 32-bit processes dep=on, dep=off and dep=on-noatl, what the DEP state is at first; and those of gflags and terminate, see
// heap.go.
func parseImage(name string, arch process.Arch) (process.Image, bool) {
	bare, words, _ := strings.Cut(name, "@")
	i := process.Image{Name: bare, Arch: arch}
	if bare == "" || len(name) > maxProcessName || strings.HasPrefix(bare, ".") || strings.Trim(bare, "0123456789") == "" {
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
		case word == "system":
			i.System = true
		case word == "lockmemory":
			i.LockMemory = true
		case strings.HasPrefix(word, "dep="):
			if i.DEP, isArch = process.ParseInitialDEP(word[len("dep="):]); !isArch {
				return i, false
			}
		case gflags[word] != 0:
			i.GlobalFlags |= gflags[word]
		case word == "terminate":
			i.TerminateOnCorruption = true
		case word != "":
			return i, false
		}
	}
	return i, i.DEP == process.DEPByPolicy || i.Arch == process.X86
}

// start makes a process with a folder. EEXIST, EINVAL for a name that cannot be, ENOSPC without memory for it.
func (t *processTable) start(name string, owner *subject) (*simulated, fuse.Status) {
	image, ok := parseImage(name, t.arch())
	switch {
	case !ok:
		return nil, fuse.EINVAL
	case image.LockMemory && owner.Uid != 0 && owner.Uid != t.root:
		return nil, fuse.EPERM // its locked pages are everybody's
	}
	return t.startImage(&simulated{name: name, owner: owner.Owner, groups: owner.groups}, image)
}

// startImage gives a folder its process. EEXIST, EAGAIN if there are too many, ENOSPC without memory for it.
func (t *processTable) startImage(s *simulated, image process.Image) (*simulated, fuse.Status) {
	r, err := t.launch(s, image, nil)
	if err != nil {
		return nil, enospc // its records do not fit
	}
	return t.settle(s, r)
}

// settle gives a folder a process that has been launched.
func (t *processTable) settle(s *simulated, r *running) (*simulated, fuse.Status) {
	s.born = time.Now()
	s.run.Store(r)
	if st := t.enter(s); !st.Ok() {
		t.machine.End(r.process)
		return nil, st
	}
	return s, fuse.OK
}

// launch starts a process for a folder; one that runs a file, which by opens.
func (t *processTable) launch(s *simulated, image process.Image, by *process.Process) (*running, error) {
	start := t.machine.Start
	if image.Executable != "" {
		start = func(i process.Image) (*process.Process, error) { return t.machine.StartProgram(by, i) }
	}
	p, err := start(image)
	if err != nil {
		return nil, err
	}
	if _, err := p.Heaps(); err != nil { // its default heap
		t.machine.End(p)
		return nil, err
	}
	return &running{process: p, session: win32.NewSession(t.machine, p, func(other, program string) (*process.Process, error) {
		if program != "" {
			return t.program(other, program, s)
		}
		return t.peer(other, s, p.Image())
	})}, nil
}

// program starts a process that runs a file, in a folder of a name, or if that is taken, of the caller's name and this one.
// AlreadyExists.
func (t *processTable) program(name, path string, caller *simulated) (*process.Process, error) {
	image := process.Image{
		Name: process.ProgramName(path), Executable: path, LockMemory: caller.process().Image().LockMemory, // a child has the privilege too
	}
	for _, folder := range childFolders(name, caller) {
		if _, ok := parseImage(folder, t.arch()); !ok {
			return nil, process.InvalidParameter
		}
		if t.find(folder) != nil {
			continue
		}
		child := &simulated{name: folder, owner: caller.owner, parent: caller}
		r, err := t.launch(child, image, caller.process())
		if err != nil {
			return nil, err
		}
		if _, st := t.settle(child, r); st.Ok() {
			return child.use().process, nil
		} else if st != eexist {
			return nil, syscall.Errno(st)
		}
	}
	return nil, process.AlreadyExists
}

// childFolders are the folders that a process may have which a line of another names.
func childFolders(name string, caller *simulated) []string {
	bare, _, _ := strings.Cut(caller.name, "@")
	bare = bare[:min(len(bare), max(0, maxProcessName-1-len(name)))]
	return []string{name, bare + "." + name}
}

// enter puts a process into the table.
func (t *processTable) enter(s *simulated) fuse.Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case s.parent != nil && t.byID[s.parent.id] != s.parent:
		return fuse.ENOENT // it has ended meanwhile
	case t.byName[s.name] != nil:
		return eexist
	case t.closed || t.full(s.owner.Uid):
		return fuse.EAGAIN
	}
	t.lastID++
	s.id = t.lastID
	t.byName[s.name], t.byID[s.id] = s, s
	return fuse.OK
}

// full says whether a user can have no process more.
// +checklocks:t.mu
func (t *processTable) full(uid uint32) bool {
	if uid == 0 || uid == t.root {
		return len(t.byName) >= maxProcesses
	}
	n := 0
	for _, s := range t.byName {
		if s.owner.Uid == uid {
			n++
		}
	}
	return n >= maxUserProcesses || len(t.byName) >= maxProcesses-ownProcesses
}

// peer is the process that a line of another names (P2: …): one that this process has started, or that somebody has by
// mkdir, with or without words behind the name; else it is started, with the caller's architecture and state of DEP. Several may start a P2:
// each has its own, and who comes second finds it in the folder NAME.P2.
func (t *processTable) peer(name string, caller *simulated, like process.Image) (*process.Process, error) {
	names := childFolders(name, caller)
	s := t.known(names, caller)
	for i := 0; s == nil && i < len(names); i++ {
		image, ok := parseImage(names[i], like.Arch)
		if !ok || strings.Contains(name, "@") {
			break
		}
		image.DEP, image.LockMemory = like.DEP, like.LockMemory
		var st fuse.Status
		s, st = t.startImage(&simulated{name: names[i], owner: caller.owner, groups: caller.groups, parent: caller}, image)
		switch {
		case st == fuse.EAGAIN:
			return nil, fmt.Errorf("there are %d processes, or the user has %d already; end some (rmdir)", maxProcesses-ownProcesses, maxUserProcesses)
		case st != eexist && !st.Ok():
			return nil, syscall.Errno(st)
		}
	}
	switch {
	case s == nil:
		return nil, fmt.Errorf("there is no process %s", name)
	case s.owner.Uid != caller.owner.Uid && caller.owner.Uid != 0:
		return nil, errors.New("the process is another user's")
	}
	return s.use().process, nil
}

// known is a process that is there already: by the first of names, or a child of the caller by any of them.
func (t *processTable) known(names []string, caller *simulated) *simulated {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range names {
		if s := t.byName[n]; s != nil && s.parent == caller {
			return s
		}
	}
	if s := t.byName[names[0]]; s != nil && s.parent == nil {
		return s
	}
	for folder, s := range t.byName {
		if bare, _, _ := strings.Cut(folder, "@"); bare == names[0] && s.parent == nil && s.owner.Uid == caller.owner.Uid {
			return s
		}
	}
	return nil
}

// end ends a process, with those that its lines started, and takes its folder away. Ending it again does nothing.
func (t *processTable) end(s *simulated) {
	t.mu.Lock()
	if t.byName[s.name] == s {
		delete(t.byName, s.name)
	}
	delete(t.byID, s.id)
	var children []*simulated
	for _, other := range t.byID {
		if other.parent == s {
			children = append(children, other)
		}
	}
	t.mu.Unlock()
	for _, child := range children {
		t.end(child)
	}
	t.machine.End(s.use().process)
	s.program.forget()
	s.raises.close()
}

// close ends all processes. None is started any more.
func (t *processTable) close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	for _, s := range t.all() {
		t.end(s)
	}
}

// described is the process as its control files describe it.
func (s *simulated) described() *ctl.Process {
	p := s.process()
	d := &ctl.Process{Process: p, Name: s.name, Folder: s.name, Pid: p.ID(), UID: s.owner.Uid}
	switch {
	case s.program != nil:
		d.Name, d.Pid = p.Image().Name, s.program.pid
	case p.Program() != nil:
		d.Name = p.Image().Name
	}
	return d
}

// list is all processes, for ps.
func (t *processTable) list() (list []*ctl.Process) {
	for _, s := range t.all() {
		list = append(list, s.described())
	}
	return list
}

// execute runs the lines of one write. If they may wait for the host to send and drop pages, only so many may run at once.
// Others wait a moment, holding no more than their request, before they are told EBUSY.
func (t *processTable) execute(s *simulated, input []byte, gate ctl.Gate) (replies []byte, failed syscall.Errno, st fuse.Status) {
	g := &passing{gate: gate, small: len(input) <= smallWrite}
	defer g.leave()
	if t.waits(s, string(input), g.small) && !g.enter() {
		return nil, 0, fuse.EBUSY
	}
	replies, failed = t.lines(s, input, g)
	return replies, failed, fuse.OK
}

// passing is a write's way through the gate.
type passing struct {
	gate  ctl.Gate
	small bool
	in    bool
}

func (g *passing) enter() bool {
	g.in = g.in || enterPatiently(g.gate)
	return g.in
}

func (g *passing) leave() {
	if g.in {
		g.gate.Leave()
	}
}

// admit lets a line run, of a write that has not passed the gate because nothing in it had to wait for the host when it began.
// If that is otherwise now it passes; if not, it stays so until done is called. false: EBUSY.
func (g *passing) admit(t *processTable, s *simulated, line string) (done func(), ok bool) {
	done = func() {}
	switch {
	case g.in:
		return done, true
	case t.waits(s, line, g.small):
		return done, g.enter()
	case g.small:
		return done, true
	}
	done, ok = s.process().Plain()
	if !ok {
		return func() {}, g.enter()
	}
	if other := t.first(s, line); other != nil && other != s {
		mine := done
		theirs, ok := other.process().Plain()
		if !ok {
			mine()
			return func() {}, g.enter()
		}
		done = func() { theirs(); mine() }
	}
	return done, true
}

// enterPatiently is TryEnter for up to a moment.
func enterPatiently(gate ctl.Gate) bool {
	for tries := 0; !gate.TryEnter(); tries++ {
		if tries == 100 {
			return false
		}
		time.Sleep(time.Millisecond)
	}
	return true
}

// smallWrite is how long a write can be without keeping one of the buffers that the host's own WRITEs need: go-fuse copies
// such a request out of it.
const smallWrite = 40

// fileLines are what lines that have to do with files and sections have in them.
var fileLines = []string{"File", ": ", "CreateProcess", "exec "}

// waits says whether lines may wait for the host, and keep a buffer meanwhile: calls of processes that real programs map, and
// those that have to do with files and sections, of the process or of another one that a line names. What a small write does not
// keep a buffer for is bounded by the machine (process.Busy).
func (t *processTable) waits(s *simulated, lines string, small bool) bool {
	switch {
	case t.machine.Mapped():
		return true
	case small:
		return false
	case s.process().UsesFiles() || slices.ContainsFunc(fileLines, func(word string) bool { return strings.Contains(lines, word) }):
		return true
	}
	for line := range strings.Lines(lines) {
		if other := t.first(s, line); other != nil && other.process().UsesFiles() {
			return true
		}
	}
	return false
}

// first is the other process that a line has for its first argument; nil if it is none.
func (t *processTable) first(s *simulated, line string) *simulated {
	if _, call, ok := strings.Cut(line, "="); ok {
		line = call
	}
	words := strings.Fields(line)
	if len(words) < 2 || strings.IndexByte("0123456789$\"-~", words[1][0]) >= 0 {
		return nil
	}
	bare, _, _ := strings.Cut(s.name, "@")
	return t.known([]string{words[1], bare + "." + words[1]}, s)
}

// lines runs the lines of one write. The errno is that of the last line that was one.
func (t *processTable) lines(s *simulated, input []byte, g *passing) (replies []byte, failed syscall.Errno) {
	lines := bytes.Split(input, []byte{'\n'})
	if len(input) > ctl.MaxWrite || len(lines) > ctl.MaxCommands+1 {
		return []byte(badOption(fmt.Sprintf("%d lines and %d bytes at most in one write, nothing was done; memfs run plays longer scripts",
			ctl.MaxCommands, ctl.MaxWrite)) + "\n"), syscall.E2BIG
	}
	for _, line := range lines {
		done, ok := g.admit(t, s, string(line))
		if !ok {
			replies, failed = fmt.Appendf(replies, "ERR %d %v\n", uint32(process.Busy), process.Busy), syscall.EBUSY
			continue
		}
		reply, errno := t.line(s, string(line))
		done()
		if reply == "" {
			continue
		}
		replies = append(append(replies, reply...), '\n')
		failed = errno
	}
	return replies, failed
}

// line runs one line: an option, or a call.
func (t *processTable) line(s *simulated, line string) (reply string, failed syscall.Errno) {
	if words := strings.Fields(line); len(words) == 0 || words[0][0] == '#' {
		return "", 0
	} else if reply, failed, ok := t.option(s, words); ok {
		return reply, failed
	}
	return s.use().session.Execute(line)
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
	s, st := c.processes.start(name, subjectOf(&in.Caller))
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
	case n.kind == controlLink:
		return fuse.ENOTDIR
	case n.kind != controlProcess || n.proc.program != nil || n.proc.system:
		return fuse.EPERM // a program's process ends when the program does, the system's with the mount
	case n.proc.owner.Uid != in.Uid && !c.steers(&in.Caller):
		return fuse.EACCES
	}
	c.processes.end(n.proc)
	return fuse.OK
}

// arch is the architecture of processes whose name does not say.
func (t *processTable) arch() process.Arch { return process.Arch(t.newArch.Load()) }

// policyFile is a file of .proc/policy. What is written to it holds for processes that are started afterwards.
type policyFile struct {
	name string
	get  func(t *processTable) string
	set  func(t *processTable, text string) bool // false: nothing has changed
	list bool                                    // a program a line
}

var policyFiles = []policyFile{
	{ctl.PolicyNX, func(t *processTable) string { return t.machine.Policy().String() + "\n" },
		func(t *processTable, text string) bool {
			p, ok := ctl.ParseNX([]byte(text))
			if ok {
				t.machine.SetPolicy(p)
			}
			return ok
		}, false},
	{ctl.PolicyOptIn, func(t *processTable) string { return lines(t.machine.OptIn()) },
		func(t *processTable, text string) bool { return setNames(text, t.machine.OptIn(), t.machine.SetOptIn) }, true},
	{ctl.PolicyOptOut, func(t *processTable) string { return lines(t.machine.OptOut()) },
		func(t *processTable, text string) bool {
			return setNames(text, t.machine.OptOut(), t.machine.SetOptOut)
		}, true},
	{ctl.PolicyArch, func(t *processTable) string { return t.arch().String() + "\n" },
		func(t *processTable, text string) bool {
			a, ok := process.ParseArch(strings.TrimSpace(text))
			if ok {
				t.newArch.Store(uint32(a))
			}
			return ok
		}, false},
}

// policyRows are the names of the files of .proc/policy.
var policyRows = func() (names []string) {
	for _, f := range policyFiles {
		names = append(names, f.name)
	}
	return names
}()

// lookupPolicy is the row of a file of .proc/policy, and whether name is that of its JSON twin; −1 if there is none.
func lookupPolicy(name string) (row int, json bool) {
	name, json = strings.CutSuffix(name, ".json")
	return slices.Index(policyRows, name), json
}

// doc is what the file's JSON twin says: a string, or an array of them for the lists of programs.
func (f *policyFile) doc(t *processTable) *ctl.Doc {
	d := new(ctl.Doc)
	said := f.get(t)
	if f.list {
		d.Lines(f.name, strings.FieldsFunc(said, func(r rune) bool { return r == '\n' })...)
	} else {
		d.Field("", f.name, ctl.Word(strings.TrimSpace(said)))
	}
	return d
}

func lines(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return strings.Join(names, "\n") + "\n"
}

// maxListed is how many programs a list of the DEP policy has at most.
const maxListed = 1024

// setNames adds the names of a text to a list, one a line, and takes those off that have a - before them. All of them, or
// false if one cannot be a name or they are too many.
func setNames(text string, have []string, set func(name string, on bool)) bool {
	names := strings.Split(strings.TrimSpace(text), "\n")
	for _, name := range names {
		bare := strings.TrimPrefix(strings.TrimSpace(name), "-")
		if bare == "" || len(bare) > maxProcessName || strings.ContainsFunc(bare, func(r rune) bool { return r < ' ' || r == 0x7f || r == '/' }) {
			return false
		}
	}
	if len(have)+len(names) > maxListed {
		return false
	}
	for _, name := range names {
		bare, off := strings.CutPrefix(strings.TrimSpace(name), "-")
		set(bare, !off)
	}
	return true
}

// policy is what a file of .proc/policy says.
func (c *controlTree) policy(n *controlNode) []byte {
	return []byte(policyFiles[n.row].get(c.processes))
}

// setPolicy is a write to it.
func (c *controlTree) setPolicy(n *controlNode, text []byte) fuse.Status {
	if !policyFiles[n.row].set(c.processes, string(text)) {
		return fuse.EINVAL
	}
	return fuse.OK
}

// setDEP is a write to a process's dep: SetProcessDEPPolicy with the flags that the text is, as a number, by name, or on or off.
func (s *simulated) setDEP(text []byte) fuse.Status {
	flags, err := win32.ParseDEPFlags(strings.TrimSpace(string(text)))
	if err != nil {
		return fuse.EINVAL
	}
	switch err := s.process().SetDEPPolicy(flags); {
	case errors.Is(err, process.NotSupported):
		return fuse.Status(syscall.EOPNOTSUPP)
	case errors.Is(err, process.AccessDenied):
		return fuse.EACCES
	case err != nil:
		return fuse.EINVAL
	}
	return fuse.OK
}
