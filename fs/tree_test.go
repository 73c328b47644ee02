package fs

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// checkTree proves what must hold of names and nodes at any moment.
func checkTree(t interface{ Errorf(string, ...any) }, k *kernel) {
	k.tree.Lock()
	defer k.tree.Unlock()
	links := map[*node]uint32{k.root: 2, k.hidden: 2}
	records := 0
	k.nodes.each(func(n *node) {
		n.mu.Lock()
		records += n.records
		n.mu.Unlock()
		if n.isDir() {
			records += checkDirectory(t, n, links)
		}
	})
	used := uint64(0) // the two of makeSections do not count
	k.nodes.each(func(n *node) {
		if n != k.hidden && n != k.sections {
			used++
		}
		if got := n.attr().Nlink; got != links[n] {
			t.Errorf("node %d has %d links, its names make %d", n.id, got, links[n])
		}
		switch {
		case n.entry != nil && n.entry.node != n:
			t.Errorf("node %d is known by a name of another", n.id)
		case n.isDir() && n != k.root && n != k.hidden && (n.entry == nil) != n.dir.removed:
			t.Errorf("directory %d: removed is %v, named %v", n.id, n.dir.removed, n.entry != nil)
		}
	})
	if got, _ := k.inodeCounts(); got != used {
		t.Errorf("%d inodes are counted, %d are there", got, used)
	}
	// The manager's own records are on top, so that this is a lower bound; leaks show when the mount ends.
	if got := k.sys.Snapshot().RecordBytes; got < uint64(records) {
		t.Errorf("%d bytes of records are charged, nodes and names take %d", got, records)
	}
}

// checkDirectory counts the links that the names in a directory make, and returns what they are charged.
func checkDirectory(t interface{ Errorf(string, ...any) }, n *node, links map[*node]uint32) (records int) {
	d := n.dir
	dead, last := 0, uint64(0)
	for _, e := range d.order {
		if e.cookie <= last || e.cookie > d.last {
			t.Errorf("cookie %d after %d", e.cookie, last)
		}
		last = e.cookie
		if e.node == nil {
			dead++
			continue
		}
		records += e.recordBytes()
		if e.parent != n || d.find(e.name) != e {
			t.Errorf("%q in node %d is not found, or has another parent", e.name, n.id)
		}
		links[e.node]++
		if e.node.isDir() {
			links[e.node]++
			links[n]++
		}
	}
	if dead != d.dead || d.index != nil && len(d.index) != d.len() {
		t.Errorf("node %d: %d empty entries counted, %d there; %d of %d names in the index", n.id, d.dead, dead, len(d.index), d.len())
	}
	return records
}

// TestNamesAsNative does the same to the file system and to a directory of the host, at random: the answers must be the
// same, and the trees that come of it.
func TestNamesAsNative(t *testing.T) {
	dirs := []string{".", "a", "b", "a/a", "a/b", "b/a"}
	names := []string{"a", "b", "c", "d"}
	rapid.Check(t, func(t *rapid.T) {
		native, err := os.MkdirTemp("", "native")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(native)
		k := newRapidKernel(t)
		defer k.end()
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			dir, other := rapid.SampledFrom(dirs).Draw(t, "dir"), rapid.SampledFrom(dirs).Draw(t, "other")
			name, next := rapid.SampledFrom(names).Draw(t, "name"), rapid.SampledFrom(names).Draw(t, "next")
			path, nextPath := filepath.Join(native, dir, name), filepath.Join(native, other, next)
			op := rapid.SampledFrom(namespaceOps).Draw(t, "op")
			got := op.ours(k, dir, name, other, next)
			want := fuse.OK
			if errno, ok := op.native(path, nextPath).(syscall.Errno); ok {
				want = fuse.Status(errno)
			}
			if got != want {
				t.Fatalf("%s %s/%s %s/%s: %v, natively %v", op.name, dir, name, other, next, got, want)
			}
			checkTree(t, k)
		}
		if ours, theirs := k.list(root, ""), listNative(native, ""); !slices.Equal(ours, theirs) {
			t.Fatalf("the tree is\n%v\nnatively\n%v", ours, theirs)
		}
	})
}

// namespaceOp is one operation on names, ours and the host's. Ours is given directories as paths, to be walked in the order
// in which the host walks them.
type namespaceOp struct {
	name   string
	ours   func(k *kernel, dir, name, other, next string) fuse.Status
	native func(path, next string) error
}

