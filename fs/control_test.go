package fs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"memfs/fs/ctl"
	"memfs/mm"
	"memfs/mm/store"
)

// controlTest is a file system without a kernel, and one who uses it as the kernel would: with permissions checked by
// mode (default_permissions), nothing cached, and every lookup forgotten in the end.
type controlTest struct {
	t      *testing.T
	fs     *fileSystem
	caller fuse.Caller
}

func newControlTest(t *testing.T) *controlTest {
	t.Helper()
	sys, err := mm.New(mm.Config{
		Memory:    mm.MinMemory,
		PageFiles: []mm.PageFileConfig{{Name: "memory", Store: store.NewMem(), Max: 4096}},
	})
	if err != nil {
		t.Fatal(err)
	}
	f, err := newFileSystem(Options{System: sys, Mode: 0755, UID: 100, GID: 100, Version: "test", MaxInflight: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.control.mu.Lock()
		if h := len(f.control.handles); h > 0 {
			t.Errorf("%d handles not released", h)
		}
		f.control.mu.Unlock()
		for _, err := range sys.Check() {
			t.Error(err)
		}
		f.shutdown()
		if err := sys.Close(); err != nil {
			t.Error(err)
		}
	})
	return &controlTest{t: t, fs: f}
}

// as is the same file system used by somebody else.
func (c *controlTest) as(uid, gid uint32) *controlTest {
	return &controlTest{t: c.t, fs: c.fs, caller: fuse.Caller{Owner: fuse.Owner{Uid: uid, Gid: gid}}}
}

func (c *controlTest) header(id uint64) fuse.InHeader {
	return fuse.InHeader{NodeId: id, Caller: c.caller}
}

// allowed is what the kernel does with default_permissions.
func (c *controlTest) allowed(attr *fuse.Attr, want uint32) bool {
	mode := attr.Mode
	switch {
	case c.caller.Uid == 0:
		return want&1 == 0 || mode&0111 != 0
	case c.caller.Uid == attr.Uid:
		mode >>= 6
	case c.caller.Gid == attr.Gid:
		mode >>= 3
	}
	return mode&want == want
}

// find resolves a path from the root of the mount. Every lookup it makes is forgotten in the end but the last one.
func (c *controlTest) find(name string) (out fuse.EntryOut, st fuse.Status) {
	out = fuse.EntryOut{NodeId: c.fs.root.id, Attr: c.fs.root.attr()}
	for _, part := range strings.FieldsFunc(name, func(r rune) bool { return r == '/' }) {
		dir := out
		h := c.header(dir.NodeId)
		switch {
		case !c.allowed(&dir.Attr, 1):
			st = fuse.EACCES
		default:
			out = fuse.EntryOut{}
			if st = c.fs.Lookup(nil, &h, part, &out); st.Ok() && out.NodeId == 0 {
				st = fuse.ENOENT
			}
		}
		c.forget(dir.NodeId)
		if !st.Ok() {
			return out, st
		}
	}
	return out, fuse.OK
}

func (c *controlTest) forget(id uint64) {
	if id != c.fs.root.id {
		c.fs.Forget(id, 1)
	}
}

// open opens a path; end gives the handle and the node back.
func (c *controlTest) open(name string, flags uint32) (in fuse.InHeader, fh uint64, end func(), st fuse.Status) {
	node, st := c.find(name)
	if !st.Ok() {
		return in, 0, nil, st
	}
	want := map[uint32]uint32{syscall.O_RDONLY: 4, syscall.O_WRONLY: 2, syscall.O_RDWR: 6}[flags&syscall.O_ACCMODE]
	if !c.allowed(&node.Attr, want) {
		c.forget(node.NodeId)
		return in, 0, nil, fuse.EACCES
	}
	in = c.header(node.NodeId)
	var out fuse.OpenOut
	if st := c.fs.Open(nil, &fuse.OpenIn{InHeader: in, Flags: flags}, &out); !st.Ok() {
		c.forget(node.NodeId)
		return in, 0, nil, st
	}
	if out.OpenFlags&fuse.FOPEN_DIRECT_IO == 0 && isControl(node.NodeId) {
		c.t.Errorf("%s: opened without DIRECT_IO", name)
	}
	return in, out.Fh, func() {
		c.fs.Release(nil, &fuse.ReleaseIn{InHeader: in, Fh: out.Fh})
		c.forget(node.NodeId)
	}, fuse.OK
}

