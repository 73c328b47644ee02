package fs

import (
	"slices"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// directory is the node of an id if it is a directory.
func (f *fileSystem) directory(id uint64) (*node, fuse.Status) {
	n := f.nodes.get(id)
	switch {
	case n == nil:
		return nil, fuse.ENOENT
	case !n.isDir():
		return nil, fuse.ENOTDIR
	}
	return n, fuse.OK
}

// reserved reports whether a name is that of the control tree.
func (f *fileSystem) reserved(parent *node, name string) bool {
	return parent == f.root && name == f.opts.ProcName
}

// lookup finds a name. A missing one is answered with no node, which the host kernel remembers. The names . and .. are
// asked for by id, when the host opens a file handle (name_to_handle_at) whose inode it has dropped.
func (f *fileSystem) lookup(id uint64, name string, out *fuse.EntryOut) fuse.Status {
	if name == "." {
		return f.lookupNode(f.nodes.get(id), out)
	}
	parent, st := f.directory(id)
	switch {
	case !st.Ok():
		return st
	case name == "..":
		return f.lookupNode(f.parent(parent), out)
	case len(name) > maxNameLen:
		return enametoolong
	case f.reserved(parent, name):
		f.control.root(out)
		return fuse.OK
	}
	f.tree.RLock()
	defer f.tree.RUnlock()
	if parent.dir.removed {
		return fuse.ENOENT
	}
	e := parent.dir.find(name)
	if e == nil {
		out.SetEntryTimeout(cacheTime)
		return fuse.OK
	}
	return f.lookupNode(e.node, out)
}

func (f *fileSystem) lookupNode(n *node, out *fuse.EntryOut) fuse.Status {
	if n == nil || !n.lookedUp(out) {
		return fuse.ENOENT
	}
	return fuse.OK
}

// parent is the directory that a directory is in, the root's being itself; nil for one that is removed.
func (f *fileSystem) parent(dir *node) *node {
	if dir == f.root || dir == f.hidden {
		return f.root
	}
	f.tree.RLock()
	defer f.tree.RUnlock()
	if dir.entry == nil {
		return nil
	}
	return dir.entry.parent
}

// child is the node of a name in a directory, or nil.
func (n *node) child(name string) *node {
	if !n.isDir() {
		return nil
	}
	n.fs.tree.RLock()
	defer n.fs.tree.RUnlock()
	if e := n.dir.find(name); e != nil {
		return e.node
	}
	return nil
}

// names is the names in a directory, in the order of READDIR.
func (n *node) names() []string {
	if !n.isDir() {
		return nil
	}
	n.fs.tree.RLock()
	defer n.fs.tree.RUnlock()
	names := make([]string, 0, n.dir.len())
	for _, e := range n.dir.order {
		if e.node != nil {
			names = append(names, e.name)
		}
	}
	return names
}

// path is one of the paths of the node from the root, which is "/"; "" if it has none.
func (n *node) path() string {
	f := n.fs
	f.tree.RLock()
	defer f.tree.RUnlock()
	e := n.entry
	if e == nil && n != f.root {
		e = f.anyLinkLocked(n)
	}
	var names []string
	for ; e != nil; e = e.parent.entry {
		names = append(names, e.name)
		switch e.parent {
		case f.hidden:
			names = append(names, f.opts.ProcName)
			fallthrough
		case f.root:
			slices.Reverse(names)
			return "/" + strings.Join(names, "/")
		}
	}
	if n == f.root {
		return "/"
	}
	return ""
}

// place is the name that the node is known by; without a parent if it has none.
func (n *node) place() place {
	n.fs.tree.RLock()
	defer n.fs.tree.RUnlock()
	if n.entry == nil {
		return place{}
	}
	return place{parent: n.entry.parent, name: n.entry.name}
}

// directory is a directory that the node has a name in, nil if it is not known to have one.
func (n *node) directory() *node {
	n.fs.tree.RLock()
	defer n.fs.tree.RUnlock()
	if n.entry == nil {
		return nil
	}
	return n.entry.parent
}

// anyLinkLocked is a name of a node that lost the one it was known by, nil if it has none: where there is no other, one that
// it has among the sections.
// +checklocksread:f.tree
func (f *fileSystem) anyLinkLocked(n *node) (e *entry) {
	others := n.attr().Nlink
	for _, s := range f.sections.dir.order {
		if s.node == n {
			e = s
			others--
		}
	}
	if others > 0 {
		return findLink(f.root.dir, n)
	}
	return e
}

// findLink walks a directory for a name of a node: the way for a file that had hard links and lost the name it was known
// by. The tree is locked.
func findLink(d *directory, n *node) *entry {
	for _, e := range d.order {
		switch {
		case e.node == nil:
		case e.node == n:
			return e
		case e.node.isDir():
			if found := findLink(e.node.dir, n); found != nil {
				return found
			}
		}
	}
	return nil
}

// creation is a request for a new node: who asks, and for what.
type creation struct {
	caller fuse.Caller
	mode   uint32 // type and permissions, the umask not applied
	umask  uint32
	rdev   uint32
	target string
}

// create makes a node with a name, whose answer counts as a lookup. A regular file may be opened in the same step.
func (f *fileSystem) create(id uint64, name string, c creation, out *fuse.EntryOut) (*node, fuse.Status) {
	parent, st := f.directory(id)
	if !st.Ok() {
		return nil, st
	}
	if st := f.checkNewName(parent, name); !st.Ok() {
		return nil, st
	}
	if st := f.sectionOnly(parent, c.mode); !st.Ok() {
		return nil, st
	}
	n, st := f.newNode(parent.seed(c))
	if !st.Ok() {
		return nil, st
	}
	if st := f.enter(parent, name, n, out); !st.Ok() {
		n.discard()
		return nil, st
	}
	return n, fuse.OK
}

func (f *fileSystem) checkNewName(parent *node, name string) fuse.Status {
	switch {
	case len(name) > maxNameLen:
		return enametoolong
	case f.reserved(parent, name):
		return eexist
	}
	return fuse.OK
}

// createUnnamed makes a regular file without a name (O_TMPFILE) in a directory, from which it inherits.
func (f *fileSystem) createUnnamed(id uint64, c creation, out *fuse.EntryOut) (*node, fuse.Status) {
	parent, st := f.directory(id)
	if !st.Ok() {
		return nil, st
	}
	n, st := f.newNode(parent.seed(c))
	if !st.Ok() {
		return nil, st
	}
	n.lookedUp(out)
	return n, fuse.OK
}

// seed is what a new node in a directory starts as: setgid directories hand their group on, default ACLs take the place
// of the umask.
func (n *node) seed(c creation) seed {
	s := seed{mode: c.mode, uid: c.caller.Uid, gid: c.caller.Gid, rdev: c.rdev, target: c.target}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.meta.perm&syscall.S_ISGID != 0 {
		s.gid = n.meta.gid
		if s.mode&syscall.S_IFMT == syscall.S_IFDIR {
			s.mode |= syscall.S_ISGID
		}
	}
	s.inheritRules(n.xattrs)
	if s.mode&syscall.S_IFMT != syscall.S_IFLNK {
		s.inheritACL(n.xattrs[aclDefault], c.umask)
	}
	return s
}

// discard ends a node that never got a name.
func (n *node) discard() {
	n.mu.Lock()
	n.meta.nlink = 0
	n.mu.Unlock()
	n.release()
}

// link gives a node one more name.
func (f *fileSystem) link(id uint64, name string, target uint64, out *fuse.EntryOut) fuse.Status {
	parent, st := f.directory(id)
	if !st.Ok() {
		return st
	}
	n := f.nodes.get(target)
	switch {
	case n == nil:
		return fuse.ENOENT
	case n.isDir():
		return fuse.EPERM
	}
	if st := f.checkNewName(parent, name); !st.Ok() {
		return st
	}
	if st := f.apart(n.directory(), parent); !st.Ok() {
		return st
	}
	if n.attr().Nlink >= maxLinks {
		return emlink
	}
	return f.enter(parent, name, n, out)
}

// enter gives a node a name in a directory, and answers the request for it.
func (f *fileSystem) enter(parent *node, name string, n *node, out *fuse.EntryOut) fuse.Status {
	if err := f.sys.ChargeRecord(nameRecord(name)); err != nil {
		return errno(err)
	}
	st := f.tryEnter(parent, name, n, out)
	if !st.Ok() {
		f.sys.ReleaseRecord(nameRecord(name))
	}
	return st
}

func (f *fileSystem) tryEnter(parent *node, name string, n *node, out *fuse.EntryOut) fuse.Status {
	f.tree.Lock()
	defer f.tree.Unlock()
	switch {
	case parent.dir.removed:
		return fuse.ENOENT
	case parent.dir.find(name) != nil:
		return eexist
	case !n.lookedUp(out):
		return fuse.ENOENT
	}
	f.enterLocked(parent, name, n)
	parent.changed()
	out.Attr = n.attr() // with the new link count
	return fuse.OK
}

// enterLocked adds an entry, and moves the link counts that it means.
// +checklocks:f.tree
func (f *fileSystem) enterLocked(parent *node, name string, n *node) {
	e := parent.dir.add(name, parent, n)
	f.setEntryLocked(n, e)
	if n.isDir() {
		parent.addLinks(1)
	} else {
		n.addLinks(1)
	}
}

// leaveLocked takes an entry away, with the link counts that it means and what it is charged. The node may have no name
// any more.
// +checklocks:f.tree
func (f *fileSystem) leaveLocked(e *entry) {
	parent, n := e.parent, e.node
	f.sys.ReleaseRecord(e.recordBytes())
	f.unsetEntryLocked(n, e)
	parent.dir.remove(e)
	f.unlinkedLocked(parent, n)
}

// unlinkedLocked moves the link counts of a node that lost a name in a directory.
// +checklocks:f.tree
func (f *fileSystem) unlinkedLocked(parent, n *node) {
	if n.isDir() {
		n.dir.removed = true
		n.addLinks(-2)
		parent.addLinks(-1)
	} else {
		n.addLinks(-1)
	}
}

// setEntryLocked makes an entry the one that its node is known by.
// +checklocks:f.tree
func (f *fileSystem) setEntryLocked(n *node, e *entry) {
	n.entry = e
}

// +checklocks:f.tree
func (f *fileSystem) unsetEntryLocked(n *node, e *entry) {
	if n.entry == e {
		n.entry = nil
	}
}

// remove is unlink, or rmdir if dir is set.
func (f *fileSystem) remove(id uint64, name string, dir bool) fuse.Status {
	parent, st := f.directory(id)
	if !st.Ok() {
		return st
	}
	if f.reserved(parent, name) {
		return fuse.EPERM
	}
	victim, st := f.removeName(parent, name, dir)
	if !st.Ok() {
		return st
	}
	if parent == f.sections {
		f.sectionRemoved(name, victim)
	}
	victim.release()
	return fuse.OK
}

func (f *fileSystem) removeName(parent *node, name string, dir bool) (*node, fuse.Status) {
	return f.removeEntry(parent, name, dir, nil)
}

// removeOnly is removeName of a name that is only's, and not of what has the name since.
func (f *fileSystem) removeOnly(parent *node, name string, only *node) (*node, fuse.Status) {
	return f.removeEntry(parent, name, false, only)
}

func (f *fileSystem) removeEntry(parent *node, name string, dir bool, only *node) (*node, fuse.Status) {
	f.tree.Lock()
	defer f.tree.Unlock()
	e := parent.dir.find(name)
	switch {
	case e == nil, only != nil && e.node != only:
		return nil, fuse.ENOENT
	case dir && !e.node.isDir():
		return nil, fuse.ENOTDIR
	case !dir && e.node.isDir():
		return nil, fuse.EISDIR
	case dir && e.node.dir.len() > 0:
		return nil, enotempty
	}
	victim := e.node
	f.leaveLocked(e)
	parent.changed()
	return victim, fuse.OK
}

// place is a name in a directory, there or not.
type place struct {
	parent *node
	name   string
	entry  *entry // nil if there is no such name
	leave  *node  // what gets the name when its node moves away; nil for nothing
}

// rename moves a name, over another one if need be, or exchanges two. It may leave a whiteout, the character device 0:0
// by which overlayfs says that a name is gone.
func (f *fileSystem) rename(in *fuse.RenameIn, oldName, newName string) fuse.Status {
	const known = unix.RENAME_NOREPLACE | unix.RENAME_EXCHANGE | unix.RENAME_WHITEOUT
	if in.Flags&^known != 0 || in.Flags&unix.RENAME_EXCHANGE != 0 && in.Flags != unix.RENAME_EXCHANGE {
		return fuse.EINVAL
	}
	from, st := f.directory(in.NodeId)
	if !st.Ok() {
		return st
	}
	to, st := f.directory(in.Newdir)
	switch {
	case !st.Ok():
		return st
	case len(newName) > maxNameLen:
		return enametoolong
	case f.reserved(from, oldName) || f.reserved(to, newName):
		return fuse.EPERM
	}
	if st := f.apart(from, to); !st.Ok() {
		return st
	}
	source := place{parent: from, name: oldName}
	if in.Flags&unix.RENAME_WHITEOUT != 0 {
		c := creation{caller: in.Caller, mode: syscall.S_IFCHR}
		if source.leave, st = f.newNode(from.seed(c)); !st.Ok() {
			return st
		}
	}
	st = f.renameTo(source, place{parent: to, name: newName}, in.Flags)
	if source.leave != nil {
		source.leave.release() // which ends it if it got no name
	}
	return st
}

// renameTo charges for the new name, and ends the node that lost it.
func (f *fileSystem) renameTo(from, to place, flags uint32) fuse.Status {
	if err := f.sys.ChargeRecord(nameRecord(to.name)); err != nil {
		return errno(err)
	}
	victim, added, st := f.move(from, to, flags)
	if !added {
		f.sys.ReleaseRecord(nameRecord(to.name))
	}
	if victim != nil {
		victim.release()
	}
	return st
}

// move is rename under the lock. It returns the node that lost its name to the one that moved, if there was one, and
// whether a new entry was made.
func (f *fileSystem) move(from, to place, flags uint32) (victim *node, added bool, st fuse.Status) {
	f.tree.Lock()
	defer f.tree.Unlock()
	from.entry = from.parent.dir.find(from.name)
	to.entry = to.parent.dir.find(to.name)
	if st := f.checkMoveLocked(from, to, flags); !st.Ok() {
		return nil, false, st
	}
	switch {
	case to.entry == nil:
		n := from.entry.node
		f.moveLocked(from, to)
		n.addLinks(0)
		added = true
	case to.entry.node == from.entry.node: // two names of one file: nothing happens
		return nil, false, fuse.OK
	case flags&unix.RENAME_EXCHANGE != 0:
		f.exchangeLocked(from.entry, to.entry)
	default:
		victim = to.entry.node
		f.replaceLocked(from, to)
	}
	from.parent.changed()
	if to.parent != from.parent {
		to.parent.changed()
	}
	return victim, added, fuse.OK
}

// checkMoveLocked is what rename(2) refuses.
// +checklocks:f.tree
func (f *fileSystem) checkMoveLocked(from, to place, flags uint32) fuse.Status {
	exchange := flags&unix.RENAME_EXCHANGE != 0
	switch {
	case from.entry == nil || to.parent.dir.removed || exchange && to.entry == nil:
		return fuse.ENOENT
	case flags&unix.RENAME_NOREPLACE != 0 && to.entry != nil:
		return eexist
	case f.insideLocked(to.parent, from.entry.node):
		return fuse.EINVAL
	case to.entry != nil && f.insideLocked(from.parent, to.entry.node):
		if exchange {
			return fuse.EINVAL
		}
		return enotempty
	case exchange || to.entry == nil || to.entry.node == from.entry.node:
		return fuse.OK
	case from.entry.node.isDir() && !to.entry.node.isDir():
		return fuse.ENOTDIR
	case !from.entry.node.isDir() && to.entry.node.isDir():
		return fuse.EISDIR
	case to.entry.node.isDir() && to.entry.node.dir.len() > 0:
		return enotempty
	}
	return fuse.OK
}

// insideLocked reports whether a directory is a node or lies below it.
// +checklocks:f.tree
func (f *fileSystem) insideLocked(dir, n *node) bool {
	for d := dir; d != n; {
		if d.entry == nil {
			return false
		}
		d = d.entry.parent
	}
	return true
}

// moveLocked gives a node its name in another place.
// +checklocks:f.tree
func (f *fileSystem) moveLocked(from, to place) {
	n := from.entry.node
	f.vacateLocked(from)
	f.setEntryLocked(n, to.parent.dir.add(to.name, to.parent, n))
	f.reparentedLocked(n, from.parent, to.parent)
}

// vacateLocked takes a name from the node that moves away. The entry of a whiteout stays where it is.
// +checklocks:f.tree
func (f *fileSystem) vacateLocked(from place) {
	if from.leave != nil {
		from.entry.node = from.leave
		f.setEntryLocked(from.leave, from.entry)
		from.leave.addLinks(1)
		return
	}
	f.sys.ReleaseRecord(from.entry.recordBytes())
	from.parent.dir.remove(from.entry)
}

// replaceLocked puts a node in the place of another one. The entry stays where READDIR knows it.
// +checklocks:f.tree
func (f *fileSystem) replaceLocked(from, to place) {
	n, victim := from.entry.node, to.entry.node
	f.unsetEntryLocked(victim, to.entry)
	f.unlinkedLocked(to.parent, victim)
	f.vacateLocked(from)
	to.entry.node = n
	f.setEntryLocked(n, to.entry)
	f.reparentedLocked(n, from.parent, to.parent)
	n.addLinks(0)
}

// exchangeLocked swaps the nodes of two entries.
// +checklocks:f.tree
func (f *fileSystem) exchangeLocked(a, b *entry) {
	a.node, b.node = b.node, a.node
	f.setEntryLocked(a.node, a)
	f.setEntryLocked(b.node, b)
	f.reparentedLocked(a.node, b.parent, a.parent)
	f.reparentedLocked(b.node, a.parent, b.parent)
	a.node.addLinks(0)
	b.node.addLinks(0)
}

// reparentedLocked moves the link that a subdirectory's .. is.
// +checklocks:f.tree
func (f *fileSystem) reparentedLocked(n, from, to *node) {
	if n.isDir() && from != to {
		from.addLinks(-1)
		to.addLinks(1)
	}
}

// abandonNames gives back what the names in a directory are charged, at the end of the mount.
func (f *fileSystem) abandonNames(dir *node) {
	f.tree.Lock()
	defer f.tree.Unlock()
	for _, e := range dir.dir.order {
		if e.node != nil {
			f.sys.ReleaseRecord(e.recordBytes())
		}
	}
}
