package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// readDir fills a READDIR reply with the names behind the cookie in.Offset, or a READDIRPLUS reply, in which every name
// but . and .. counts as looked up. Of the control tree READDIRPLUS says only that it is there: nothing of it is cached.
func (f *fileSystem) readDir(in *fuse.ReadIn, out *fuse.DirEntryList, plus bool) fuse.Status {
	dir, st := f.directory(in.NodeId)
	if !st.Ok() {
		return st
	}
	if in.Flags&syscall.O_NOATIME == 0 {
		dir.accessed()
	}
	f.tree.RLock()
	defer f.tree.RUnlock()
	if f.addSpecialLocked(dir, in.Offset, out, plus) {
		f.addEntriesLocked(dir.dir.after(in.Offset), out, plus)
	}
	return fuse.OK
}

// addSpecialLocked adds the entries that are in no list. False if the reply is full.
// +checklocksread:f.tree
func (f *fileSystem) addSpecialLocked(dir *node, after uint64, out *fuse.DirEntryList, plus bool) bool {
	up := dir.id
	if e := dir.entry; e != nil {
		up = e.parent.id
	}
	special := []fuse.DirEntry{
		{Name: ".", Ino: dir.id, Mode: syscall.S_IFDIR, Off: cookieDot},
		{Name: "..", Ino: up, Mode: syscall.S_IFDIR, Off: cookieDotDot},
	}
	if dir == f.root && f.opts.ProcVisible {
		special = append(special, fuse.DirEntry{Name: f.opts.ProcName, Ino: controlBit, Mode: syscall.S_IFDIR, Off: cookieProc})
	}
	for _, e := range special {
		if e.Off > after && !addEntry(out, e, plus, nil) {
			return false
		}
	}
	return true
}

// +checklocksread:f.tree
func (f *fileSystem) addEntriesLocked(entries []*entry, out *fuse.DirEntryList, plus bool) {
	for _, e := range entries {
		if e.node == nil {
			continue
		}
		d := fuse.DirEntry{Name: e.name, Ino: e.node.id, Mode: e.node.kind, Off: e.cookie}
		if !addEntry(out, d, plus, e.node) {
			return
		}
	}
}

// addEntry adds one entry, with the attributes of n if the reply has them and n is not nil. False if the reply is full.
func addEntry(out *fuse.DirEntryList, e fuse.DirEntry, plus bool, n *node) bool {
	if !plus {
		return out.AddDirEntry(e)
	}
	attr := out.AddDirLookupEntry(e)
	if attr == nil {
		return false
	}
	if n != nil {
		n.lookedUp(attr)
	}
	return true
}