// readAll reads a handle to its end in pieces of the given size.
func (c *controlTest) readAll(in fuse.InHeader, fh uint64, piece int) string {
	c.t.Helper()
	var all []byte
	for {
		buf := make([]byte, piece)
		r, st := c.fs.Read(nil, &fuse.ReadIn{InHeader: in, Fh: fh, Offset: uint64(len(all)), Size: uint32(piece)}, buf)
		if !st.Ok() {
			c.t.Fatalf("read: %v", st)
		}
		got, _ := r.Bytes(buf)
		all = append(all, got...)
		n := len(got)
		r.Done()
		if n == 0 {
			return string(all)
		}
	}
}

func (c *controlTest) cat(name string) (string, fuse.Status) {
	c.t.Helper()
	in, fh, end, st := c.open(name, syscall.O_RDONLY)
	if !st.Ok() {
		return "", st
	}
	defer end()
	return c.readAll(in, fh, 1000), fuse.OK
}

func (c *controlTest) mustCat(name string) string {
	c.t.Helper()
	text, st := c.cat(name)
	if !st.Ok() {
		c.t.Fatalf("cat %s: %v", name, st)
	}
	return text
}

// echo does what the shell does for `echo TEXT > NAME`.
func (c *controlTest) echo(name, text string) fuse.Status {
	c.t.Helper()
	in, fh, end, st := c.open(name, syscall.O_WRONLY)
	if !st.Ok() {
		return st
	}
	defer end()
	truncate := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: in, Valid: fuse.FATTR_SIZE}}
	if st := c.fs.SetAttr(nil, &truncate, new(fuse.AttrOut)); !st.Ok() {
		c.t.Errorf("truncate %s: %v", name, st)
	}
	n, st := c.fs.Write(nil, &fuse.WriteIn{InHeader: in, Fh: fh, Size: uint32(len(text))}, []byte(text))
	if st.Ok() && int(n) != len(text) {
		c.t.Errorf("%s: %d of %d bytes written", name, n, len(text))
	}
	if st := c.fs.Flush(nil, &fuse.FlushIn{InHeader: in, Fh: fh}); !st.Ok() {
		c.t.Errorf("flush %s: %v", name, st)
	}
	return st
}

// ls lists a directory as READDIR and as READDIRPLUS.
func (c *controlTest) ls(name string) []fuse.DirEntry {
	c.t.Helper()
	dir, st := c.find(name)
	if !st.Ok() {
		c.t.Fatalf("ls %s: %v", name, st)
	}
	defer c.forget(dir.NodeId)
	in := c.header(dir.NodeId)
	var out fuse.OpenOut
	if st := c.fs.OpenDir(nil, &fuse.OpenIn{InHeader: in}, &out); !st.Ok() {
		c.t.Fatalf("opendir %s: %v", name, st)
	}
	defer c.fs.ReleaseDir(&fuse.ReleaseIn{InHeader: in, Fh: out.Fh})
	var lists [2][]fuse.DirEntry
	for plus := range lists {
		for off := uint64(0); ; {
			list := fuse.NewDirEntryList(make([]byte, 512), off)
			read := &fuse.ReadIn{InHeader: in, Fh: out.Fh, Offset: off}
			var entries []fuse.DirEntry
			var attrs []fuse.EntryOut
			var err error
			if plus == 0 {
				st = c.fs.ReadDir(nil, read, list)
				entries, err = fuse.ParseDirEntries(list.Bytes())
			} else {
				st = c.fs.ReadDirPlus(nil, read, list)
				entries, attrs, err = fuse.ParseDirLookupEntries(list.Bytes())
			}
			if err != nil || !st.Ok() {
				c.t.Fatalf("readdir %s: %v, %v", name, st, err)
			}
			for _, a := range attrs {
				if a.NodeId != 0 {
					c.t.Errorf("readdirplus of %s counts a lookup", name)
				}
			}
			if len(entries) == 0 {
				break
			}
			lists[plus] = append(lists[plus], entries...)
			off = entries[len(entries)-1].Off
		}
	}
	if !slices.Equal(lists[0], lists[1]) {
		c.t.Errorf("%s: readdir and readdirplus differ", name)
	}
	if len(lists[0]) < 2 || lists[0][0].Name != "." || lists[0][1].Name != ".." {
		c.t.Fatalf("%s: no . and ..: %v", name, lists[0])
	}
	return lists[0][2:]
}

