package fs

import (
	"bytes"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"memfs/fs/ctl"
	"memfs/mapping"
	"memfs/mm"
	"memfs/mm/process"
)

// The control tree gives the tables of package ctl nodes. What a file says and obeys is there; here is only what FUSE
// and the real tree have to do with it:
//
//	.proc/NAME                 ctl.Top
//	.proc/PROCESS/             a process: ctl.PerProcess
//	.proc/PROCESS/heaps/       its heaps: ctl.PerHeaps, and N/ with ctl.PerHeap for each
//	.proc/self                 a link to the caller's own
//	.proc/policy/              policyRows
//	.proc/sections/            a directory of real files (section.go)
//	.proc/files/               the real tree again, from its root
//	.proc/files/DIR/           a real directory: its entries, and ctl.PerDir for itself
//	.proc/files/PATH/          a regular file: a folder with ctl.PerFile
//	                           symlinks (not followed), fifos, sockets and devices: a folder with ctl.PerSpecial
//	.proc/files/.proc/sections/NAME/   the same for the files of named sections
//
// A real name that looks like a control of its directory (":info") has one more colon in front in .proc/files.
//
// Little here is cached by the host: entries and attributes have time-out 0, but for those of .proc itself, and files are FOPEN_DIRECT_IO. A readable
// file is rendered at open and read from that copy. A ctl is a stream besides: its writes run commands, its reads
// consume the answers.
//
// Locks: controlTree.mu and controlHandle.mu are leaves: nothing is called with one of them held, least of all the real
// tree or the memory manager.

// controlBit marks the node ids of the control tree. Below it an id says all there is to say of its node: the kind, the
// row of the kind's table, and the id of the real node, which is never reused. So the control tree keeps no nodes, however
// much of it the host has looked up, and the same thing has the same st_ino for ever.
const (
	controlBit      = 1 << 62
	controlKindBits = 58
	controlKindMask = 1<<(62-controlKindBits) - 1
	controlRowBits  = 50 // the row, doubled, plus one for its JSON twin
	controlRowMask  = 1<<(controlKindBits-controlRowBits) - 1
	controlRealMask = 1<<controlRowBits - 1
)

type controlKind uint8

const (
	controlRoot       controlKind = iota // .proc
	controlTop                           // a row of ctl.Top
	controlDir                           // a real directory
	controlDirRow                        // a row of ctl.PerDir
	controlFile                          // a regular file's folder
	controlFileRow                       // a row of ctl.PerFile
	controlSpecial                       // the folder of another real node
	controlSpecialRow                    // a row of ctl.PerSpecial
	controlProcess                       // a simulated process
	controlProcessRow                    // a row of ctl.PerProcess
	controlPolicy                        // .proc/policy
	controlPolicyRow                     // a row of policyRows
	controlLink                          // a link of .proc: row 0 is .proc/self, others are noticeKinds
	controlHeaps                         // row 0 is the folder of a process's heaps, others are rows of ctl.PerHeaps
	controlHeap                          // row 0 is the folder of one heap, others are rows of ctl.PerHeap
	controlSections                      // .proc/sections, which is a real directory: never a node of the control tree's own
)

// filesName is the name of the real tree's copy in .proc, policyName that of the folder of boot policies, selfName that of
// the link to the caller's process.
const (
	filesName  = "files"
	policyName = "policy"
	selfName   = "self"
)

// controlNode says what a node of the control tree is. It never changes.
type controlNode struct {
	kind controlKind
	row  int        // of the kind's table
	json bool       // the row's JSON twin
	real *node      // of the kinds that stand for one
	proc *simulated // of the kinds that are about one
	heap int        // of controlHeap: its number
}

func (n *controlNode) id() uint64 {
	row := uint64(n.row) << 1
	if n.json {
		row |= 1
	}
	id := controlBit | uint64(n.kind)<<controlKindBits | row<<controlRowBits
	switch {
	case n.real != nil:
		id |= n.real.id & controlRealMask
	case n.proc != nil:
		id |= n.proc.id | uint64(n.heap)<<heapNumberShift
	}
	return id
}

func (n *controlNode) isDir() bool {
	switch n.kind {
	case controlRoot, controlDir, controlFile, controlSpecial, controlProcess, controlPolicy:
		return true
	case controlHeaps, controlHeap:
		return n.row == 0
	}
	return false
}

// controlHandle is an open file of the control tree.
type controlHandle struct {
	node   controlNode
	access uint32      // O_RDONLY, O_WRONLY or O_RDWR
	text   *ctl.Text   // of a readable file
	stream *ctl.Stream // of one that is rendered while it is read
	wrote  atomic.Bool // something, ever

	mu sync.Mutex
	// Of a ctl: what has been answered and not yet read.
	// +checklocks:mu
	answer []byte
	// replay is a list of faults that is being written.
	// +checklocks:mu
	replay ctl.Replay
	// fresh says that answer is what another handle's commands were answered; the first write drops it.
	// +checklocks:mu
	fresh bool
}

// lastAnswer is what a fresh reader of a ctl gets: everything that the handle which was written to last was answered,
// since a shell makes several writes of `printf 'trim\nflush\n' > ctl`; but not what an earlier reader has got of it.
type lastAnswer struct {
	fh   uint64
	text []byte
	seen bool // by a reader: the next answer takes its place
}

