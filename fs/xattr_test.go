package fs

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

func (k *kernel) setxattr(id uint64, name string, value []byte, flags uint32) fuse.Status {
	return k.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: header(id), Flags: flags}, name, value)
}

func (k *kernel) getxattr(id uint64, name string) ([]byte, fuse.Status) {
	in := header(id)
	buf := make([]byte, maxXattrValue)
	n, st := k.GetXAttr(nil, &in, name, buf)
	return buf[:n], st
}

func (k *kernel) listxattr(id uint64, uid uint32) []string {
	in := header(id)
	in.Uid = uid
	buf := make([]byte, 64<<10)
	n, st := k.ListXAttr(nil, &in, buf)
	k.must(st, "listxattr")
	names := strings.Split(string(buf[:n]), "\x00")
	slices.Sort(names)
	return names[1:] // behind the last NUL there is nothing
}

func TestXattrs(t *testing.T) {
	k := newKernel(t)
	id := k.touch(root, "f")
	for _, c := range []struct {
		name  string
		size  int
		flags uint32
		want  fuse.Status
	}{
		{"user.a", 3, unix.XATTR_REPLACE, fuse.ENODATA},
		{"user.a", 3, unix.XATTR_CREATE, fuse.OK},
		{"user.a", 3, unix.XATTR_CREATE, eexist},
		{"user.a", 5, unix.XATTR_REPLACE, fuse.OK},
		{"user.empty", 0, 0, fuse.OK},
		{"user.large", maxXattrValue, 0, fuse.OK},
		{"user.larger", maxXattrValue + 1, 0, e2big},
		{"trusted.t", 1, 0, fuse.OK},
		{"security.s", 1, 0, fuse.OK},
		{"system.other", 1, 0, fuse.ENOTSUP},
		{"other.x", 1, 0, fuse.ENOTSUP},
		{"user.", 1, 0, fuse.EINVAL},
		{"user." + strings.Repeat("x", 251), 1, 0, fuse.ERANGE},
	} {
		value := bytes.Repeat([]byte{'v'}, c.size)
		k.want(k.setxattr(id, c.name, value, c.flags), c.want, "setxattr %.20s of %d bytes, flags %d", c.name, c.size, c.flags)
		if len(value) > 0 {
			value[0] = 'w' // the request's buffer is used again
		}
		if !c.want.Ok() {
			continue
		}
		if got, st := k.getxattr(id, c.name); !st.Ok() || len(got) != c.size || bytes.ContainsRune(got, 'w') {
			t.Errorf("%s: %d bytes, %v; want %d", c.name, len(got), st, c.size)
		}
	}
	in := header(id)
	for _, c := range []struct{ room, n int }{{0, 5}, {4, 5}} {
		if n, st := k.GetXAttr(nil, &in, "user.a", make([]byte, c.room)); st != fuse.ERANGE || int(n) != c.n {
			t.Errorf("getxattr into %d bytes: %d, %v", c.room, n, st)
		}
	}
	if n, st := k.ListXAttr(nil, &in, nil); st != fuse.ERANGE || n == 0 {
		t.Errorf("listxattr into nothing: %d, %v", n, st)
	}
	k.want(second(k.getxattr(id, "user.none")), fuse.ENODATA, "getxattr of nothing")
	k.want(second(k.getxattr(id, "user")), fuse.ENOTSUP, "getxattr of a name space alone")
	all := []string{"security.s", "trusted.t", "user.a", "user.empty", "user.large"}
	if got := k.listxattr(id, 0); !slices.Equal(got, all) {
		t.Errorf("root sees %q", got)
	}
	if got := k.listxattr(id, 1000); slices.Contains(got, "trusted.t") || len(got) != len(all)-1 {
		t.Errorf("another user sees %q", got)
	}
	for _, name := range all {
		k.want(k.RemoveXAttr(nil, &in, name), fuse.OK, "removexattr %s", name)
		k.want(k.RemoveXAttr(nil, &in, name), fuse.ENODATA, "removexattr %s again", name)
	}
}

