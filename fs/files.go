package fs

import (
	"errors"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"memfs/mm"
	"memfs/mm/process"
)

// Files of the mount as simulated processes use them: CreateFile opens what the process's owner may open, and the file of a
// named section is one in .proc/sections. A process works on our copy of a file; mm.Segment.Fetch and Edit keep it coherent
// with what programs see.

// processFiles is the process.Files of a mount.
type processFiles struct {
	fs        *fileSystem
	processes *processTable
}

var (
	_ process.Files       = processFiles{}
	_ process.SharedNames = processFiles{}
)

// processFile is a file that processes have open.
type processFile struct {
	*node
	made   string // the name of the file that was made for a section; "" of all others
	named  bool   // it is a named section's, whoever made it
	opened place  // the name that it was opened by
}

// Segment has its pages.
func (f *processFile) Segment() *mm.Segment { return f.section.Segment() }

// Path is its name in the mount; none of a section's.
func (f *processFile) Path() string {
	if f.named {
		return ""
	}
	return f.path()
}

// Size is the size as far as the host has told.
func (f *processFile) Size() int64 { return f.section.Size() }

// Measure is the size with what programs have appended and the host has not sent. The call of the process has passed the
// gate, if it must (see processTable.waits): to ask here once more could only end in an old size, by which the file would be
// cut off.
func (f *processFile) Measure() int64 {
	if f.openForWriting() {
		_ = f.writeBack() // failed: what was sent is the best there is
	}
	return f.Size()
}

// SetSize sets the size.
func (f *processFile) SetSize(size int64) error {
	if st := f.mayChange(false); !st.Ok() {
		return process.AccessDenied
	}
	return f.resize(size)
}

// Extend makes the file at least size bytes long.
func (f *processFile) Extend(size int64) error {
	if st := f.mayChange(false); !st.Ok() {
		return process.AccessDenied
	}
	return f.grow(size)
}

// Unlink takes the section's name away.
func (f *processFile) Unlink() {
	if f.made != "" {
		f.fs.hideSection(f.made, f.node)
	}
}

// Remove takes the name away that it was opened by, or if that is another file's by now, the one that it has.
func (f *processFile) Remove() {
	fs, at := f.fs, f.opened
	victim, st := fs.removeOnly(at.parent, at.name, f.node)
	if !st.Ok() {
		if at = f.place(); at.parent == nil {
			return
		}
		if victim, st = fs.removeOnly(at.parent, at.name, f.node); !st.Ok() {
			return
		}
	}
	if at.parent == fs.sections {
		fs.sectionRemoved(at.name, victim)
	}
	victim.release()
	fs.nameChanged(at.parent, at.name)
	f.forgetAttributes()
}

// Close gives the file up.
func (f *processFile) Close() { f.unhold() }

// hold keeps a node as an open handle does; false if it is gone.
func (n *node) hold() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refs.gone {
		return false
	}
	n.refs.handles++
	return true
}

func (n *node) unhold() {
	n.mu.Lock()
	n.refs.handles--
	n.mu.Unlock()
	n.release()
}

// resize sets the size of a file on behalf of a process, by way of the host kernel, which owns it while it caches the
// inode. What a file grows by is promised to it: a process has no way to be told later that there is no space.
func (n *node) resize(size int64) error {
	if err := n.promise(size); err != nil {
		return err
	}
	done, err := n.byHost(func(l Launderer) error { return l.Truncate(n.id, size) })
	if done {
		return err
	}
	if err := n.section.Truncate(size); err != nil { // the host learns of it when it forgets the file
		return err
	}
	n.resized()
	return nil
}

// grow makes a file at least size bytes long in the same way. What programs do to the size at the same time is kept.
func (n *node) grow(size int64) error {
	if err := n.promise(size); err != nil || size == 0 {
		return err
	}
	done, err := n.byHost(func(l Launderer) error { return l.Extend(n.id, size) })
	if done {
		return err
	}
	if err := n.section.Allocate(size-1, 1, false); err != nil {
		return err
	}
	n.resized()
	return nil
}

// promise commits the space that a file would have more.
func (n *node) promise(size int64) error {
	old := n.section.Size()
	if size <= old {
		return nil
	}
	return n.fs.withSpace(func() error { return n.section.Allocate(old, size-old, true) })
}