// Bounds on what the control tree may cost the host.
const (
	maxControlHandles = 1024     // open at once
	maxOwnerHandles   = 2048     // the same for root and the mount's owner, so that nobody can lock them out
	maxAnswer         = 16 << 10 // bytes of answers kept for a reader; older ones are dropped
	maxLastAnswers    = 64       // ctl files whose last answers are kept
)

// controlTree is .proc.
type controlTree struct {
	fs        *fileSystem
	processes *processTable
	mount     *ctl.Mount
	env       ctl.Env
	born      time.Time

	mu sync.Mutex
	// +checklocks:mu
	handles map[uint64]*controlHandle
	// +checklocks:mu
	lastHandle uint64
	// last keeps the answers of the ctl files that were written to last, by node id; lastOrder is the order of that.
	// +checklocks:mu
	last map[uint64]lastAnswer
	// +checklocks:mu
	lastOrder []uint64
}

func newControlTree(f *fileSystem) *controlTree {
	processes := newProcessTable(f.sys, f.opts.UID, f.opts.NX, f.opts.Log)
	processes.machine.SetFiles(processFiles{f, processes})
	if err := f.startSystem(processes); err != nil {
		f.opts.Log("no system process: %v", err)
	}
	return &controlTree{
		fs:        f,
		processes: processes,
		mount: &ctl.Mount{
			Processes:  processes.list,
			Violations: processes.machine.Violations,
			Machine:    machine{f.sys, f, processes.machine},
			Version:    f.opts.Version,
			Facts:      f.opts.Facts,
			Inodes:     f.inodeCounts,
			FileOf:     fileOf,
			Resident:   residentBytes,
			Operations: f.times.operationTimes,
			FaultTimes: f.times.faultTimes,
			Owners:     func() []ctl.Owner { return f.listOwners(processes) },

			OpenPageFile: f.opts.OpenPageFile,
			Inject:       f.opts.Inject,
		},
		env: ctl.Env{
			Gate:  ctl.Gate(f.gate),
			Errno: func(err error) syscall.Errno { return syscall.Errno(errno(err)) },
		},
		born:    time.Now(),
		handles: make(map[uint64]*controlHandle),
		last:    make(map[uint64]lastAnswer),
	}
}

// machine is the memory manager with what of the mount goes with its memory.
type machine struct {
	*mm.System
	fs        *fileSystem
	processes *process.Machine
}

// Check proves the invariants of the memory manager and of the processes on it.
func (m machine) Check() []error { return append(m.System.Check(), m.processes.Check()...) }

// SetMemory also changes how many inodes there may be, if that went by the memory, and how much dirty data.
func (m machine) SetMemory(bytes uint64) (mm.Resized, error) {
	r, err := m.System.SetMemory(bytes)
	m.fs.resized()
	return r, err
}

// fileOf says which file a segment's host is.
func fileOf(h mm.Host) ctl.Place {
	n, ok := h.(*node)
	if !ok {
		return ctl.Place{}
	}
	p := ctl.Place{Inode: n.id, Name: "(deleted)"}
	if !gone(n) { // else a look for its path is one through the whole tree
		p.Name = n.path()
	}
	return p
}

// Nodes.

// node is the node of an id; false if there is none, or its real node is no more.
func (c *controlTree) node(id uint64) (n controlNode, ok bool) {
	row := int(id >> controlRowBits & controlRowMask)
	n = controlNode{kind: controlKind(id >> controlKindBits & controlKindMask), row: row >> 1, json: row&1 != 0}
	switch n.kind {
	case controlRoot, controlTop, controlPolicy, controlPolicyRow, controlLink:
	case controlHeaps, controlHeap:
		n.heap = int(id & controlRealMask >> heapNumberShift)
		if n.proc = c.processes.get(id & (1<<heapNumberShift - 1)); n.proc == nil || n.kind == controlHeap && !n.hasHeap() {
			return n, false
		}
	case controlProcess, controlProcessRow:
		if n.proc = c.processes.get(id & controlRealMask); n.proc == nil {
			return n, false
		}
	default:
		if n.real = c.fs.nodes.get(id & controlRealMask); n.real == nil {
			return n, false
		}
	}
	return n, n.valid() && n.id() == id
}

// valid says whether there is such a row, and such a node as the table is for. Ids that we did not make come out of file
// handles.
func (n *controlNode) valid() bool {
	rows := 1
	switch n.kind {
	case controlRoot:
	case controlTop:
		rows = len(ctl.Top)
	case controlDir, controlDirRow:
		if !n.real.isDir() {
			return false
		}
		if n.kind == controlDirRow {
			rows = len(ctl.PerDir)
		}
	case controlFile, controlFileRow:
		if !n.real.isRegular() {
			return false
		}
		if n.kind == controlFileRow {
			rows = len(ctl.PerFile)
		}
	case controlSpecial, controlSpecialRow:
		if n.real.isDir() || n.real.isRegular() {
			return false
		}
		if n.kind == controlSpecialRow {
			rows = len(ctl.PerSpecial)
		}
	case controlProcess:
	case controlProcessRow:
		rows = len(ctl.PerProcess)
	case controlHeaps, controlHeap:
		rows = heapRows(n.kind)
	case controlPolicy:
	case controlPolicyRow:
		rows = len(policyRows)
	case controlLink:
		rows = 1 + len(noticeKinds)
	default:
		return false
	}
	return n.row < rows && (!n.json || n.hasTwin())
}

// enter answers a lookup of n.
func (c *controlTree) enter(n *controlNode, out *fuse.EntryOut) {
	*out = fuse.EntryOut{NodeId: n.id()}
	c.fillAttr(n, &out.Attr)
	out.SetEntryTimeout(n.cacheTime())
	out.SetAttrTimeout(n.cacheTime())
}