var namespaceOps = []namespaceOp{
	renameOp("rename", 0),
	renameOp("rename noreplace", unix.RENAME_NOREPLACE),
	renameOp("rename exchange", unix.RENAME_EXCHANGE),
	{"mkdir", onOne(func(k *kernel, dir uint64, name string) fuse.Status {
		id, st := k.mkdir(dir, name)
		k.Forget(id, 1)
		return st
	}), func(path, _ string) error { return unix.Mkdir(path, 0o755) }},
	{"create", onOne(func(k *kernel, dir uint64, name string) fuse.Status {
		id, fh, st := k.create(dir, name)
		if st.Ok() {
			k.release(id, fh)
			k.Forget(id, 1)
		}
		return st
	}), func(path, _ string) error {
		fd, err := unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o644)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}},
	{"unlink", onOne((*kernel).unlink), func(path, _ string) error { return unix.Unlink(path) }},
	{"rmdir", onOne((*kernel).rmdir), func(path, _ string) error { return unix.Rmdir(path) }},
	{"link", linkPaths, unix.Link},
}

func onOne(do func(k *kernel, dir uint64, name string) fuse.Status) func(k *kernel, dir, name, _, _ string) fuse.Status {
	return func(k *kernel, dir, name, _, _ string) fuse.Status {
		return k.at(dir, func(d uint64) fuse.Status { return do(k, d, name) })
	}
}

func renameOp(name string, flags uint32) namespaceOp {
	return namespaceOp{name, func(k *kernel, dir, name, other, next string) fuse.Status {
		return k.at(dir, func(d uint64) fuse.Status {
			return k.at(other, func(o uint64) fuse.Status { return k.rename(d, name, o, next, flags) })
		})
	}, func(path, next string) error {
		return unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, next, uint(flags))
	}}
}

func linkPaths(k *kernel, dir, name, other, next string) fuse.Status {
	return k.at(dir, func(d uint64) fuse.Status {
		id, st := k.lookup(d, name)
		if id == 0 {
			return cmp.Or(st, fuse.ENOENT)
		}
		defer k.Forget(id, 1)
		return k.at(other, func(o uint64) fuse.Status {
			if k.exists(o, next) { // the host finds that first
				return eexist
			}
			return k.link(id, o, next)
		})
	})
}

// newRapidKernel is newKernel for a property: the property ends it.
func newRapidKernel(t *rapid.T) *kernel {
	var tb testing.TB = discard{TB: nil, t: t}
	return newKernel(tb)
}

// discard makes a rapid.T a testing.TB, without Cleanup.
type discard struct {
	testing.TB
	t *rapid.T
}

func (d discard) Helper()                      {}
func (d discard) Cleanup(func())               {}
func (d discard) Error(args ...any)            { d.t.Error(args...) }
func (d discard) Errorf(f string, args ...any) { d.t.Errorf(f, args...) }
func (d discard) Fatal(args ...any)            { d.t.Fatal(args...) }
func (d discard) Fatalf(f string, args ...any) { d.t.Fatalf(f, args...) }
func (d discard) Logf(f string, args ...any)   { d.t.Logf(f, args...) }

// at walks to a directory as the host would and does something there.
func (k *kernel) at(path string, do func(id uint64) fuse.Status) fuse.Status {
	id, st := k.walk(path)
	if !st.Ok() {
		return st
	}
	defer k.Forget(id, 1)
	return do(id)
}

// walk looks up a path; the last step is left to be forgotten.
func (k *kernel) walk(path string) (uint64, fuse.Status) {
	id := uint64(root)
	for name := range strings.SplitSeq(path, "/") {
		if name == "." {
			continue
		}
		next, st := k.lookup(id, name)
		k.Forget(id, 1)
		if next == 0 {
			return 0, cmp.Or(st, fuse.ENOENT)
		}
		id = next
		if !k.nodes.get(id).isDir() {
			k.Forget(id, 1)
			return 0, fuse.ENOTDIR
		}
	}
	return id, fuse.OK
}