// make makes a node of the real tree: a directory if the name ends in a slash, a symlink if target is there, else a file
// of so many pages.
func (c *controlTest) make(name string, mode uint32, pages int, target string) *node {
	c.t.Helper()
	dir, base := path.Split(strings.TrimSuffix(name, "/"))
	parent, st := c.find(dir)
	if !st.Ok() {
		c.t.Fatalf("%s: %v", dir, st)
	}
	defer c.forget(parent.NodeId)
	in := c.header(parent.NodeId)
	var out fuse.CreateOut
	switch {
	case target != "":
		st = c.fs.Symlink(nil, &in, target, base, &out.EntryOut)
	case strings.HasSuffix(name, "/"):
		st = c.fs.Mkdir(nil, &fuse.MkdirIn{InHeader: in, Mode: mode}, base, &out.EntryOut)
	default:
		st = c.fs.Create(nil, &fuse.CreateIn{InHeader: in, Mode: mode, Flags: syscall.O_RDWR}, base, &out)
	}
	if !st.Ok() {
		c.t.Fatalf("%s: %v", name, st)
	}
	n := c.fs.nodes.get(out.NodeId)
	if n.isRegular() {
		in := c.header(out.NodeId)
		for i := range pages {
			data := bytes.Repeat([]byte{byte(i + 1)}, mm.PageSize)
			write := &fuse.WriteIn{InHeader: in, Fh: out.Fh, Offset: uint64(i) * mm.PageSize, Size: mm.PageSize,
				WriteFlags: fuse.WRITE_CACHE}
			if _, st := c.fs.Write(nil, write, data); !st.Ok() {
				c.t.Fatalf("%s: %v", name, st)
			}
		}
		c.fs.Release(nil, &fuse.ReleaseIn{InHeader: in, Fh: out.Fh})
	}
	return n // looked up once, as the host would have it
}

// tree makes a small real tree, with names that collide with controls.
func (c *controlTest) tree() {
	c.make("dir/", 0755, 0, "")
	c.make("dir/deep/", 0755, 0, "")
	c.make("dir/deep/file", 0644, 3, "")
	c.make("dir/:info", 0644, 1, "")
	c.make("dir/::ctl", 0644, 2, "")
	c.make("dir/:other", 0644, 0, "")
	c.make("dir/link", 0, 0, "deep/file")
	c.make("empty", 0644, 0, "")
	c.make("info", 0644, 70, "")
}

// TestControlWalk goes everywhere in the control tree: what is listed is there, as the same inode, and can be read.
func TestControlWalk(t *testing.T) {
	c := newControlTest(t)
	c.tree()
	var paths []string
	inodes := make(map[uint64]string)
	var walk func(dir string)
	walk = func(dir string) {
		for _, e := range c.ls(dir) {
			name := path.Join(dir, e.Name)
			paths = append(paths, strings.TrimPrefix(name, ".proc/"))
			if name == ".proc/sections" {
				continue // of the real tree's kind
			}
			n, st := c.find(name)
			if !st.Ok() {
				t.Errorf("%s is listed, but %v", name, st)
				continue
			}
			memory := strings.HasSuffix(name, "/mem")
			if other, ok := inodes[n.Ino]; ok && other != strings.Replace(name, "heaps.json", "heaps/summary.json", 1) || n.Ino != e.Ino || n.Mode&syscall.S_IFMT != e.Mode || (n.Size != 0) != memory {
				t.Errorf("%s: inode %#x, listed as %#x, also of %q; mode %o, listed as %o; size %d", name, n.Ino, e.Ino, other,
					n.Mode, e.Mode, n.Size)
			}
			inodes[n.Ino] = name
			want := time.Duration(0)
			if dir == ".proc" && e.Mode == syscall.S_IFREG {
				want = cacheTime // .proc's own files never change
			}
			if n.EntryTimeout() != want || n.AttrTimeout() != want {
				t.Errorf("%s: cached for %v, %v, want %v", name, n.EntryTimeout(), n.AttrTimeout(), want)
			}
			c.forget(n.NodeId)
			switch e.Mode {
			case syscall.S_IFDIR:
				walk(name)
				continue
			case syscall.S_IFLNK:
				continue
			}
			if memory {
				continue
			}
			text := c.mustCat(name)
			if strings.HasSuffix(name, ".json") && !json.Valid([]byte(text)) {
				t.Errorf("%s: not JSON:\n%s", name, text)
			}
		}
	}
	walk(".proc")
	for _, want := range []string{
		"meminfo", "vmstat.json", "ctl", "files/:info", "files/:info.json", "files/:ctl", "files/info/map", "files/empty/ctl",
		"files/dir/deep/file/pages.json", "files/dir/::info/info", "files/dir/:::ctl/info", "files/dir/:other/map",
		"files/dir/link/info",
	} {
		if !slices.Contains(paths, want) {
			t.Errorf("%s is not listed", want)
		}
	}
	for _, absent := range []string{
		"nothing", "ctl.json", "files/.proc/meminfo", "files/dir/.proc", "files/dir/link/map", "files/dir/link/file", "files/info/:info",
		"files/dir/::ctl/info", "files/dir/:info/info", "meminfo/x", "files/empty/info/x", "files/dir/:::info",
	} {
		if _, st := c.find(".proc/" + absent); st.Ok() {
			t.Errorf("%s is there", absent)
		}
	}
}