// cacheTime is how long the host may believe that a node is there and what it is: for ever of .proc itself and its own
// files, which saves whoever reads one of them ten times a second half of the requests; the others come and go.
func (n *controlNode) cacheTime() time.Duration {
	if n.kind == controlRoot || n.kind == controlTop {
		return cacheTime
	}
	return 0
}

// root answers a lookup of .proc.
func (c *controlTree) root(out *fuse.EntryOut) {
	c.enter(&controlNode{kind: controlRoot}, out)
}

// forget has nothing to do: no node is kept.
func (c *controlTree) forget(id, lookups uint64) {}

// controlFor is the node of .proc/files that stands for a real node.
func controlFor(real *node) controlNode {
	switch {
	case real.isDir():
		return controlNode{kind: controlDir, real: real}
	case real.isRegular():
		return controlNode{kind: controlFile, real: real}
	}
	return controlNode{kind: controlSpecial, real: real}
}

// find is the entry of a directory by name.
func (c *controlTree) find(dir *controlNode, name string) (controlNode, bool) {
	row, json := -1, false
	n := controlNode{real: dir.real}
	switch dir.kind {
	case controlRoot:
		switch {
		case name == filesName:
			return controlFor(c.fs.rootNode()), true
		case name == policyName:
			return controlNode{kind: controlPolicy}, true
		case name == selfName:
			return controlNode{kind: controlLink}, true
		case name == sectionsName:
			return controlNode{kind: controlSections, real: c.fs.sections}, true
		}
		for i, notice := range noticeKinds {
			if notice.name == name {
				return controlNode{kind: controlLink, row: 1 + i}, true
			}
		}
		if s := c.processes.find(name); s != nil {
			return controlNode{kind: controlProcess, proc: s}, true
		}
		n.kind = controlTop
		row, json = ctl.Lookup(ctl.Top, name)
	case controlDir:
		n.kind = controlDirRow
		row, json = ctl.Lookup(ctl.PerDir, name)
		if row < 0 {
			if c.fs.reserved(dir.real, name) {
				return controlFor(c.fs.hidden), true
			}
			real := dir.real.child(realName(name))
			if real == nil {
				return n, false
			}
			return controlFor(real), true
		}
	case controlFile:
		n.kind = controlFileRow
		row, json = ctl.Lookup(ctl.PerFile, name)
	case controlSpecial:
		n.kind = controlSpecialRow
		row, json = ctl.Lookup(ctl.PerSpecial, name)
	case controlProcess:
		switch name {
		case heapsName:
			return controlNode{kind: controlHeaps, proc: dir.proc}, true
		case heapsName + ".json":
			return findHeaps(&controlNode{kind: controlHeaps, proc: dir.proc}, "summary.json")
		}
		n.kind, n.proc = controlProcessRow, dir.proc
		row, json = ctl.Lookup(ctl.PerProcess, name)
	case controlHeaps, controlHeap:
		return findHeaps(dir, name)
	case controlPolicy:
		n.kind = controlPolicyRow
		row, json = lookupPolicy(name)
	}
	if row < 0 || gone(dir.real) {
		return n, false
	}
	n.row, n.json = row, json
	return n, true
}

// gone says that a real node has no name left, so that its controls have none either.
func gone(real *node) bool {
	return real != nil && real.attr().Nlink == 0
}

// A name of a real directory that, but for the colons in front, is a control of a directory gets one more colon.

func shownName(name string) string {
	if controlLike(name) {
		return ":" + name
	}
	return name
}

func realName(shown string) string {
	if name, ok := strings.CutPrefix(shown, ":"); ok && controlLike(name) {
		return name
	}
	return shown
}

func controlLike(name string) bool {
	bare := strings.TrimLeft(name, ":")
	if bare == name {
		return false
	}
	row, _ := ctl.Lookup(ctl.PerDir, ":"+bare)
	return row >= 0
}

func (c *controlTree) lookup(cancel <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, ok := c.node(header.NodeId)
	if !ok {
		return fuse.ENOENT
	}
	if !dir.isDir() && name != "." {
		return fuse.ENOTDIR
	}
	n := dir
	if name != "." { // asked for when the host opens a file handle
		if n, ok = c.find(&dir, name); !ok {
			return fuse.ENOENT
		}
	}
	if n.kind == controlSections {
		return c.fs.lookupNode(n.real, out)
	}
	c.enter(&n, out)
	return fuse.OK
}

// Attributes.

// perm returns the permission bits, at most, of a row and whether it shows which pages are in memory.
func (n *controlNode) perm() (perm uint32, residency bool) {
	switch n.kind {
	case controlTop:
		e := &ctl.Top[n.row]
		return e.Perm, e.Residency
	case controlDirRow:
		e := &ctl.PerDir[n.row]
		return e.Perm, e.Residency
	case controlFileRow:
		e := &ctl.PerFile[n.row]
		return e.Perm, e.Residency
	case controlSpecialRow:
		e := &ctl.PerSpecial[n.row]
		return e.Perm, e.Residency
	case controlProcessRow:
		e := &ctl.PerProcess[n.row]
		return e.Perm, e.Residency
	case controlHeaps, controlHeap:
		return 0400, false
	case controlPolicyRow:
		return 0644, false
	}
	return 0, false
}