// byHost has the launderer change the size of a file; done is false if it cannot.
func (n *node) byHost(change func(Launderer) error) (done bool, _ error) {
	const patience, step = 5 * time.Second, 2 * time.Millisecond
	for deadline := time.Now().Add(patience); ; time.Sleep(step) {
		l := n.fs.launderer.Load()
		if l == nil {
			return false, nil
		}
		switch err := change(*l); {
		case err == nil:
			return true, nil
		case errors.Is(err, syscall.EBUSY) && time.Now().Before(deadline): // the last ones are still being closed
		case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EFBIG):
			return true, mm.StatusCommitmentLimit
		default:
			return false, nil
		}
	}
}

// resized tells the host kernel that a file has another size. It believes that only of a file that it does not cache.
func (n *node) resized() {
	n.changed()
	if n.fs.server != nil {
		_ = n.Invalidate(0, -1)
	}
	n.forgetAttributes()
}

// nameChanged has the host kernel forget what it knows of a name in a directory, which was made or removed behind its back.
func (f *fileSystem) nameChanged(dir *node, name string) {
	if f.server == nil {
		return
	}
	_ = f.server.EntryNotify(dir.id, name) // it knows nothing of the name, or the mount has ended
	dir.forgetAttributes()
}

// Rights.

// caller is who a process acts as: its owner, with the groups that he had when he started it.
func (t *processTable) caller(p *process.Process) (*subject, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.byID {
		if s.process() == p {
			return &subject{s.owner, s.groups}, true
		}
	}
	return nil, false
}

// Permission bits, as may takes them.
const (
	mayExecute = 1
	mayWrite   = 2
	mayRead    = 4
)

// wanted is the permissions that an access of CreateFile takes. To map a file for execution it must be readable, as on
// Linux; execution itself is the mount's to forbid.
func wanted(access uint32) (want uint32) {
	const readData, writeData, executeData = 0x1, 0x2, 0x20
	if access&(process.GenericRead|process.GenericExecute|process.GenericAll|readData|executeData) != 0 {
		want |= mayRead
	}
	if access&(process.GenericWrite|process.GenericAll|writeData) != 0 {
		want |= mayWrite
	}
	return want
}

// executes says whether an access is to fetch instructions.
func executes(access uint32) bool { return access&(process.GenericExecute|0x20) != 0 }

// Paths.

// maxSymlinks is how many are followed in one path, as in the host kernel.
const maxSymlinks = 40

// found is where a path leads.
type found struct {
	parent *node
	name   string
	node   *node // nil if there is no such name
}

// walk follows a path of the mount with a caller's rights. A drive letter in front is let be: there is one drive.
func (f *fileSystem) walk(caller *subject, path string) (found, error) {
	if len(path) >= 2 && path[1] == ':' && isLetter(path[0]) {
		path = path[2:]
	}
	at := found{node: f.root}
	links := 0
	for path != "" {
		var name string
		name, path, _ = strings.Cut(path, "/")
		if name == "" || name == "." {
			continue
		}
		dir := at.node
		switch {
		case dir == nil || !dir.isDir():
			return at, process.PathNotFound
		case !caller.may(dir, mayExecute):
			return at, process.AccessDenied
		case name == "..":
			at = found{node: f.parent(dir)}
			continue
		case len(name) > maxNameLen:
			return at, process.FileNotFound
		}
		at = found{parent: dir, name: name, node: dir.child(name)}
		if f.reserved(dir, name) {
			at.node = f.hidden
		}
		if n := at.node; n != nil && n.kind == syscall.S_IFLNK {
			if links++; links > maxSymlinks {
				return at, process.FileNotFound
			}
			to := n.target
			at = found{node: dir}
			if strings.HasPrefix(to, "/") {
				if to = f.inside(to); to == "" {
					return at, process.PathNotFound // outside of the mount
				}
				at = found{node: f.root}
			}
			path = to + "/" + path
		}
	}
	return at, nil
}

func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }

// inside is an absolute path of the host's as one of the mount; "" if it leads elsewhere.
func (f *fileSystem) inside(path string) string {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(f.opts.Mountpoint, "/"))
	if !ok || rest != "" && rest[0] != '/' {
		return ""
	}
	return "/" + rest
}