// TestControlIDs: ids come out of file handles as well, so any number may be one. What is not a node has none, and
// what is has its own id.
func TestControlIDs(t *testing.T) {
	c := newControlTest(t)
	c.tree()
	rnd := rand.New(rand.NewPCG(5, 6))
	nodes := 0
	for range 200000 {
		id := controlBit | rnd.Uint64N(9)<<controlKindBits | rnd.Uint64N(30)<<controlRowBits | rnd.Uint64N(16)
		if rnd.IntN(4) == 0 {
			id ^= rnd.Uint64() &^ (1 << 63)
			id |= controlBit
		}
		n, ok := c.fs.control.node(id)
		if !ok {
			continue
		}
		nodes++
		if n.id() != id {
			t.Fatalf("id %#x is of node %#x", id, n.id())
		}
		in := c.header(id)
		var attr fuse.AttrOut
		if st := c.fs.GetAttr(nil, &fuse.GetAttrIn{InHeader: in}, &attr); !st.Ok() || attr.Mode&syscall.S_IFMT == 0 {
			t.Fatalf("id %#x: %v, mode %o", id, st, attr.Mode)
		}
		if st := c.fs.Lookup(nil, &in, ".", new(fuse.EntryOut)); !st.Ok() {
			t.Fatalf("id %#x: %v", id, st)
		}
		if n.isDir() {
			list := fuse.NewDirEntryList(make([]byte, 4096), rnd.Uint64N(300))
			if st := c.fs.ReadDir(nil, &fuse.ReadIn{InHeader: in, Offset: list.Offset}, list); !st.Ok() {
				t.Fatalf("id %#x: %v", id, st)
			}
		}
	}
	if nodes < 1000 {
		t.Errorf("only %d of the ids were nodes", nodes)
	}
}

// TestControlMap watches the pages of a file go.
func TestControlMap(t *testing.T) {
	c := newControlTest(t)
	c.tree()
	state := func() string {
		return strings.TrimSpace(strings.TrimPrefix(c.mustCat(".proc/files/dir/deep/file/map"), "00000000"))
	}
	if got := state(); got != "AAA" {
		t.Errorf("after writing: map %q, want AAA", got)
	}
	if st := c.echo(".proc/files/dir/deep/file/ctl", "trim\n"); !st.Ok() {
		t.Fatal(st)
	}
	if got, want := c.mustCat(".proc/files/dir/deep/file/ctl"), "OK trimmed=3 written=3\n"; got != want {
		t.Errorf("trim answers %q, want %q", got, want)
	}
	if got := state(); got != "SSS" {
		t.Errorf("after trim: map %q, want SSS", got)
	}
	if st := c.echo(".proc/ctl", "empty standby"); !st.Ok() {
		t.Fatal(st)
	}
	if got := state(); got != "PPP" {
		t.Errorf("after empty standby: map %q, want PPP", got)
	}
	if st := c.echo(".proc/files/dir/deep/file/ctl", "prefetch 0x1000 1"); !st.Ok() {
		t.Fatal(st)
	}
	if got := state(); got[1] != 'S' || !strings.Contains(c.mustCat(".proc/files/dir/deep/file/ctl"), "OK prefetched=") {
		t.Errorf("after prefetch: map %q", got)
	}
}