// TestXattrBounds: a node may have more names than listxattr(2) can tell of, names and values are bounded by the budget,
// and all is charged and given back.
func TestXattrBounds(t *testing.T) {
	k := newKernel(t)
	id := k.touch(root, "f")
	before := k.sys.Snapshot().RecordBytes
	const n = 301
	for i := range n - 1 {
		k.must(k.setxattr(id, fmt.Sprintf("user.%0240d", i), nil, 0), "setxattr")
	}
	in := header(id)
	size, st := k.ListXAttr(nil, &in, make([]byte, 64<<10))
	if st != fuse.ERANGE || size != 300*246 {
		t.Errorf("listxattr of more than 64 KiB: %d, %v", size, st)
	}
	if k.sys.Snapshot().RecordBytes < before+uint64(n-1)*240 {
		t.Error("names are not charged")
	}
	for i := range n - 1 {
		k.must(k.RemoveXAttr(nil, &in, fmt.Sprintf("user.%0240d", i)), "removexattr")
	}
	if got := k.sys.Snapshot().RecordBytes; got != before {
		t.Errorf("%d bytes of records, before there were %d", got, before)
	}
	value := make([]byte, maxXattrValue)
	for i, st := 0, fuse.OK; st.Ok(); i++ {
		if i > 1000 {
			t.Fatal("64 MiB of values fit into 32 MiB of memory")
		}
		st = k.setxattr(k.touch(root, fmt.Sprint(i)), "user.x", value, 0)
	}
}

// entries builds the value of an ACL attribute: tag, perm and id of each.
func aclValue(entries ...[3]uint32) []byte {
	var l acl
	for _, e := range entries {
		l = append(l, aclEntry{tag: aclTag(e[0]), perm: uint16(e[1]), id: e[2]})
	}
	return l.encode()
}

const noID = ^uint32(0)

func TestACLValid(t *testing.T) {
	u, g, o := [3]uint32{1, 7, noID}, [3]uint32{4, 5, noID}, [3]uint32{0x20, 4, noID}
	user, group, mask := [3]uint32{2, 6, 1000}, [3]uint32{8, 6, 1000}, [3]uint32{0x10, 7, noID}
	for _, c := range []struct {
		what  string
		value []byte
		valid bool
	}{
		{"minimal", aclValue(u, g, o), true},
		{"with a mask", aclValue(u, g, mask, o), true},
		{"with all", aclValue(u, user, user, g, group, mask, o), true},
		{"a user without a mask", aclValue(u, user, g, o), false},
		{"out of order", aclValue(g, u, o), false},
		{"a user behind the group", aclValue(u, g, user, mask, o), false},
		{"without others", aclValue(u, g), false},
		{"something behind others", aclValue(u, g, o, mask), false},
		{"an unknown tag", aclValue(u, g, [3]uint32{0x40, 1, 0}, o), false},
		{"a permission beyond rwx", aclValue([3]uint32{1, 8, noID}, g, o), false},
		{"empty", aclValue(), false},
		{"no header", nil, false},
		{"cut off", aclValue(u, g, o)[:27], false},
		{"another version", append([]byte{1}, aclValue(u, g, o)[1:]...), false},
	} {
		list, ok := parseACL(c.value)
		if ok != c.valid {
			t.Errorf("%s: valid %v", c.what, ok)
		}
		if ok && !bytes.Equal(list.encode(), c.value) {
			t.Errorf("%s: does not survive decoding", c.what)
		}
	}
}

// FuzzACL: no value of an attribute does harm, and what is valid is kept as it is.
func FuzzACL(f *testing.F) {
	f.Add(aclValue([3]uint32{1, 7, noID}, [3]uint32{4, 5, noID}, [3]uint32{0x20, 4, noID}))
	f.Add([]byte{2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, value []byte) {
		list, ok := parseACL(value)
		if !ok {
			return
		}
		if !bytes.Equal(list.encode(), value) {
			t.Errorf("%x became %x", value, list.encode())
		}
		list.restrict(0o750)
		if perm := list.perm(); perm&^0o750 != 0 || !list.valid() {
			t.Errorf("%x restricted to 750 allows %o", value, perm)
		}
		list.setPerm(0o641)
		if perm := list.perm(); perm != 0o641 {
			t.Errorf("%x after chmod 641 allows %o", value, perm)
		}
	})
}