// rule is the part of a file's or directory's rule that the node shows and takes, "" if it is none.
func (n *controlNode) rule() string {
	var name string
	switch n.kind {
	case controlFileRow:
		name = ctl.PerFile[n.row].Name
	case controlDirRow:
		name = strings.TrimPrefix(ctl.PerDir[n.row].Name, ":")
	}
	switch name {
	case ctl.RuleProtection, ctl.RulePriority, ctl.RulePin, ctl.RuleWorkingSet:
		return name
	}
	return ""
}

// hasTwin says whether the node has a JSON twin.
func (n *controlNode) hasTwin() bool {
	switch n.kind {
	case controlTop:
		return ctl.Top[n.row].Render != nil
	case controlDirRow:
		return ctl.PerDir[n.row].Render != nil
	case controlFileRow:
		return ctl.PerFile[n.row].Render != nil
	case controlSpecialRow:
		return ctl.PerSpecial[n.row].Render != nil
	case controlProcessRow:
		return ctl.PerProcess[n.row].Render != nil
	case controlHeaps, controlHeap:
		return n.row != 0
	case controlPolicyRow:
		return true
	}
	return false
}

// isDEP says that the node is the DEP state of a process: it is rendered as other files are, and takes flags.
func (n *controlNode) isDEP() bool {
	return n.kind == controlProcessRow && ctl.PerProcess[n.row].Name == ctl.DEP
}

// isCtl says that the node takes commands, and is not rendered.
func (n *controlNode) isCtl() bool {
	perm, _ := n.perm()
	return perm&0200 != 0 && !n.json && !n.isMemory() && !n.isDEP()
}

// writable says that something can be written to the node.
func (n *controlNode) writable() bool { return n.isCtl() || n.isMemory() || n.isDEP() && !n.json }

// guardedAttr is the attributes of a real node, with permissions that are safe to copy. A node with an ACL may let less of
// a group, or of the others, in than its mode says: what belongs to it is then its owner's alone.
func guardedAttr(real *node) fuse.Attr {
	real.mu.Lock()
	defer real.mu.Unlock()
	attr := real.attrLocked()
	if _, ok := real.xattrs[aclAccess]; ok {
		attr.Mode &^= 0077
	}
	return attr
}

// controlMode is the mode of a node, whose real node has the given one.
//
// The host checks permissions by these modes (default_permissions), so they let nobody see more than the real tree
// does: directories have the real directories' bits, the readable controls of a file its read bits, and those that show
// which pages are in memory only those of them that come with a write bit, as with mincore(2). The owner of a file can
// always reach its ctl.
func (n *controlNode) controlMode(real uint32) uint32 {
	switch n.kind {
	case controlRoot:
		return syscall.S_IFDIR | syscall.S_ISVTX | 0777 // everybody may start a process, and end his own
	case controlProcess, controlPolicy:
		return syscall.S_IFDIR | 0555
	case controlLink:
		return syscall.S_IFLNK | 0777
	case controlDir:
		return syscall.S_IFDIR | real&0555
	case controlFile, controlSpecial:
		read := real & 0444
		return syscall.S_IFDIR | 0500 | read | read>>2
	case controlHeaps, controlHeap:
		if n.row == 0 {
			return syscall.S_IFDIR | 0555
		}
		return syscall.S_IFREG | 0400
	case controlTop, controlProcessRow, controlPolicyRow:
		perm, _ := n.perm()
		if !n.writable() {
			perm &^= 0222
		}
		return syscall.S_IFREG | perm
	}
	perm, residency := n.perm()
	if n.isCtl() {
		return syscall.S_IFREG | perm
	}
	read := real & 0444
	if residency {
		read &= 0400 | real<<1
	}
	return syscall.S_IFREG | perm&read
}

func (c *controlTree) fillAttr(n *controlNode, out *fuse.Attr) {
	*out = fuse.Attr{Ino: n.id(), Nlink: 1, Blksize: 4096}
	if n.isDir() {
		out.Nlink = 2
	}
	if s := n.proc; s != nil {
		out.Mode = n.controlMode(0)
		out.Owner = s.owner
		if n.isMemory() {
			out.Size = memorySize
		}
		out.SetTimes(&s.born, &s.born, &s.born)
		return
	}
	if n.real == nil {
		out.Mode = n.controlMode(0)
		out.Owner = fuse.Owner{Uid: c.fs.opts.UID, Gid: c.fs.opts.GID}
		out.SetTimes(&c.born, &c.born, &c.born)
		return
	}
	real := guardedAttr(n.real)
	out.Mode = n.controlMode(real.Mode)
	out.Owner = real.Owner
	out.Atime, out.Atimensec = real.Atime, real.Atimensec
	out.Mtime, out.Mtimensec = real.Mtime, real.Mtimensec
	out.Ctime, out.Ctimensec = real.Ctime, real.Ctimensec
}

func (c *controlTree) getattr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, ok := c.node(in.NodeId)
	if !ok {
		return fuse.ENOENT
	}
	*out = fuse.AttrOut{}
	c.fillAttr(&n, &out.Attr)
	out.SetTimeout(n.cacheTime())
	return fuse.OK
}

// setattr lets a ctl be truncated, as `echo … > ctl` does before it writes, and touched; nothing else can be set.
func (c *controlTree) setattr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, ok := c.node(in.NodeId)
	if !ok {
		return fuse.ENOENT
	}
	if in.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID) != 0 || n.isDir() {
		return fuse.EPERM
	}
	if !n.writable() {
		return fuse.EACCES
	}
	if size, ok := in.GetSize(); ok && size != 0 {
		return fuse.EINVAL
	}
	*out = fuse.AttrOut{}
	c.fillAttr(&n, &out.Attr)
	return fuse.OK
}