// TestControlSnapshot: what a reader sees was true at open and stays as it is, in whatever pieces it is read.
func TestControlSnapshot(t *testing.T) {
	c := newControlTest(t)
	c.tree()
	in, fh, end, st := c.open(".proc/files/info/pages", syscall.O_RDONLY)
	if !st.Ok() {
		t.Fatal(st)
	}
	defer end()
	before := c.readAll(in, fh, 1<<20)
	if st := c.echo(".proc/ctl", "empty all"); !st.Ok() {
		t.Fatal(st)
	}
	if again := c.readAll(in, fh, 77); again != before {
		t.Error("the text changes under its reader")
	}
	if now := c.mustCat(".proc/files/info/pages"); now == before || strings.Count(now, "\n") != 71 {
		t.Errorf("a new reader sees\n%s", now)
	}
	for _, flags := range []uint32{syscall.O_WRONLY, syscall.O_RDWR} {
		for _, name := range []string{".proc/meminfo", ".proc/files/info/map", ".proc/files/:info"} {
			if _, _, _, st := c.open(name, flags); st != fuse.EACCES {
				t.Errorf("open %s for writing: %v, want %v", name, st, fuse.EACCES)
			}
		}
	}
}

// TestControlStream: writes and reads of one handle pair up; another handle's answers do not get in between; a fresh
// reader gets the last answer.
func TestControlStream(t *testing.T) {
	c := newControlTest(t)
	if text := c.mustCat(".proc/ctl"); text != ctl.Help(ctl.ManagerVerbs) {
		t.Errorf("before any command ctl reads %q, want the list of commands", text)
	}
	in, fh, end, st := c.open(".proc/ctl", syscall.O_RDWR)
	if !st.Ok() {
		t.Fatal(st)
	}
	defer end()
	write := func(text string) fuse.Status {
		_, st := c.fs.Write(nil, &fuse.WriteIn{InHeader: in, Fh: fh, Offset: 12345, Size: uint32(len(text))}, []byte(text))
		return st
	}
	if st := write("check\n"); !st.Ok() {
		t.Fatal(st)
	}
	if st := c.echo(".proc/ctl", "nonsense"); st != fuse.EINVAL {
		t.Errorf("nonsense: %v", st)
	}
	if got := c.readAll(in, fh, 1); got != "OK found=0\n" {
		t.Errorf("read %q", got)
	}
	if got := c.readAll(in, fh, 100); got != "" {
		t.Errorf("read %q after the end", got)
	}
	if st := write("what\n"); st != fuse.EINVAL {
		t.Errorf("what: %v", st)
	}
	if st := write("check\nempty standby0\n"); !st.Ok() {
		t.Error(st)
	}
	want := "ERR EINVAL unknown command \"what\": write help for the list\nOK found=0\nOK freed=0\n"
	if got := c.readAll(in, fh, 7); got != want {
		t.Errorf("read %q, want %q", got, want)
	}
	// The last answers are those of the handle that was written to last, all of them: a shell's printf makes a write a line.
	if got := c.mustCat(".proc/ctl"); got != want {
		t.Errorf("a fresh reader gets %q, want %q", got, want)
	}
	if st := c.echo(".proc/ctl", "check\ncheck\n"); !st.Ok() {
		t.Error(st)
	}
	if got, want := c.mustCat(".proc/ctl"), "OK found=0\nOK found=0\n"; got != want {
		t.Errorf("a fresh reader gets %q, want %q", got, want)
	}
	for range 100 {
		write("help\n")
	}
	if got := c.readAll(in, fh, 4096); len(got) > maxAnswer || !strings.HasSuffix(got, "\n") {
		t.Errorf("%d bytes of unread answers are kept", len(got))
	}
	attr := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: in, Valid: fuse.FATTR_SIZE, Size: 1}}
	if st := c.fs.SetAttr(nil, &attr, new(fuse.AttrOut)); st != fuse.EINVAL {
		t.Errorf("truncate to 1: %v", st)
	}
	attr = fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: in, Valid: fuse.FATTR_MODE, Mode: 0666}}
	if st := c.fs.SetAttr(nil, &attr, new(fuse.AttrOut)); st != fuse.EPERM {
		t.Errorf("chmod: %v", st)
	}
}

