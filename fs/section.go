package fs

import (
	"fmt"
	"math"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Named sections as files. .proc/sections is a directory of real nodes: programs make regular files in it, set their size
// and map them, and simulated processes find them by name with CreateFileMapping and OpenFileMapping; a section that a
// process makes with a name is a file there until its last handle is closed. Both ways it is one object, the node, with
// one segment. It is no part of the tree that starts at the root: nothing can be moved or linked between the two, but for the
// second name that a file of the mount has here while a named section is over it.
//
// Everybody may make files there and remove his own, as in /dev/shm. A file that a process makes is its owner's alone
// until he changes its mode.

// sectionsName is the name of the directory in .proc.
const sectionsName = "sections"

// sectionsPerm are the permissions of the directory: anybody's, sticky.
const sectionsPerm = syscall.S_ISVTX | 0777

// makeSections makes the directory, and the directory .proc that it is in as far as its path in .proc/files goes. They are
// part of the mount and do not count as inodes.
func (f *fileSystem) makeSections() error {
	most := f.most.Swap(math.MaxUint64)
	defer f.most.Store(most)
	for _, d := range []struct {
		to   **node
		perm uint32
	}{{&f.hidden, 0555}, {&f.sections, sectionsPerm}} {
		n, st := f.newNode(seed{mode: syscall.S_IFDIR | d.perm, uid: f.opts.UID, gid: f.opts.GID})
		if !st.Ok() {
			return fmt.Errorf("no memory for .proc/sections: %w", syscall.Errno(st))
		}
		n.mu.Lock()
		n.refs.lookups = 1 // they stay
		n.mu.Unlock()
		f.inodes.Add(^uint64(0))
		*d.to = n
	}
	var out fuse.EntryOut
	if st := f.enter(f.hidden, sectionsName, f.sections, &out); !st.Ok() {
		return fmt.Errorf("no memory for .proc/sections: %w", syscall.Errno(st))
	}
	return nil
}

// sectionOnly says what a directory of sections has nothing to do with: whatever is no regular file.
func (f *fileSystem) sectionOnly(parent *node, mode uint32) fuse.Status {
	if parent == f.hidden || parent == f.sections && mode&syscall.S_IFMT != syscall.S_IFREG {
		return fuse.EPERM
	}
	return fuse.OK
}

// apart says that a name cannot be moved or linked from one directory to the other: sections stay where they are, under
// the name that they are known by.
func (f *fileSystem) apart(from, to *node) fuse.Status {
	switch inside := from == f.sections; {
	case inside != (to == f.sections):
		return fuse.Status(syscall.EXDEV)
	case inside:
		return fuse.EPERM
	}
	return fuse.OK
}

// A section that a process makes with a name over a file of the mount gives the file a second name: a hard link here, which is
// not the name that the file is known by.

// showSection gives a file of the mount a name among the sections. EEXIST.
func (f *fileSystem) showSection(name string, n *node) fuse.Status {
	if err := f.sys.ChargeRecord(nameRecord(name)); err != nil {
		return errno(err)
	}
	st := f.linkSection(name, n)
	if !st.Ok() {
		f.sys.ReleaseRecord(nameRecord(name))
		return st
	}
	f.nameChanged(f.sections, name)
	n.forgetAttributes()
	return fuse.OK
}

func (f *fileSystem) linkSection(name string, n *node) fuse.Status {
	f.tree.Lock()
	defer f.tree.Unlock()
	if f.sections.dir.find(name) != nil {
		return eexist
	}
	f.sections.dir.add(name, f.sections, n)
	n.addLinks(1)
	f.sections.changed()
	return fuse.OK
}

// hideSection takes a name away that is still the file's.
func (f *fileSystem) hideSection(name string, n *node) {
	victim, st := f.removeOnly(f.sections, name, n)
	if !st.Ok() {
		return
	}
	victim.release()
	f.nameChanged(f.sections, name)
	n.forgetAttributes()
}

// ofSection says that the node is a section's own file and no file of the mount that has a name among the sections.
func (n *node) ofSection() bool { return n.directory() == n.fs.sections }

// The name of a section's file is the section's, Local\ cut off, except that what a file cannot be called is spelled with %:
// a slash is %2F, and names that are nothing but dots have %2E for the first one.

// sectionFile is the name of a section's file. False if there cannot be one.
func sectionFile(name string) (string, bool) {
	name = strings.ReplaceAll(name, "/", "%2F")
	if name == "." || name == ".." {
		name = "%2E" + name[1:]
	}
	return name, name != "" && len(name) <= maxNameLen && !strings.ContainsRune(name, 0)
}

// sectionName is the name of the section of a file.
func sectionName(file string) string {
	switch file {
	case "%2E", "%2E.":
		return "." + file[3:]
	}
	return strings.ReplaceAll(file, "%2F", "/")
}