// Handles.

// steers says whether the caller may do with the mount as he likes.
func (c *controlTree) steers(caller *fuse.Caller) bool {
	return caller.Uid == 0 || caller.Uid == c.fs.opts.UID
}

// keep makes a handle of h, or fails when there are too many.
func (c *controlTree) keep(h *controlHandle, caller *fuse.Caller) (uint64, fuse.Status) {
	most := maxControlHandles
	if c.steers(caller) {
		most = maxOwnerHandles
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.handles) >= most {
		return 0, fuse.Status(syscall.ENFILE)
	}
	c.lastHandle++
	c.handles[c.lastHandle] = h
	return c.lastHandle, fuse.OK
}

func (c *controlTree) handle(fh uint64) *controlHandle {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.handles[fh]
}

func (c *controlTree) drop(fh uint64) {
	c.mu.Lock()
	h := c.handles[fh]
	delete(c.handles, fh)
	c.mu.Unlock()
	if h == nil {
		return
	}
	if h.wrote.Load() {
		const moment = 10 * time.Millisecond
		time.AfterFunc(moment, func() { c.forgetSize(&h.node) })
	}
	h.close()
}

// close gives back what the handle holds.
func (h *controlHandle) close() {
	if h.text != nil {
		h.text.Close()
	}
	if h.stream != nil {
		h.stream.Close()
	}
}

// close ends the handles that the host has left open.
func (c *controlTree) close() {
	c.mu.Lock()
	handles := c.handles
	c.handles = make(map[uint64]*controlHandle)
	c.mu.Unlock()
	for _, h := range handles {
		h.close()
	}
}

// OnUnmount is called after the last request. A mount that was aborted, or unmounted with files open, never releases them.
func (f *fileSystem) OnUnmount() { f.control.close() }

func (c *controlTree) open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, ok := c.node(in.NodeId)
	switch {
	case !ok:
		return fuse.ENOENT
	case n.isDir():
		return fuse.EISDIR
	case n.kind == controlLink:
		return fuse.Status(syscall.ELOOP)
	case gone(n.real):
		return fuse.ENOENT
	}
	h := &controlHandle{node: n, access: in.Flags & syscall.O_ACCMODE}
	flags := uint32(fuse.FOPEN_DIRECT_IO)
	if n.isMemory() {
		c.window(&n) // before anything can be mapped
	} else if n.isCtl() {
		flags |= fuse.FOPEN_STREAM
		answer := c.lastAnswer(&n, h.access == syscall.O_RDONLY)
		h.mu.Lock()
		h.answer, h.fresh = answer, true
		h.mu.Unlock()
	} else {
		if in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY && !n.writable() {
			return fuse.EACCES // the mode alone does not keep root from it
		}
		if doc := c.streamed(&n); doc != nil {
			h.stream = ctl.NewStream(doc, n.json)
		} else if text, status := c.render(&n, &in.Caller); status.Ok() {
			h.text = text
		} else {
			return status
		}
	}
	fh, status := c.keep(h, &in.Caller)
	if !status.Ok() {
		h.close()
		return status
	}
	out.Fh, out.OpenFlags = fh, flags
	return fuse.OK
}

// streamed is the document of a file that is rendered while it is read; nil for others.
func (c *controlTree) streamed(n *controlNode) *ctl.Doc {
	if n.kind == controlTop && ctl.Top[n.row].Stream {
		return ctl.Top[n.row].Render(c.mount)
	}
	return nil
}

// render makes what a readable file says to one caller, as of now.
func (c *controlTree) render(n *controlNode, caller *fuse.Caller) (*ctl.Text, fuse.Status) {
	var doc *ctl.Doc
	switch n.kind {
	case controlTop:
		doc = ctl.Top[n.row].Render(c.mount)
	case controlFileRow:
		if status := sentToUs(n.real); !status.Ok() {
			return nil, status
		}
		doc = ctl.PerFile[n.row].Render(&ctl.RegularFile{
			Stat: controlStat(n.real), File: controlled{n.real.section, n.real},
			Protection: n.real.protection().String(), Area: c.processes.machine.ControlArea(n.real.section.Segment()),
		})
	case controlDirRow:
		dir := &ctl.Directory{}
		if n.rule() == "" { // else it is not about what lies below
			var status fuse.Status
			if dir, status = sum(n.real, caller); !status.Ok() {
				return nil, status
			}
		}
		dir.Rule, dir.Protection = n.real.rule(), n.real.protection().String()
		doc = ctl.PerDir[n.row].Render(dir)
	case controlSpecialRow:
		stat := controlStat(n.real)
		doc = ctl.PerSpecial[n.row].Render(&stat)
	case controlProcessRow:
		doc = ctl.PerProcess[n.row].Render(n.proc.described())
	case controlHeaps, controlHeap:
		doc = renderHeaps(n)
	case controlPolicyRow:
		doc = policyFiles[n.row].doc(c.processes)
	default:
		return nil, fuse.EINVAL
	}
	var ledger ctl.Ledger
	if n.real != nil || n.proc != nil { // .proc's own are short, and must be readable when there is no room for anything
		ledger = c.fs.sys
	}
	text, err := ctl.Render(doc, n.json, ledger)
	return text, errno(err)
}