// list is the paths below a directory, sorted, with types and link counts of files.
func (k *kernel) list(id uint64, prefix string) (paths []string) {
	n := k.nodes.get(id)
	for _, name := range n.names() {
		child := n.child(name)
		path := prefix + "/" + name
		a := child.attr()
		if got := child.path(); child.isDir() && got != path {
			k.t.Errorf("%s calls itself %q", path, got)
		}
		paths = append(paths, fmt.Sprintf("%s %o %d", path, a.Mode&syscall.S_IFMT, fileLinks(child.isDir(), uint64(a.Nlink))))
		if child.isDir() {
			paths = append(paths, k.list(child.id, path)...)
		}
	}
	slices.Sort(paths)
	return paths
}

func listNative(dir, prefix string) (paths []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		var st unix.Stat_t
		path := prefix + "/" + e.Name()
		unix.Lstat(filepath.Join(dir, e.Name()), &st)
		paths = append(paths, fmt.Sprintf("%s %o %d", path, st.Mode&syscall.S_IFMT, fileLinks(e.IsDir(), uint64(st.Nlink))))
		if e.IsDir() {
			paths = append(paths, listNative(filepath.Join(dir, e.Name()), path)...)
		}
	}
	slices.Sort(paths)
	return paths
}

// fileLinks leaves out the links of directories, which some file systems do not count.
func fileLinks(dir bool, n uint64) uint64 {
	if dir {
		return 0
	}
	return n
}

// TestNames: names that cannot be.
func TestNames(t *testing.T) {
	k := newKernel(t)
	long := strings.Repeat("x", maxNameLen)
	file := k.touch(root, long)
	for _, c := range []struct {
		what string
		got  fuse.Status
		want fuse.Status
	}{
		{"create, too long", third(k.create(root, long+"x")), enametoolong},
		{"lookup, too long", second(k.lookup(root, long+"x")), enametoolong},
		{"rename, too long", k.rename(root, long, root, long+"x", 0), enametoolong},
		{"link, too long", k.link(file, root, long+"x"), enametoolong},
		{"create in a file", third(k.create(file, "x")), fuse.ENOTDIR},
		{"create in nothing", third(k.create(12345, "x")), fuse.ENOENT},
		{"link a directory", k.link(root, root, "x"), fuse.EPERM},
		{"whiteout and exchange", k.rename(root, long, root, "x", unix.RENAME_WHITEOUT|unix.RENAME_EXCHANGE), fuse.EINVAL},
		{"rename, two ways at once", k.rename(root, long, root, "x", unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE), fuse.EINVAL},
	} {
		k.want(c.got, c.want, "%s", c.what)
	}
	checkTree(t, k)
}

func second[A any](_ A, st fuse.Status) fuse.Status        { return st }
func third[A, B any](_ A, _ B, st fuse.Status) fuse.Status { return st }

// TestProcName: the control tree's name in the root is taken, and hidden.
func TestProcName(t *testing.T) {
	k := newKernel(t)
	file := k.touch(root, "f")
	for _, c := range []struct {
		what string
		got  fuse.Status
		want fuse.Status
	}{
		{"create", third(k.create(root, ".proc")), eexist},
		{"mkdir", second(k.mkdir(root, ".proc")), eexist},
		{"link", k.link(file, root, ".proc"), eexist},
		{"unlink", k.unlink(root, ".proc"), fuse.EPERM},
		{"rmdir", k.rmdir(root, ".proc"), fuse.EPERM},
		{"rename away", k.rename(root, ".proc", root, "x", 0), fuse.EPERM},
		{"rename over", k.rename(root, "f", root, ".proc", 0), fuse.EPERM},
	} {
		k.want(c.got, c.want, "%s", c.what)
	}
	id, st := k.lookup(root, ".proc")
	if k.must(st, "lookup"); !isControl(id) {
		t.Errorf(".proc is node %d", id)
	}
	k.want(second(k.mkdir(id, "x@z80")), fuse.EINVAL, "a process of no known kind")
	process, st := k.mkdir(id, "x@x86")
	k.must(st, "mkdir of a process")
	k.want(second(k.mkdir(id, "x@x86")), eexist, "the same again")
	k.want(second(k.mkdir(process, "y")), fuse.EPERM, "mkdir in a process")
	k.must(k.rmdir(id, "x@x86"), "rmdir of a process")
	k.want(k.rmdir(id, "x@x86"), fuse.ENOENT, "the same again")
	k.want(k.rmdir(id, "policy"), fuse.EPERM, "rmdir of another folder")
	k.must(second(k.mkdir(id, "left")), "mkdir of a process that the unmount ends")
	sub := k.mustMkdir(root, "d")
	k.touch(sub, ".proc")
	if names := k.readAll(root, 4096, false); !slices.Equal(names, []string{".", "..", "f", "d"}) {
		t.Errorf("the root lists %q", names)
	}
	visible := newKernel(t, func(o *Options) { o.ProcName, o.ProcVisible = "ctl", true })
	if names := visible.readAll(root, 4096, true); !slices.Equal(names, []string{".", "..", "ctl"}) {
		t.Errorf("a root that shows the control tree lists %q", names)
	}
}