// TestControlLastAnswers: the last answers of as many ctl files as are ever written to do not pile up.
func TestControlLastAnswers(t *testing.T) {
	c := newControlTest(t)
	for i := range maxLastAnswers + 10 {
		name := fmt.Sprintf("f%d", i)
		c.make(name, 0600, 0, "")
		if st := c.echo(".proc/files/"+name+"/ctl", "flush\nflush"); !st.Ok() {
			t.Fatal(st)
		}
	}
	c.fs.control.mu.Lock()
	n, order := len(c.fs.control.last), len(c.fs.control.lastOrder)
	c.fs.control.mu.Unlock()
	if n != maxLastAnswers || order != n {
		t.Errorf("%d answers are kept in an order of %d, want %d", n, order, maxLastAnswers)
	}
	if got := c.mustCat(fmt.Sprintf(".proc/files/f%d/ctl", maxLastAnswers+9)); got != "OK written=0\nOK written=0\n" {
		t.Errorf("the newest reads %q", got)
	}
}

// TestControlWho: nobody learns from the control tree what the real tree keeps from him, nor steers others' files.
func TestControlWho(t *testing.T) {
	root := newControlTest(t)
	alice := root.as(1001, 1001)
	bob := root.as(1002, 1002)
	owner := root.as(100, 100)
	root.make("pub/", 0777, 0, "")
	alice.make("pub/open", 0644, 1, "")
	alice.make("pub/shared", 0666, 2, "")
	alice.make("pub/closed", 0600, 4, "")
	alice.make("pub/private/", 0700, 0, "")
	alice.make("pub/private/file", 0644, 8, "")
	bob.make("pub/bobs", 0644, 16, "")

	for _, test := range []struct {
		who  *controlTest
		name string
		want fuse.Status
	}{
		{bob, "meminfo", fuse.OK}, {bob, "vmstat.json", fuse.OK}, {bob, "check", fuse.EACCES}, {bob, "ctl", fuse.EACCES},
		{owner, "check", fuse.OK}, {owner, "ctl", fuse.OK},
		{bob, "files/pub/open/info", fuse.OK}, {bob, "files/pub/open/map", fuse.EACCES}, {bob, "files/pub/shared/map", fuse.OK},
		{bob, "files/pub/open/ctl", fuse.EACCES}, {bob, "files/pub/closed/info", fuse.EACCES},
		{bob, "files/pub/private/file/info", fuse.EACCES}, {bob, "files/pub/private/:info", fuse.EACCES},
		{bob, "files/pub/:info", fuse.OK}, {bob, "files/pub/:ctl", fuse.EACCES}, {bob, "files/pub/bobs/ctl", fuse.OK},
		{alice, "files/pub/closed/info", fuse.OK}, {alice, "files/pub/closed/pages", fuse.OK}, {alice, "files/pub/open/ctl", fuse.OK},
		{alice, "files/pub/private/:ctl", fuse.OK}, {alice, "files/pub/bobs/map.json", fuse.EACCES},
		{root, "files/pub/private/file/map", fuse.OK}, {root, "files/pub/closed/ctl", fuse.OK}, {owner, "files/:ctl", fuse.OK},
	} {
		if _, st := test.who.cat(".proc/" + test.name); st != test.want {
			t.Errorf("uid %d reads %s: %v, want %v", test.who.caller.Uid, test.name, st, test.want)
		}
	}

	// With an ACL the mode does not say who is let in.
	acl := root.fs.rootNode().child("pub").child("shared")
	acl.mu.Lock()
	acl.xattrs = map[string][]byte{aclAccess: nil}
	acl.mu.Unlock()
	for who, want := range map[*controlTest]fuse.Status{bob: fuse.EACCES, alice: fuse.OK, root: fuse.OK} {
		if _, st := who.cat(".proc/files/pub/shared/info"); st != want {
			t.Errorf("uid %d reads the info of a file with an ACL: %v, want %v", who.caller.Uid, st, want)
		}
	}
	acl.mu.Lock()
	acl.xattrs = nil
	acl.mu.Unlock()

	for _, test := range []struct {
		who  *controlTest
		want string
	}{
		{root, "Files:                 5\nDirectories:           1\nOthers:                0\nSkipped:               0\n"},
		{alice, "Files:                 5\nDirectories:           1\nOthers:                0\nSkipped:               0\n"},
		{bob, "Files:                 3\nDirectories:           1\nOthers:                0\nSkipped:               2\n"},
	} {
		if got := test.who.mustCat(".proc/files/pub/:info"); !strings.Contains(got, test.want) {
			t.Errorf("uid %d: :info\n%swants\n%s", test.who.caller.Uid, got, test.want)
		}
	}

	// A directory's ctl does no more than the ctl of each file below would let its writer do.
	chown := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{Valid: fuse.FATTR_UID, Owner: fuse.Owner{Uid: 1002}}}
	pub := root.fs.rootNode().child("pub")
	chown.NodeId = pub.id
	if st := root.fs.SetAttr(nil, &chown, new(fuse.AttrOut)); !st.Ok() {
		t.Fatal(st)
	}
	for _, test := range []struct {
		who  *controlTest
		want string
	}{
		{bob, "OK trimmed=16 written=16 files=1 skipped=4\n"}, // three of alice's files, and her directory
		{root, "OK trimmed=15 written=15 files=5 skipped=0\n"},
	} {
		if st := test.who.echo(".proc/files/pub/:ctl", "trim"); !st.Ok() {
			t.Fatal(st)
		}
		if got := test.who.mustCat(".proc/files/pub/:ctl"); got != test.want {
			t.Errorf("uid %d: trim answers %q, want %q", test.who.caller.Uid, got, test.want)
		}
	}
	if st := owner.echo(".proc/files/:ctl", "flush"); !st.Ok() {
		t.Fatal(st)
	}
	if got, want := owner.mustCat(".proc/files/:ctl"), "OK written=0 files=5 skipped=0\n"; got != want {
		t.Errorf("the mount's owner: flush answers %q, want %q", got, want)
	}
}