// TestACLMode: mode and access ACL stay in step.
func TestACLMode(t *testing.T) {
	k := newKernel(t)
	id := k.touch(root, "f")
	k.chmod(id, 0o2644)
	full := aclValue([3]uint32{1, 6, noID}, [3]uint32{2, 7, 1000}, [3]uint32{4, 4, noID}, [3]uint32{0x10, 5, noID}, [3]uint32{0x20, 0, noID})
	k.must(k.setxattr(id, aclAccess, full, 0), "setfacl")
	if mode := k.attr(id).Mode & permMask; mode != 0o2650 {
		t.Errorf("mode %o after setfacl, want 2650: the group bits are the mask", mode)
	}
	k.chmod(id, 0o2604)
	want := aclValue([3]uint32{1, 6, noID}, [3]uint32{2, 7, 1000}, [3]uint32{4, 4, noID}, [3]uint32{0x10, 0, noID}, [3]uint32{0x20, 4, noID})
	if got, _ := k.getxattr(id, aclAccess); !bytes.Equal(got, want) {
		t.Errorf("chmod left the ACL at %x, want %x", got, want)
	}
	minimal := aclValue([3]uint32{1, 7, noID}, [3]uint32{4, 5, noID}, [3]uint32{0x20, 1, noID})
	in := fuse.SetXAttrIn{InHeader: header(id), SetXAttrFlags: fuse.SETXATTR_ACL_KILL_SGID}
	k.must(k.SetXAttr(nil, &in, aclAccess, minimal), "setfacl")
	if mode := k.attr(id).Mode & permMask; mode != 0o751 {
		t.Errorf("mode %o after a minimal ACL by one without the right to setgid, want 751", mode)
	}
	k.want(second(k.getxattr(id, aclAccess)), fuse.ENODATA, "an ACL that is no more than the mode")
	k.want(k.setxattr(id, aclAccess, full[:11], 0), fuse.EINVAL, "a broken ACL")
	k.want(k.setxattr(id, aclDefault, full, 0), fuse.EACCES, "a default ACL of a file")
}

// TestACLInherited: a default ACL takes the place of the umask.
func TestACLInherited(t *testing.T) {
	k := newKernel(t)
	dir := k.mustMkdir(root, "d")
	dflt := aclValue([3]uint32{1, 7, noID}, [3]uint32{2, 7, 1000}, [3]uint32{4, 5, noID}, [3]uint32{0x10, 7, noID}, [3]uint32{0x20, 5, noID})
	k.must(k.setxattr(dir, aclDefault, dflt, 0), "setfacl -d")
	var file fuse.CreateOut
	k.must(k.Create(nil, &fuse.CreateIn{InHeader: header(dir), Mode: 0o640, Umask: 0o077}, "f", &file), "create")
	k.release(file.NodeId, file.Fh)
	var sub, link fuse.EntryOut
	k.must(k.Mkdir(nil, &fuse.MkdirIn{InHeader: header(dir), Mode: 0o777, Umask: 0o077}, "s", &sub), "mkdir")
	in := header(dir)
	k.must(k.Symlink(nil, &in, "x", "l", &link), "symlink")
	restricted := aclValue([3]uint32{1, 6, noID}, [3]uint32{2, 7, 1000}, [3]uint32{4, 5, noID}, [3]uint32{0x10, 4, noID}, [3]uint32{0x20, 0, noID})
	for _, c := range []struct {
		what         string
		attr         *fuse.Attr
		id           uint64
		mode         uint32
		access, dflt []byte
	}{
		{"file", &file.Attr, file.NodeId, syscall.S_IFREG | 0o640, restricted, nil},
		{"directory", &sub.Attr, sub.NodeId, syscall.S_IFDIR | 0o775, dflt, dflt},
		{"symlink", &link.Attr, link.NodeId, syscall.S_IFLNK | 0o777, nil, nil},
	} {
		access, _ := k.getxattr(c.id, aclAccess)
		inherited, _ := k.getxattr(c.id, aclDefault)
		if c.attr.Mode != c.mode || !bytes.Equal(access, c.access) || !bytes.Equal(inherited, c.dflt) {
			t.Errorf("%s: mode %o, access %x, default %x; want %o, %x, %x", c.what, c.attr.Mode, access, inherited, c.mode, c.access, c.dflt)
		}
	}
	k.must(k.setxattr(dir, aclDefault, aclValue([3]uint32{1, 7, noID}, [3]uint32{4, 4, noID}, [3]uint32{0x20, 0, noID}), 0), "setfacl -d")
	k.must(k.Create(nil, &fuse.CreateIn{InHeader: header(dir), Mode: 0o666, Umask: 0o077}, "g", &file), "create")
	k.release(file.NodeId, file.Fh)
	if _, st := k.getxattr(file.NodeId, aclAccess); file.Attr.Mode != syscall.S_IFREG|0o640 || st != fuse.ENODATA {
		t.Errorf("under a minimal default ACL: mode %o, access ACL %v; want 640, none", file.Attr.Mode, st)
	}
}
