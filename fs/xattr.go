package fs

import (
	"maps"
	"slices"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	xattrCapability = "security.capability" // what a program may do beyond its user, void once the program changes

	maxXattrName  = 255
	maxXattrValue = 64 << 10
)

// xattrRecord is what an extended attribute is charged to the budget, in bytes.
func xattrRecord(name string, value []byte) int { return xattrBytes + len(name) + len(value) }

// checkXattr refuses names of namespaces that we do not keep.
func checkXattr(name string) fuse.Status {
	switch space, rest, dotted := strings.Cut(name, "."); {
	case len(name) > maxXattrName:
		return fuse.ERANGE
	case isACL(name):
		return fuse.OK
	case !dotted || space != "user" && space != "trusted" && space != "security":
		return fuse.ENOTSUP
	case rest == "":
		return fuse.EINVAL
	}
	return fuse.OK
}

// getXattr copies a value into dest. A dest of no length asks for the length.
func (n *node) getXattr(name string, dest []byte) (uint32, fuse.Status) {
	if st := checkXattr(name); !st.Ok() {
		return 0, st
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	value, ok := n.xattrs[name]
	if !ok {
		return 0, fuse.ENODATA
	}
	return fill(dest, value)
}

// listXattr copies the names into dest, each with a NUL behind it, in the order that tmpfs has. Only root sees the trusted
// ones. More names than the 64 KiB that listxattr(2) can tell of may be set; what is longer is E2BIG there.
func (n *node) listXattr(uid uint32, dest []byte) (uint32, fuse.Status) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var list []byte
	for _, name := range slices.SortedFunc(maps.Keys(n.xattrs), compareXattrs) {
		if uid == 0 || !strings.HasPrefix(name, "trusted.") {
			list = append(append(list, name...), 0)
		}
	}
	return fill(dest, list)
}

// compareXattrs orders names: ACLs first, the access ACL before the default one, then the others, the last by their bytes
// first.
func compareXattrs(a, b string) int {
	if x, y := isACL(a), isACL(b); x != y {
		if x {
			return -1
		}
		return 1
	} else if x {
		return strings.Compare(a, b)
	}
	return strings.Compare(b, a)
}

// fill copies an answer; ERANGE if it does not fit. The length is right in any case.
func fill(dest, answer []byte) (uint32, fuse.Status) {
	if len(answer) > len(dest) {
		return uint32(len(answer)), fuse.ERANGE
	}
	return uint32(copy(dest, answer)), fuse.OK
}

// xattrChange is a setxattr(2).
type xattrChange struct {
	name       string
	value      []byte
	flags      uint32 // XATTR_…
	access     acl    // an access ACL, which the mode follows, else nil
	killSetgid bool   // with the mode
}

// setXattr sets a value, a copy of data.
func (n *node) setXattr(in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	c := xattrChange{name: name, value: data, flags: in.Flags}
	switch st := checkXattr(name); {
	case !st.Ok():
		return st
	case len(data) > maxXattrValue:
		return e2big
	case !isACL(name):
		if part := rulePartOf(name); part != nil {
			_, err := n.setRule(part, c)
			return errno(err)
		}
		return n.changeXattr(c)
	}
	list, ok := parseACL(data)
	switch {
	case !ok:
		return fuse.EINVAL
	case name == aclDefault && !n.isDir():
		return fuse.EACCES
	case name == aclAccess:
		c.access, c.killSetgid = list, in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0
	}
	return n.changeXattr(c)
}

func (n *node) changeXattr(c xattrChange) fuse.Status {
	record := xattrRecord(c.name, c.value)
	if err := n.fs.sys.ChargeRecord(record); err != nil {
		return errno(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	stored, st := n.changeXattrLocked(c)
	if stored {
		n.records += record
	} else {
		n.fs.sys.ReleaseRecord(record)
	}
	return st
}

// changeXattrLocked reports whether it kept the value: an access ACL that is no more than a mode becomes the mode.
// +checklocks:n.mu
func (n *node) changeXattrLocked(c xattrChange) (stored bool, st fuse.Status) {
	if st := n.checkChangeLocked(c); !st.Ok() {
		return false, st
	}
	n.removeXattrLocked(c.name)
	n.meta.ctime = timeNow()
	if c.access != nil {
		n.meta.perm = n.meta.perm&^rwxAll | c.access.perm()
		if c.killSetgid {
			n.meta.perm &^= syscall.S_ISGID
		}
		if !c.access.extended() {
			return false, fuse.OK
		}
	}
	if n.xattrs == nil {
		n.xattrs = make(map[string][]byte)
	}
	n.xattrs[c.name] = append([]byte{}, c.value...)
	return true, fuse.OK
}

// +checklocks:n.mu
func (n *node) checkChangeLocked(c xattrChange) fuse.Status {
	_, exists := n.xattrs[c.name]
	switch {
	case n.refs.gone:
		return fuse.ENOENT
	case exists && c.flags&unix.XATTR_CREATE != 0:
		return eexist
	case !exists && c.flags&unix.XATTR_REPLACE != 0:
		return fuse.ENODATA
	}
	return fuse.OK
}

func (n *node) removeXattr(name string) fuse.Status {
	if st := checkXattr(name); !st.Ok() {
		return st
	}
	if st := n.dropXattr(name); !st.Ok() || rulePartOf(name) == nil {
		return st
	}
	_, err := n.followRules()
	return errno(err)
}

// dropXattr takes an attribute away; ENODATA if there is none.
func (n *node) dropXattr(name string) fuse.Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.removeXattrLocked(name) && !isACL(name) { // to have no ACL is what was asked for
		return fuse.ENODATA
	}
	n.meta.ctime = timeNow()
	return fuse.OK
}

// removeXattrLocked takes an attribute away with what it is charged. False if there is none.
// +checklocks:n.mu
func (n *node) removeXattrLocked(name string) bool {
	value, ok := n.xattrs[name]
	if !ok {
		return false
	}
	delete(n.xattrs, name)
	if len(n.xattrs) == 0 {
		n.xattrs = nil
	}
	record := xattrRecord(name, value)
	n.records -= record
	n.fs.sys.ReleaseRecord(record)
	return true
}