// slowLaunderer holds write-backs until it is let go.
type slowLaunderer struct {
	entered chan uint64
	release chan struct{}
}

func (l *slowLaunderer) WriteBack(node uint64, off, n int64) error {
	l.entered <- node
	<-l.release
	return nil
}
func (l *slowLaunderer) Truncate(node uint64, size int64) error { return nil }
func (l *slowLaunderer) Extend(node uint64, size int64) error   { return nil }
func (l *slowLaunderer) Close() error                           { return nil }

// TestControlBusy: readers and commands that wait for the host are bounded, and nobody else waits with them.
func TestControlBusy(t *testing.T) {
	c := newControlTest(t)
	c.tree()
	l := &slowLaunderer{entered: make(chan uint64), release: make(chan struct{})}
	c.fs.setLaunderer(l)
	_, fh, end, st := c.open("info", syscall.O_RDWR)
	if !st.Ok() {
		t.Fatal(st)
	}
	defer end()
	_ = fh
	var waiting sync.WaitGroup
	for range cap(c.fs.gate) {
		waiting.Go(func() {
			if _, st := c.cat(".proc/files/info/info"); !st.Ok() {
				t.Errorf("a reader who waits: %v", st)
			}
		})
		<-l.entered
	}
	for _, name := range []string{"files/info/map", "files/:info.json"} {
		if _, st := c.cat(".proc/" + name); st != fuse.EBUSY {
			t.Errorf("one more reader of %s: %v, want %v", name, st, fuse.EBUSY)
		}
	}
	for _, name := range []string{"ctl", "files/info/ctl", "files/:ctl"} {
		if st := c.echo(".proc/"+name, "trim"); st != fuse.EBUSY {
			t.Errorf("one more trim at %s: %v, want %v", name, st, fuse.EBUSY)
		}
	}
	for _, name := range []string{"meminfo", "check", "files/empty/info", "files/info/ctl"} {
		c.mustCat(".proc/" + name)
	}
	if st := c.echo(".proc/ctl", "zero"); !st.Ok() {
		t.Errorf("zero: %v", st)
	}
	close(l.release)
	waiting.Wait()
	go func() { <-l.entered }()
	c.mustCat(".proc/files/info/map")
}