// sentToUs has the host send what programs have written to a file, so that what is said of it is the truth. It waits for
// that, but EBUSY if too many wait already. When the host's writing fails, the figures are of what it has sent: whoever
// looks into a full mount must not be refused.
func sentToUs(real *node) fuse.Status {
	if !real.openForWriting() {
		return fuse.OK
	}
	if !real.fs.enterGate() {
		return fuse.EBUSY
	}
	defer real.fs.leaveGate()
	_ = real.writeBack()
	return fuse.OK
}

// typeNames are the types of files as find(1) and stat(1) name them.
var typeNames = map[uint32]string{
	syscall.S_IFREG: "regular", syscall.S_IFDIR: "directory", syscall.S_IFLNK: "symlink", syscall.S_IFIFO: "fifo",
	syscall.S_IFSOCK: "socket", syscall.S_IFBLK: "block device", syscall.S_IFCHR: "character device",
}

func controlStat(real *node) ctl.Stat {
	return ctl.Stat{Inode: real.id, Type: typeNames[real.kind], Links: uint64(real.attr().Nlink)}
}

func (c *controlTree) read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h := c.handle(in.Fh)
	if h == nil {
		return nil, fuse.EBADF
	}
	buf = buf[:min(len(buf), int(in.Size))]
	if h.node.isMemory() {
		return c.readMemory(h, in, buf)
	}
	if h.text != nil {
		n, err := h.text.ReadAt(buf, int64(in.Offset))
		if err != nil && err != io.EOF {
			return nil, fuse.EIO
		}
		return fuse.ReadResultData(buf[:n]), fuse.OK
	}
	if h.stream != nil {
		n, err := h.stream.ReadAt(buf, int64(in.Offset))
		if err != nil {
			return nil, fuse.Status(syscall.ESPIPE)
		}
		return fuse.ReadResultData(buf[:n]), fuse.OK
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	n := copy(buf, h.answer)
	h.answer = h.answer[n:]
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (c *controlTree) write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h := c.handle(in.Fh)
	if h != nil && h.node.isMemory() {
		return c.writeMemory(h, in, data)
	}
	if h == nil || !h.node.writable() {
		return 0, fuse.EBADF
	}
	h.wrote.Store(true)
	c.fs.pace.quicken()
	if h.node.isDEP() {
		if st := h.node.proc.setDEP(data); !st.Ok() {
			return 0, st
		}
		return uint32(len(data)), fuse.OK
	}
	if rule := h.node.rule(); rule != "" {
		if st := h.node.real.setRuleText(rule, data); !st.Ok() {
			return 0, st
		}
		return uint32(len(data)), fuse.OK
	}
	var answer []byte
	var failed syscall.Errno
	switch h.node.kind {
	case controlTop:
		env := c.env
		env.Untrusted = in.Uid != 0 && in.Uid != uint32(os.Geteuid())
		answer, failed = ctl.Execute(ctl.ManagerVerbs, c.mount, data, env)
	case controlFileRow:
		answer, failed = c.fileCommands(h, data)
	case controlDirRow:
		caller := in.Caller
		answer, failed = ctl.Execute(ctl.FileVerbs, &ctl.Target{Dir: true, Files: func(f func(ctl.File)) uint64 {
			return c.steerable(h.node.real, &caller, f)
		}, Folders: func(f func(ctl.Steered)) {
			c.steerableFolders(h.node.real, &caller, f)
		}}, data, c.env)
	case controlProcessRow:
		var st fuse.Status
		if answer, failed, st = c.processes.execute(h.node.proc, data, c.env.Gate); !st.Ok() {
			return 0, st
		}
	case controlPolicyRow:
		if st := c.setPolicy(&h.node, data); !st.Ok() {
			return 0, st
		}
	}
	if len(answer) > 0 { // else there was no command
		c.keepAnswer(&h.node, in.Fh, answer)
		h.push(answer)
	}
	if failed != 0 {
		return 0, fuse.Status(failed)
	}
	return uint32(len(data)), fuse.OK
}

// push adds answers to those that wait for the handle's reader.
func (h *controlHandle) push(answer []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fresh {
		h.answer, h.fresh = nil, false
	}
	h.answer = newestLines(slices.Concat(h.answer, answer), maxAnswer)
}

// newestLines copies the last lines of text that together are not longer than limit; the last one in any case: a process
// may have read much memory.
func newestLines(text []byte, limit int) []byte {
	if len(text) > limit {
		last := bytes.LastIndexByte(bytes.TrimSuffix(text, []byte("\n")), '\n') + 1
		next := len(text) - limit
		next += bytes.IndexByte(text[next:], '\n') + 1
		text = text[min(next, last):]
	}
	return bytes.Clone(text)
}

// lastAnswer is what a fresh reader of a ctl gets; before any command, the list of commands.
func (c *controlTree) lastAnswer(n *controlNode, reader bool) []byte {
	c.mu.Lock()
	last, ok := c.last[n.id()]
	if ok && reader {
		last.seen = true
		c.last[n.id()] = last
	}
	c.mu.Unlock()
	switch {
	case n.rule() != "":
		return []byte(n.real.ruleText(n.rule()) + "\n")
	case ok:
		return last.text
	case n.kind == controlTop:
		return []byte(ctl.Help(ctl.ManagerVerbs))
	case n.kind == controlProcessRow:
		return nil
	case n.kind == controlPolicyRow:
		return c.policy(n)
	}
	return []byte(ctl.Help(ctl.FileVerbs))
}