// TestByID: the host asks for . and .. of an id when it opens a file handle of an inode it has dropped.
func TestByID(t *testing.T) {
	k := newKernel(t)
	dir := k.mustMkdir(root, "d")
	file := k.touch(dir, "f")
	k.Forget(file, 1)
	for _, c := range []struct {
		id   uint64
		name string
		want uint64
	}{{file, ".", file}, {dir, ".", dir}, {dir, "..", root}, {root, "..", root}} {
		var out fuse.EntryOut
		in := header(c.id)
		k.must(k.Lookup(nil, &in, c.name, &out), "lookup")
		if out.NodeId != c.want || out.Generation != 0 {
			t.Errorf("%q of node %d: node %d, generation %d; want %d, 0", c.name, c.id, out.NodeId, out.Generation, c.want)
		}
	}
	k.want(second(k.lookup(file, "..")), fuse.ENOTDIR, ".. of a file")
	k.want(second(k.lookup(99, ".")), fuse.ENOENT, ". of no node")
	k.want(k.unlink(dir, "f"), fuse.OK, "unlink")
	k.want(k.rmdir(root, "d"), fuse.OK, "rmdir")
	k.want(second(k.lookup(dir, "..")), fuse.ENOENT, ".. of a removed directory")
}

// TestRemovedDirectory: nothing is found or made in a directory that is removed but still open.
func TestRemovedDirectory(t *testing.T) {
	k := newKernel(t)
	dir := k.mustMkdir(root, "d")
	file := k.touch(root, "f")
	k.must(k.rmdir(root, "d"), "rmdir")
	k.want(second(k.lookup(dir, "x")), fuse.ENOENT, "lookup")
	k.want(third(k.create(dir, "x")), fuse.ENOENT, "create")
	k.want(second(k.mkdir(dir, "x")), fuse.ENOENT, "mkdir")
	k.want(k.link(file, dir, "x"), fuse.ENOENT, "link")
	k.want(k.rename(root, "f", dir, "x", 0), fuse.ENOENT, "rename")
	if names := k.readAll(dir, 4096, false); !slices.Equal(names, []string{".", ".."}) {
		t.Errorf("it lists %q", names)
	}
	checkTree(t, k)
}

// TestTmpfile: a file without a name lives by its handle, or gets a name.
func TestTmpfile(t *testing.T) {
	k := newKernel(t)
	make := func() (id, fh uint64) {
		var out fuse.CreateOut
		in := fuse.CreateIn{InHeader: header(root), Flags: syscall.O_RDWR, Mode: 0o600}
		k.must(k.Tmpfile(nil, &in, &out), "tmpfile")
		if out.Nlink != 0 || out.Attr.Mode != syscall.S_IFREG|0o600 {
			t.Errorf("tmpfile has %d links, mode %o", out.Nlink, out.Attr.Mode)
		}
		return out.NodeId, out.Fh
	}
	kept, fh := make()
	k.must(k.write(kept, fh, 0, []byte("kept"), 0), "write")
	k.must(k.link(kept, root, "kept"), "linkat")
	k.release(kept, fh)
	k.Forget(kept, 2)
	lost, fh := make()
	k.release(lost, fh)
	k.Forget(lost, 1)
	if id, _ := k.lookup(root, "kept"); id != kept || string(k.read(id, 0, 0, 10)) != "kept" {
		t.Error("a tmpfile that was linked is not there")
	}
	if k.nodes.get(lost) != nil {
		t.Error("a tmpfile that was closed is still there")
	}
	checkTree(t, k)
}