// TestControlGone: the controls of a file go with it, and an open ctl of it answers with an error.
func TestControlGone(t *testing.T) {
	c := newControlTest(t)
	c.tree()
	folder, st := c.find(".proc/files/dir/deep/file")
	if !st.Ok() {
		t.Fatal(st)
	}
	in, fh, end, st := c.open(".proc/files/dir/deep/file/ctl", syscall.O_RDWR)
	if !st.Ok() {
		t.Fatal(st)
	}
	real := c.fs.rootNode().child("dir").child("deep")
	header := c.header(real.id)
	file := real.child("file")
	if st := c.fs.Unlink(nil, &header, "file"); !st.Ok() {
		t.Fatal(st)
	}
	c.fs.Forget(file.id, 1) // of its creation
	if _, st := c.find(".proc/files/dir/deep/file"); st != fuse.ENOENT {
		t.Errorf("its folder: %v", st)
	}
	h := c.header(folder.NodeId)
	if st := c.fs.Lookup(nil, &h, "info", new(fuse.EntryOut)); st != fuse.ENOENT {
		t.Errorf("its info: %v", st)
	}
	if _, st := c.fs.Write(nil, &fuse.WriteIn{InHeader: in, Fh: fh}, []byte("prefetch\nflush")); !st.Ok() && st != estale {
		t.Errorf("its ctl: %v", st)
	}
	end()
	c.forget(folder.NodeId)
	if _, st := c.find(".proc/files/dir/deep/file/info"); st != fuse.ENOENT {
		t.Errorf("its info by path: %v", st)
	}
}

// TestControlHandles: handles are bounded, and those that the host never releases are ended with the mount.
func TestControlHandles(t *testing.T) {
	c := newControlTest(t)
	c.make("big", 0644, 1000, "")
	node, st := c.find(".proc/files/big/pages.json")
	if !st.Ok() {
		t.Fatal(st)
	}
	before := c.fs.sys.Snapshot().RecordBytes
	open := &fuse.OpenIn{InHeader: c.header(node.NodeId)}
	if st := c.fs.Open(nil, open, new(fuse.OpenOut)); !st.Ok() {
		t.Fatal(st)
	}
	if c.fs.sys.Snapshot().RecordBytes <= before {
		t.Error("a long document is not charged")
	}
	top, st := c.find(".proc/version")
	if !st.Ok() {
		t.Fatal(st)
	}
	open = &fuse.OpenIn{InHeader: c.header(top.NodeId)}
	enfile := fuse.Status(syscall.ENFILE)
	for i := 1; i <= maxOwnerHandles; i++ {
		want := map[bool]fuse.Status{true: fuse.OK, false: enfile}
		open.Caller = c.as(1001, 1001).caller
		if i >= maxControlHandles {
			if st := c.fs.Open(nil, open, new(fuse.OpenOut)); st != enfile {
				t.Fatalf("somebody's handle %d: %v, want %v", i+1, st, enfile)
			}
			open.Caller = c.as([]uint32{0, 100}[i%2], 0).caller
		}
		if st := c.fs.Open(nil, open, new(fuse.OpenOut)); st != want[i < maxOwnerHandles] {
			t.Fatalf("handle %d: %v, want %v", i+1, st, want[i < maxOwnerHandles])
		}
	}
	c.fs.OnUnmount()
	if after := c.fs.sys.Snapshot().RecordBytes; after != before {
		t.Errorf("%d bytes of records, before %d", after, before)
	}
	c.forget(node.NodeId)
	c.forget(top.NodeId)
}

// TestNewestLines: of many answers the newest are kept; the last one however long it is, as when much memory was read.
func TestNewestLines(t *testing.T) {
	long := strings.Repeat("x", 30) + "\n"
	for _, c := range []struct{ text, want string }{
		{"", ""}, {"a\nb\n", "a\nb\n"}, {"12345\n67890\nab\n", "67890\nab\n"}, {"a\n" + long, long}, {long, long},
		{long + "a\n", "a\n"}, {strings.Repeat("x", 30), strings.Repeat("x", 30)}, {"a\n" + strings.Repeat("x", 30), strings.Repeat("x", 30)},
	} {
		if got := string(newestLines([]byte(c.text), 10)); got != c.want {
			t.Errorf("of %q %q is kept, want %q", c.text, got, c.want)
		}
	}
}