// Open is CreateFile.
func (m processFiles) Open(p *process.Process, path string, access uint32, d process.Disposition) (process.File, bool, error) {
	f := m.fs
	caller, ok := m.processes.caller(p)
	if !ok {
		return nil, false, process.AccessDenied
	}
	flags := f.mountFlags.Load()
	want := wanted(access)
	// AlwaysOn makes the mount noexec for programs; simulated processes have their DEP.
	noExec := flags&unix.MS_NOEXEC != 0 && f.opts.NX != process.AlwaysOn
	if want&mayWrite != 0 && flags&unix.MS_RDONLY != 0 || executes(access) && noExec {
		return nil, false, process.AccessDenied
	}
	for {
		at, err := f.walk(caller, path)
		switch {
		case err != nil:
			return nil, false, err
		case at.node != nil:
			return m.open(at, caller, access, d)
		case at.parent == nil:
			return nil, false, process.FileNotFound
		case d == process.OpenExisting:
			return nil, false, process.FileNotFound
		case flags&unix.MS_RDONLY != 0, !caller.may(at.parent, mayWrite|mayExecute):
			return nil, false, process.AccessDenied
		}
		n, st := f.createHeld(at.parent, at.name, creation{caller: fuse.Caller{Owner: caller.Owner}, mode: syscall.S_IFREG | 0644})
		switch {
		case st.Ok():
			return &processFile{node: n, named: n.ofSection(), opened: place{parent: at.parent, name: at.name}}, false, nil
		case st != eexist:
			return nil, false, processError(st)
		}
	}
}

// open opens a file that is there.
func (m processFiles) open(at found, caller *subject, access uint32, d process.Disposition) (process.File, bool, error) {
	n, want := at.node, wanted(access)
	switch {
	case d == process.CreateNew:
		return nil, true, process.FileExists
	case !n.isRegular(): // a directory takes FILE_FLAG_BACKUP_SEMANTICS, which is of no use here
		return nil, true, process.AccessDenied
	case !caller.may(n, want), !n.mayAccess(access), access&process.Delete != 0 && !m.fs.mayRemove(caller, at):
		return nil, true, process.AccessDenied
	case !n.hold():
		return nil, false, process.FileNotFound
	}
	return &processFile{node: n, named: n.ofSection(), opened: place{parent: at.parent, name: at.name}}, true, nil
}

// createHeld makes a regular file, held by the caller, of which the host kernel knows nothing yet.
func (f *fileSystem) createHeld(parent *node, name string, c creation) (*node, fuse.Status) {
	var out fuse.EntryOut
	n, st := f.create(parent.id, name, c, &out)
	if !st.Ok() {
		return nil, st
	}
	n.hold()    // it has been looked up: it cannot be gone
	n.forget(1) // by us
	f.nameChanged(parent, name)
	return n, fuse.OK
}

// Remove is DeleteFile.
func (m processFiles) Remove(p *process.Process, path string) error {
	f := m.fs
	caller, ok := m.processes.caller(p)
	if !ok {
		return process.AccessDenied
	}
	at, err := f.walk(caller, path)
	switch {
	case err != nil:
		return err
	case at.node == nil || at.parent == nil:
		return process.FileNotFound
	case at.node.isDir(), f.mountFlags.Load()&unix.MS_RDONLY != 0, !f.mayRemove(caller, at):
		return process.AccessDenied
	}
	if st := f.remove(at.parent.id, at.name, false); !st.Ok() {
		return processError(st)
	}
	f.nameChanged(at.parent, at.name)
	at.node.forgetAttributes()
	return nil
}

// mayRemove says whether a caller may remove a name.
func (f *fileSystem) mayRemove(caller *subject, at found) bool {
	dir := at.parent.attr()
	sticky := dir.Mode&syscall.S_ISVTX != 0 && caller.Uid != 0
	if sticky && caller.Uid != dir.Uid && caller.Uid != at.node.attr().Uid {
		return false
	}
	return caller.may(at.parent, mayWrite|mayExecute)
}

// processError is the Win32 error of a status.
func processError(st fuse.Status) error {
	switch st {
	case fuse.ENOENT:
		return process.FileNotFound
	case eexist:
		return process.FileExists
	case enospc:
		return process.DiskFull
	}
	return process.AccessDenied
}

// Named sections.