func (c *controlTree) keepAnswer(n *controlNode, fh uint64, answer []byte) {
	id := n.id()
	c.mu.Lock()
	defer c.mu.Unlock()
	last := c.last[id]
	c.lastOrder = append(slices.DeleteFunc(c.lastOrder, func(other uint64) bool { return other == id }), id)
	if len(c.lastOrder) > maxLastAnswers {
		delete(c.last, c.lastOrder[0])
		c.lastOrder = slices.Delete(c.lastOrder, 0, 1)
	}
	if last.fh == fh && !last.seen {
		answer = slices.Concat(last.text, answer)
	}
	c.last[id] = lastAnswer{fh: fh, text: newestLines(answer, maxAnswer)}
}

// flush ends a list of faults whose last line has no end.
func (c *controlTree) flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	h := c.handle(in.Fh)
	if h != nil && h.wrote.Load() {
		c.forgetSize(&h.node)
	}
	if h == nil || h.node.kind != controlFileRow || !h.node.isCtl() {
		return fuse.OK
	}
	if answer, failed, ok := c.replay(h, nil, true); ok && len(answer) > 0 {
		c.keepAnswer(&h.node, in.Fh, answer)
		h.push(answer)
		return fuse.Status(failed)
	}
	return fuse.OK
}

// forgetSize has the host kernel forget a file that was written to. It thinks that what was written has made it longer, and
// believes its own size for as long as it knows the file; nobody finds that one any more by its name. When the descriptor is
// closed, the host still knows the file for a moment, until it has heard that the RELEASE is done: who looks it up just then
// finds what is about to be forgotten, so it is done once more.
func (c *controlTree) forgetSize(n *controlNode) {
	if c.fs.server == nil {
		return
	}
	dir, name := c.placeOf(n)
	_ = c.fs.server.EntryNotify(dir.id(), name) // it knows nothing of it, or the mount has ended
}

// placeOf is the directory and the name of a file that can be written to.
func (c *controlTree) placeOf(n *controlNode) (dir controlNode, name string) {
	switch n.kind {
	case controlTop:
		return controlNode{kind: controlRoot}, ctl.Top[n.row].Name
	case controlProcessRow:
		return controlNode{kind: controlProcess, proc: n.proc}, ctl.PerProcess[n.row].Name
	case controlPolicyRow:
		return controlNode{kind: controlPolicy}, policyRows[n.row]
	case controlDirRow:
		return controlNode{kind: controlDir, real: n.real}, ctl.PerDir[n.row].Name
	}
	return controlNode{kind: controlFile, real: n.real}, ctl.PerFile[n.row].Name
}

// fileCommands is a write to a file's ctl: commands, or a list of faults to be replayed.
func (c *controlTree) fileCommands(h *controlHandle, data []byte) ([]byte, syscall.Errno) {
	if answer, failed, ok := c.replay(h, data, false); ok {
		return answer, failed
	}
	return ctl.Execute(ctl.FileVerbs, fileTarget(h.node.real), data, c.env)
}

// replay is the part of fileCommands and flush that is about a list of faults; ok is false if that is not what is being
// written. Writes to one handle at the same time are pieces of one list in no order: they get what they deserve.
func (c *controlTree) replay(h *controlHandle, data []byte, last bool) (answer []byte, failed syscall.Errno, ok bool) {
	h.mu.Lock()
	r := h.replay
	h.replay = ctl.Replay{}
	h.mu.Unlock()
	if !r.Takes(data) {
		return nil, 0, false
	}
	answer, failed = r.Write(fileTarget(h.node.real), data, last, c.env)
	h.mu.Lock()
	h.replay = r
	h.mu.Unlock()
	return answer, failed, true
}

// fileTarget is one file, to be steered.
func fileTarget(n *node) *ctl.Target {
	return &ctl.Target{Files: func(f func(ctl.File)) uint64 {
		f(controlled{n.section, n})
		return 0
	}}
}

func (c *controlTree) fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status { return fuse.OK }

func (c *controlTree) release(cancel <-chan struct{}, in *fuse.ReleaseIn) { c.drop(in.Fh) }

// Directories.

// opendir makes no handle: a READDIR finds its place by offset.
func (c *controlTree) opendir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, ok := c.node(in.NodeId)
	switch {
	case !ok:
		return fuse.ENOENT
	case !n.isDir():
		return fuse.ENOTDIR
	}
	return fuse.OK
}

func (c *controlTree) releasedir(in *fuse.ReleaseIn) {}

// cookieBase is what is added to the cookies of a real directory's entries; below it are those of the controls.
const cookieBase = 256

// readdir lists a directory. With plus the attributes could be sent along; they are left out (a node id of 0), because a
// lookup that follows has to ask for them again anyway: nothing here may be cached.
func (c *controlTree) readdir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList, plus bool) fuse.Status {
	dir, ok := c.node(in.NodeId)
	switch {
	case !ok:
		return fuse.ENOENT
	case !dir.isDir():
		return fuse.ENOTDIR
	}
	add := func(name string, n *controlNode, offset uint64) bool {
		entry := fuse.DirEntry{Name: name, Ino: n.id(), Off: offset, Mode: syscall.S_IFREG}
		switch {
		case n.isDir():
			entry.Mode = syscall.S_IFDIR
		case n.kind == controlSections:
			entry.Mode, entry.Ino = syscall.S_IFDIR, n.real.id
		case n.kind == controlLink:
			entry.Mode = syscall.S_IFLNK
		}
		return addEntry(out, entry, plus, nil)
	}
	controls := c.controls(&dir)
	for i := in.Offset; i < uint64(len(controls)); i++ {
		n := dir // of . and ..
		if name := controls[i]; i >= 2 {
			if n, ok = c.find(&dir, name); !ok {
				continue
			}
		}
		if !add(controls[i], &n, i+1) {
			return fuse.OK
		}
	}
	if dir.kind == controlDir {
		c.listReal(dir.real, in.Offset, add)
	}
	return fuse.OK
}