// TestLinkLimit: the link count does not wrap around.
func TestLinkLimit(t *testing.T) {
	k := newKernel(t)
	id := k.touch(root, "f")
	k.nodes.get(id).addLinks(maxLinks - 1)
	k.want(k.link(id, root, "g"), emlink, "one link too many")
	k.nodes.get(id).addLinks(1 - maxLinks)
	k.want(k.link(id, root, "g"), fuse.OK, "link")
}

// TestPath: a file is found by a name that it still has.
func TestPath(t *testing.T) {
	k := newKernel(t)
	dir := k.mustMkdir(root, "d")
	id := k.touch(dir, "f")
	n := k.nodes.get(id)
	k.must(k.link(id, root, "g"), "link")
	if got := n.path(); got != "/g" {
		t.Errorf("path %q, want the newest", got)
	}
	k.must(k.unlink(root, "g"), "unlink")
	if got := n.path(); got != "/d/f" {
		t.Errorf("path %q, want the one that is left", got)
	}
	k.must(k.rename(root, "d", root, "e", 0), "rename")
	if got := n.path(); got != "/e/f" {
		t.Errorf("path %q after its directory moved", got)
	}
	k.must(k.unlink(dir, "f"), "unlink")
	if got := n.path(); got != "" {
		t.Errorf("path %q of a file without a name", got)
	}
	if got := k.rootNode().path(); got != "/" {
		t.Errorf("path %q of the root", got)
	}
}

// readAll lists a directory as readdir(3) does, with replies of that size.
func (k *kernel) readAll(dir uint64, size int, plus bool) (names []string) {
	k.t.Helper()
	for offset := uint64(0); ; {
		entries := k.readSome(dir, offset, size, plus)
		if len(entries) == 0 {
			return names
		}
		for _, e := range entries {
			names = append(names, e.Name)
			offset = e.Off
		}
	}
}

// readSome is one READDIR or READDIRPLUS. What the latter looks up is forgotten again.
func (k *kernel) readSome(dir, offset uint64, size int, plus bool) []fuse.DirEntry {
	k.t.Helper()
	list := fuse.NewDirEntryList(make([]byte, size), offset)
	in := fuse.ReadIn{InHeader: header(dir), Offset: offset}
	if !plus {
		k.must(k.ReadDir(nil, &in, list), "readdir")
		entries, err := fuse.ParseDirEntries(list.Bytes())
		if err != nil {
			k.t.Fatal(err)
		}
		return entries
	}
	k.must(k.ReadDirPlus(nil, &in, list), "readdirplus")
	entries, attrs, err := fuse.ParseDirLookupEntries(list.Bytes())
	if err != nil {
		k.t.Fatal(err)
	}
	for i, a := range attrs {
		if a.NodeId != 0 && (a.NodeId != entries[i].Ino || a.Attr.Mode&syscall.S_IFMT != entries[i].Mode) {
			k.t.Errorf("%q: entry %d, %o; attributes %d, %o", entries[i].Name, entries[i].Ino, entries[i].Mode, a.NodeId, a.Attr.Mode)
		}
		k.Forget(a.NodeId, 1)
	}
	return entries
}

// TestReaddir: a name that is there all the time is listed once, whatever comes and goes meanwhile.
func TestReaddir(t *testing.T) {
	for _, plus := range []bool{false, true} {
		k := newKernel(t, func(o *Options) { o.Inodes = 1 << 20 })
		const n = 6000
		for i := range n {
			k.Forget(k.touch(root, fmt.Sprintf("%05d", i)), 1)
		}
		seen := map[string]int{}
		offset, last := uint64(0), uint64(0)
		for i := 0; ; i++ {
			entries := k.readSome(root, offset, 700, plus)
			if len(entries) == 0 {
				break
			}
			for _, e := range entries {
				seen[e.Name]++
				if e.Off <= last {
					t.Fatalf("cookie %d after %d", e.Off, last)
				}
				last, offset = e.Off, e.Off
			}
			// Odd names go, before and behind the reader, new ones come.
			for j := i * 20; j < min(i*20+20, n); j++ {
				if j%2 == 1 {
					k.must(k.unlink(root, fmt.Sprintf("%05d", j)), "unlink")
				}
			}
			if i < 300 {
				k.touch(root, fmt.Sprintf("new%d", i))
			}
		}
		for i := 0; i < n; i += 2 {
			if name := fmt.Sprintf("%05d", i); seen[name] != 1 {
				t.Fatalf("plus %v: %s was listed %d times", plus, name, seen[name])
			}
		}
		for name, times := range seen {
			if times != 1 {
				t.Fatalf("plus %v: %s was listed %d times", plus, name, times)
			}
		}
		// From a cookie of a name that is gone, the next one goes on.
		if e := k.readSome(root, last-1, 4096, plus); len(e) != 1 || e[0].Off != last {
			t.Errorf("plus %v: behind cookie %d there is %v, want %d", plus, last-1, e, last)
		}
		checkTree(t, k)
	}
}