// NewSection makes the file of a page-file-backed section; of one without a name, only its pages.
func (m processFiles) NewSection(p *process.Process, name string, size int64) (process.File, error) {
	f := m.fs
	if name == "" {
		return &unnamedSection{seg: f.sys.NewSegment(nil), size: size}, nil
	}
	caller, ok := m.processes.caller(p)
	if !ok {
		return nil, process.AccessDenied
	}
	file, ok := sectionFile(name)
	if !ok {
		return nil, process.InvalidParameter
	}
	n, st := f.newNode(f.sections.seed(creation{caller: fuse.Caller{Owner: caller.Owner}, mode: syscall.S_IFREG | 0600}))
	if !st.Ok() {
		return nil, process.CommitmentLimit
	}
	n.hold()
	if err := n.section.Truncate(size); err != nil {
		n.unhold()
		return nil, err
	}
	var out fuse.EntryOut
	if st := f.enter(f.sections, file, n, &out); !st.Ok() {
		n.unhold()
		if st == eexist {
			return nil, process.AlreadyExists
		}
		return nil, process.CommitmentLimit
	}
	n.forget(1)
	f.nameChanged(f.sections, file)
	return &processFile{node: n, made: file, named: true}, nil
}

// Adopt opens the file that a program made under a section's name.
func (m processFiles) Adopt(p *process.Process, name string) (process.File, error) {
	file, ok := sectionFile(name)
	if !ok {
		return nil, process.FileNotFound
	}
	n := m.fs.sections.child(file)
	if n == nil || !n.ofSection() { // the name of another section, which is just going
		return nil, process.FileNotFound
	}
	f := &processFile{node: n, named: true}
	if err := m.Allows(p, f, false); err != nil {
		return nil, err
	}
	if !n.hold() {
		return nil, process.FileNotFound
	}
	return f, nil
}

// Allows says whether a process may use the file of a named section.
func (m processFiles) Allows(p *process.Process, file process.File, write bool) error {
	f, ok := file.(*processFile)
	if !ok {
		return nil
	}
	want := uint32(mayRead)
	if write {
		want |= mayWrite
	}
	if caller, ok := m.processes.caller(p); !ok || !caller.may(f.node, want) {
		return process.AccessDenied
	}
	return nil
}

// Share gives a file that the process's owner could make a hard link of a name among the sections.
func (m processFiles) Share(p *process.Process, file process.File, name string) error {
	f, ok := file.(*processFile)
	if !ok {
		return nil
	}
	caller, ok := m.processes.caller(p)
	if !ok || caller.Uid != 0 && caller.Uid != f.attr().Uid && !caller.may(f.node, mayRead|mayWrite) {
		return nil
	}
	entry, ok := sectionFile(name)
	if !ok {
		return process.InvalidParameter
	}
	switch st := m.fs.showSection(entry, f.node); st {
	case fuse.OK:
		return nil
	case eexist:
		return process.AlreadyExists
	default:
		return process.CommitmentLimit
	}
}

// Unshare takes the name away.
func (m processFiles) Unshare(file process.File, name string) {
	f, ok := file.(*processFile)
	if !ok {
		return
	}
	if entry, ok := sectionFile(name); ok {
		m.fs.hideSection(entry, f.node)
	}
}

// sectionRemoved tells the processes that a program has removed a section's file.
func (f *fileSystem) sectionRemoved(name string, n *node) {
	f.control.processes.machine.Unname(sectionName(name), func(file process.File) bool {
		p, ok := file.(*processFile)
		return ok && p.node == n
	})
}

// unnamedSection is the pages of a section without a name, which no program can have a copy of.
type unnamedSection struct {
	seg  *mm.Segment
	size int64
}

func (s *unnamedSection) Segment() *mm.Segment { return s.seg }
func (s *unnamedSection) Path() string         { return "" }
func (s *unnamedSection) Size() int64          { return s.size }
func (s *unnamedSection) Measure() int64       { return s.size }
func (s *unnamedSection) SetSize(int64) error  { return process.AccessDenied }
func (s *unnamedSection) Extend(int64) error   { return process.AccessDenied }
func (s *unnamedSection) Unlink()              {}
func (s *unnamedSection) Remove()              {}
func (s *unnamedSection) Close()               { s.seg.Delete() }