// controls is what a directory has of the control tree's own.
func (c *controlTree) controls(dir *controlNode) []string {
	names := []string{".", ".."}
	switch dir.kind {
	case controlRoot:
		names = append(slices.AppendSeq(names, ctl.Names(ctl.Top)), filesName, policyName, sectionsName, selfName)
		for _, notice := range noticeKinds {
			names = append(names, notice.name)
		}
		for _, s := range c.processes.all() {
			names = append(names, s.name)
		}
	case controlProcess:
		names = append(slices.AppendSeq(names, ctl.Names(ctl.PerProcess)), heapsName, heapsName+".json")
	case controlHeaps, controlHeap:
		names = append(names, heapNames(dir)...)
	case controlPolicy:
		for _, name := range policyRows {
			names = append(names, name, name+".json")
		}
	case controlDir:
		names = slices.AppendSeq(names, ctl.Names(ctl.PerDir))
	case controlFile:
		names = slices.AppendSeq(names, ctl.Names(ctl.PerFile))
	case controlSpecial:
		names = slices.AppendSeq(names, ctl.Names(ctl.PerSpecial))
	}
	return names
}

// listReal adds the entries of a real directory behind an offset.
func (c *controlTree) listReal(dir *node, offset uint64, add func(name string, n *controlNode, offset uint64) bool) {
	c.fs.tree.RLock()
	defer c.fs.tree.RUnlock()
	for _, e := range dir.dir.after(max(offset, cookieBase) - cookieBase) {
		if e.node == nil {
			continue
		}
		n := controlFor(e.node)
		if !add(shownName(e.name), &n, e.cookie+cookieBase) {
			return
		}
	}
}

// What lies below a directory.

// below calls f for every node below dir, each regular file once even if it has several names there. It goes into a
// directory if enter says so. The tree may change meanwhile: what is moved may be seen twice or not at all.
func below(dir *node, enter func(*node) bool, f func(*node)) {
	linked := make(map[uint64]bool)
	for pending := []*node{dir}; len(pending) > 0; {
		d := pending[len(pending)-1]
		pending = pending[:len(pending)-1]
		for _, name := range d.names() {
			n := d.child(name)
			if n == nil {
				continue
			}
			if n.isRegular() && n.attr().Nlink > 1 {
				if linked[n.id] {
					continue
				}
				linked[n.id] = true
			}
			f(n)
			if n.isDir() && enter(n) {
				pending = append(pending, n)
			}
		}
	}
}

// sum adds up what lies below a directory as far as the caller may look.
func sum(real *node, caller *fuse.Caller) (*ctl.Directory, fuse.Status) {
	dir := &ctl.Directory{Stat: controlStat(real)}
	who := subjectOf(caller)
	status := fuse.OK
	below(real, func(d *node) bool {
		if who.may(d, 5) {
			return true
		}
		dir.Skipped++
		return false
	}, func(n *node) {
		switch {
		case n.isDir():
			dir.Directories++
		case !n.isRegular():
			dir.Others++
		case !who.may(n, 4):
			dir.Skipped++
		case status.Ok():
			if status = sentToUs(n); status.Ok() {
				dir.Files++
				dir.Blocks += n.section.Blocks()
				addInfo(&dir.Sum, n.section.Info())
			}
		}
	})
	return dir, status
}

func addInfo(sum *mapping.Info, i mapping.Info) {
	sum.Size += min(i.Size, math.MaxUint64-sum.Size) // three sparse files may have more than that
	sum.Committed += i.Committed
	sum.Active += i.Active
	sum.Standby += i.Standby
	sum.Modified += i.Modified
	sum.Transition += i.Transition
	sum.Paged += i.Paged
	sum.Compressed += i.Compressed
	sum.HostCached += i.HostCached
	sum.Combined += i.Combined
}

// steerable calls f for the files below a directory that the caller may steer one by one as well: his own; all of them, if
// he is root or the mount's owner. It returns how many files and directories it left out.
func (c *controlTree) steerable(dir *node, caller *fuse.Caller, f func(ctl.File)) (skipped uint64) {
	all, who := c.steers(caller), subjectOf(caller)
	below(dir, func(d *node) bool {
		if all || who.may(d, 5) {
			return true
		}
		skipped++
		return false
	}, func(n *node) {
		switch {
		case !n.isRegular():
		case all || n.attr().Uid == caller.Uid:
			f(controlled{n.section, n})
		default:
			skipped++
		}
	})
	return skipped
}

// steerableFolders calls f for a directory and those below it that the caller may steer.
func (c *controlTree) steerableFolders(dir *node, caller *fuse.Caller, f func(ctl.Steered)) {
	all, who := c.steers(caller), subjectOf(caller)
	mine := func(d *node) bool { return all || d.attr().Uid == caller.Uid }
	if mine(dir) {
		f(dir)
	}
	below(dir, func(d *node) bool { return all || who.may(d, 5) }, func(n *node) {
		if n.isDir() && mine(n) {
			f(n)
		}
	})
}