// TestReaddirplusLooksUp: the entries of READDIRPLUS are lookups, those of READDIR are none.
func TestReaddirplusLooksUp(t *testing.T) {
	k := newKernel(t)
	dir := k.mustMkdir(root, "d")
	id := k.touch(dir, "f")
	k.Forget(id, 1)
	k.readSome(dir, 0, 4096, false)
	in := fuse.ReadIn{InHeader: header(dir)}
	// Room for . and .. and no more: f is not in the reply, so it is not looked up.
	k.must(k.ReadDirPlus(nil, &in, fuse.NewDirEntryList(make([]byte, 330), 0)), "readdirplus")
	k.must(k.ReadDirPlus(nil, &in, fuse.NewDirEntryList(make([]byte, 4096), 0)), "readdirplus")
	n := k.nodes.get(id)
	n.mu.Lock()
	lookups := n.refs.lookups
	n.mu.Unlock()
	if lookups != 1 {
		t.Errorf("%d lookups, want 1", lookups)
	}
	k.must(k.unlink(dir, "f"), "unlink")
	k.Forget(id, 1)
	if k.nodes.get(id) != nil {
		t.Error("the file is still there after its last lookup")
	}
}

// TestDirectoryShrinks: what is gone from a large directory does not stay in memory.
func TestDirectoryShrinks(t *testing.T) {
	k := newKernel(t)
	const n = 2000
	for i := range n {
		k.Forget(k.touch(root, fmt.Sprint(i)), 1)
	}
	for i := range n - 3 {
		k.must(k.unlink(root, fmt.Sprint(i)), "unlink")
	}
	if d := k.root.dir; len(d.order) > compactFrom || len(d.index) > compactFrom {
		t.Errorf("a directory of 3 names has %d entries, an index of %d", len(d.order), len(d.index))
	}
	checkTree(t, k)
}

// TestWhiteout: a name that moves away leaves the device 0:0 behind, which has a name and a node of its own.
func TestWhiteout(t *testing.T) {
	k := newKernel(t)
	dir := k.mustMkdir(root, "d")
	file := k.touch(root, "f")
	k.must(k.link(file, dir, "linked"), "link")
	used, _ := k.inodeCounts()
	for _, c := range []struct {
		what, to string
		nodes    uint64
	}{
		{"to a new name", "new", 1},
		{"over a name of another file", "victim", 0},
	} {
		before, _ := k.inodeCounts()
		if c.nodes == 0 {
			k.Forget(k.touch(dir, c.to), 1)
		}
		k.must(k.rename(root, "f", dir, c.to, unix.RENAME_WHITEOUT), c.what)
		if got := k.nodes.get(dir).child(c.to); got == nil || got.id != file {
			t.Errorf("%s: the file is not there", c.what)
		}
		left := k.root.child("f")
		if left == nil || left.attr().Mode != syscall.S_IFCHR || left.attr().Rdev != 0 || left.attr().Nlink != 1 {
			t.Fatalf("%s: no whiteout is left", c.what)
		}
		if now, _ := k.inodeCounts(); now-before != 1 {
			t.Errorf("%s: %d nodes more, want 1", c.what, now-before)
		}
		checkTree(t, k)
		k.must(k.rename(dir, c.to, root, "f", 0), "rename back over the whiteout")
		checkTree(t, k)
	}
	k.want(k.rename(root, "none", dir, "x", unix.RENAME_WHITEOUT), fuse.ENOENT, "rename of nothing")
	k.must(k.rename(root, "f", dir, "linked", unix.RENAME_WHITEOUT), "rename over a link of itself")
	if now, _ := k.inodeCounts(); now != used {
		t.Errorf("%d nodes are there, want %d", now, used)
	}
	checkTree(t, k)
}
