package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"memfs/fs/ctl"
	"memfs/mm"
)

// kernel plays the host kernel: it calls the file system as the kernel does, and keeps count of lookups where a test does
// not. There is no mount, so nothing is cached.
type kernel struct {
	*fileSystem
	t   testing.TB
	sys *mm.System
}

func newKernel(t testing.TB, change ...func(*Options)) *kernel {
	t.Helper()
	sys, err := mm.New(mm.Config{Memory: 32 << 20})
	if err != nil {
		t.Fatal(err)
	}
	o := Options{System: sys, Mode: 0o777, MaxRequest: 1 << 20, MaxInflight: 8 << 20, Log: t.Logf}
	for _, f := range change {
		f(&o)
	}
	f, err := newFileSystem(o)
	if err != nil {
		t.Fatal(err)
	}
	k := &kernel{fileSystem: f, t: t, sys: sys}
	t.Cleanup(k.end)
	return k
}

// end is the unmount: everything must have been given back.
func (k *kernel) end() {
	k.shutdown()
	for _, err := range k.sys.Check() {
		k.t.Error(err)
	}
	if err := k.sys.Close(); err != nil {
		k.t.Error(err)
	}
}

const root = fuse.FUSE_ROOT_ID

func header(id uint64) fuse.InHeader { return fuse.InHeader{NodeId: id} }

// want fails the test unless a request was answered so.
func (k *kernel) want(got, want fuse.Status, format string, args ...any) {
	k.t.Helper()
	if got != want {
		k.t.Errorf("%s: %v, want %v", fmt.Sprintf(format, args...), got, want)
	}
}

// must fails the test and ends it unless a request succeeded.
func (k *kernel) must(st fuse.Status, what string) {
	k.t.Helper()
	if !st.Ok() {
		k.t.Fatalf("%s: %v", what, st)
	}
}

func (k *kernel) mkdir(parent uint64, name string) (uint64, fuse.Status) {
	var out fuse.EntryOut
	st := k.Mkdir(nil, &fuse.MkdirIn{InHeader: header(parent), Mode: 0o755}, name, &out)
	return out.NodeId, st
}

func (k *kernel) mustMkdir(parent uint64, name string) uint64 {
	k.t.Helper()
	id, st := k.mkdir(parent, name)
	k.must(st, "mkdir "+name)
	return id
}

// create makes a file and leaves it open.
func (k *kernel) create(parent uint64, name string) (id, fh uint64, st fuse.Status) {
	var out fuse.CreateOut
	in := fuse.CreateIn{InHeader: header(parent), Flags: syscall.O_RDWR, Mode: 0o644}
	st = k.Create(nil, &in, name, &out)
	return out.NodeId, out.Fh, st
}

func (k *kernel) mustCreate(parent uint64, name string) (id, fh uint64) {
	k.t.Helper()
	id, fh, st := k.create(parent, name)
	k.must(st, "create "+name)
	return id, fh
}

// touch makes a file and closes it.
func (k *kernel) touch(parent uint64, name string) uint64 {
	k.t.Helper()
	id, fh := k.mustCreate(parent, name)
	k.release(id, fh)
	return id
}

func (k *kernel) open(id uint64, flags uint32) (fh uint64) {
	k.t.Helper()
	var out fuse.OpenOut
	k.must(k.Open(nil, &fuse.OpenIn{InHeader: header(id), Flags: flags}, &out), "open")
	if out.OpenFlags != fuse.FOPEN_KEEP_CACHE {
		k.t.Errorf("open answered flags %#x, want FOPEN_KEEP_CACHE", out.OpenFlags)
	}
	return out.Fh
}

func (k *kernel) flush(id, fh uint64) fuse.Status {
	return k.Flush(nil, &fuse.FlushIn{InHeader: header(id), Fh: fh})
}

func (k *kernel) release(id, fh uint64) {
	k.Release(nil, &fuse.ReleaseIn{InHeader: header(id), Fh: fh})
}

// lookup returns the id of a name, 0 if there is none.
func (k *kernel) lookup(parent uint64, name string) (uint64, fuse.Status) {
	var out fuse.EntryOut
	in := header(parent)
	st := k.Lookup(nil, &in, name, &out)
	return out.NodeId, st
}

func (k *kernel) exists(parent uint64, name string) bool {
	k.t.Helper()
	id, st := k.lookup(parent, name)
	if id != 0 {
		k.Forget(id, 1)
	}
	return st.Ok() && id != 0
}

func (k *kernel) unlink(parent uint64, name string) fuse.Status {
	in := header(parent)
	return k.Unlink(nil, &in, name)
}

func (k *kernel) rmdir(parent uint64, name string) fuse.Status {
	in := header(parent)
	return k.Rmdir(nil, &in, name)
}

func (k *kernel) link(target, parent uint64, name string) fuse.Status {
	var out fuse.EntryOut
	return k.Link(nil, &fuse.LinkIn{InHeader: header(parent), Oldnodeid: target}, name, &out)
}

func (k *kernel) rename(from uint64, oldName string, to uint64, newName string, flags uint32) fuse.Status {
	return k.Rename(nil, &fuse.RenameIn{InHeader: header(from), Newdir: to, Flags: flags}, oldName, newName)
}

func (k *kernel) attr(id uint64) fuse.Attr {
	k.t.Helper()
	var out fuse.AttrOut
	k.must(k.GetAttr(nil, &fuse.GetAttrIn{InHeader: header(id)}, &out), "getattr")
	return out.Attr
}

func (k *kernel) setattr(id uint64, valid uint32, change func(*fuse.SetAttrIn)) fuse.Status {
	in := fuse.SetAttrIn{}
	in.NodeId, in.Valid = id, valid
	change(&in)
	return k.SetAttr(nil, &in, new(fuse.AttrOut))
}

func (k *kernel) chmod(id uint64, mode uint32) {
	k.t.Helper()
	k.must(k.setattr(id, fuse.FATTR_MODE, func(in *fuse.SetAttrIn) { in.Mode = mode }), "chmod")
}

func (k *kernel) write(id, fh uint64, off int64, data []byte, flags uint32) fuse.Status {
	in := fuse.WriteIn{InHeader: header(id), Fh: fh, Offset: uint64(off), Size: uint32(len(data)), WriteFlags: flags}
	half := len(data) / 2
	n, st := k.Writev(nil, &in, [][]byte{data[:half], data[half:]})
	if st.Ok() && int(n) != len(data) {
		k.t.Errorf("a write of %d bytes stored %d", len(data), n)
	}
	return st
}

func (k *kernel) read(id, fh uint64, off int64, size int) []byte {
	k.t.Helper()
	buf := make([]byte, size)
	result, st := k.Read(nil, &fuse.ReadIn{InHeader: header(id), Fh: fh, Offset: uint64(off), Size: uint32(size)}, buf)
	k.must(st, "read")
	defer result.Done()
	if s, ok := result.(interface {
		Slices() ([][]byte, fuse.Status)
	}); ok {
		slices, _ := s.Slices()
		return bytes.Clone(bytes.Join(slices, nil))
	}
	got, _ := result.Bytes(buf)
	return bytes.Clone(got)
}

// TestStatus: every status of the memory manager has an errno of its own kind, and none is taken for success.
func TestStatus(t *testing.T) {
	want := map[mm.Status]fuse.Status{
		mm.StatusSuccess: fuse.OK, mm.StatusCommitmentLimit: enospc, mm.StatusInPageError: fuse.EIO,
		mm.StatusOutPageError: fuse.EIO, mm.StatusInvalidParameter: fuse.EINVAL, mm.StatusFileTooLarge: efbig,
		mm.StatusNoData: enxio, mm.StatusBusy: fuse.EBUSY, mm.StatusDeleted: estale,
		mm.StatusWorkingSetQuota: fuse.Status(syscall.ENOMEM),
	}
	for s := mm.StatusSuccess; !strings.HasPrefix(s.Error(), "status "); s++ {
		if got := errno(fmt.Errorf("deep down: %w", s)); got != want[s] || s != mm.StatusSuccess && got.Ok() {
			t.Errorf("%q is %v, want %v", s, got, want[s])
		}
	}
	for err, want := range map[error]fuse.Status{nil: fuse.OK, syscall.EXDEV: fuse.EXDEV, errors.New("?"): fuse.EIO} {
		if got := errno(err); got != want {
			t.Errorf("%v is %v, want %v", err, got, want)
		}
	}
}

// TestLife: contents live as long as a name, a lookup or a handle refers to them, and go at once with the last.
func TestLife(t *testing.T) {
	k := newKernel(t)
	base := k.sys.Snapshot()
	id, fh := k.mustCreate(root, "f")
	k.must(k.write(id, fh, 0, make([]byte, 1<<20), 0), "write")
	k.Forget(id, 1)
	if got, _ := k.lookup(root, "f"); got != id {
		t.Fatalf("a forgotten file with a name is now %d, was %d", got, id)
	}
	k.must(k.unlink(root, "f"), "unlink")
	k.Forget(id, 1)
	if got := k.read(id, fh, 0, 4096); len(got) != 4096 {
		t.Errorf("an open file without a name has lost its contents")
	}
	if k.attr(id).Nlink != 0 {
		t.Error("a file without a name has links")
	}
	k.release(id, fh)
	if st := k.GetAttr(nil, &fuse.GetAttrIn{InHeader: header(id)}, new(fuse.AttrOut)); st != fuse.ENOENT {
		t.Errorf("getattr of a file that is gone: %v", st)
	}
	now := k.sys.Snapshot()
	if now.Sections != base.Sections || now.RecordBytes != base.RecordBytes || now.Commit != base.Commit {
		t.Errorf("after the end of the file: sections %d, records %d, commit %d; before: %d, %d, %d",
			now.Sections, now.RecordBytes, now.Commit, base.Sections, base.RecordBytes, base.Commit)
	}
	if used, _ := k.inodeCounts(); used != 1 {
		t.Errorf("%d inodes are left, want the root", used)
	}
}

// TestLargeDeletion: a large file is deleted beside the FORGET, but before the mount ends (the fixture checks).
func TestLargeDeletion(t *testing.T) {
	k := newKernel(t)
	id, fh := k.mustCreate(root, "f")
	k.must(k.write(id, fh, 0, make([]byte, 6<<20), 0), "write")
	k.release(id, fh)
	k.must(k.unlink(root, "f"), "unlink")
	k.Forget(id, 1)
	k.deletions.wait()
	if n := k.sys.Snapshot().Sections; n != 0 {
		t.Errorf("%d sections are left", n)
	}
}

// TestForgotten: when the host kernel has no lookup of a file left, its pages are not counted as cached any more.
func TestForgotten(t *testing.T) {
	k := newKernel(t)
	id, fh := k.mustCreate(root, "f")
	k.must(k.write(id, fh, 0, make([]byte, 1<<20), fuse.WRITE_CACHE), "write")
	k.release(id, fh)
	if k.sys.Snapshot().HostPages == 0 {
		t.Fatal("written pages are not counted as cached by the host")
	}
	k.Forget(id, 1)
	if n := k.sys.Snapshot().HostPages; n != 0 {
		t.Errorf("the host is thought to cache %d pages of a file that it has forgotten", n)
	}
}

// TestResize: what goes by the memory follows it, but for what was asked for; statfs goes by the smaller of size and
// commit limit.
func TestResize(t *testing.T) {
	for _, asked := range []uint64{0, 1000} {
		sys, err := mm.New(mm.Config{Memory: 32 << 20, MaxMemory: 64 << 20, Inodes: asked})
		if err != nil {
			t.Fatal(err)
		}
		k := newKernel(t, func(o *Options) { _ = o.System.Close(); o.System = sys })
		k.sys = sys
		statfs := func() (out fuse.StatfsOut) {
			in := header(root)
			k.must(k.StatFs(nil, &in, &out), "statfs")
			return out
		}
		if _, err := k.control.mount.SetMemory(64 << 20); err != nil {
			t.Fatal(err)
		}
		want := asked
		if asked == 0 {
			want = 64 << 20 / mm.PageSize
		}
		if out, b := statfs(), sys.Budget(); out.Files != want || out.Blocks != b.CommitLimit || b.Memory != 64<<20 {
			t.Errorf("at 64M: %+v of %+v", out, b)
		}
		if err := k.control.mount.SetSize(100*mm.PageSize - 1); err != nil {
			t.Fatal(err)
		}
		if out := statfs(); out.Blocks != 100 || out.Bfree != 100 || out.Bavail != 100 {
			t.Errorf("with a size of 100 pages: %+v", out)
		}
		if err := k.control.mount.SetSize(1 << 40); err != nil {
			t.Fatal(err)
		}
		if out := statfs(); out.Blocks != sys.Budget().CommitLimit || out.Bfree >= out.Blocks {
			t.Errorf("with a size beyond what can be promised: %+v", out)
		}
		if _, err := k.control.mount.SetMemory(8 << 20); err == nil || sys.Budget().Memory != 64<<20 {
			t.Errorf("memory 8M: %v", err)
		}
	}
}

// TestInodes: nr_inodes bounds the nodes, and what a failed creation took is given back.
func TestInodes(t *testing.T) {
	k := newKernel(t, func(o *Options) { o.Inodes = 3 })
	k.touch(root, "a")
	k.mustMkdir(root, "b")
	records := k.sys.Snapshot().RecordBytes
	_, _, st := k.create(root, "c")
	k.want(st, enospc, "create past nr_inodes")
	if k.exists(root, "c") {
		t.Error("a file that was refused has a name")
	}
	var out fuse.StatfsOut
	in := header(root)
	k.must(k.StatFs(nil, &in, &out), "statfs")
	if out.Files != 3 || out.Ffree != 0 {
		t.Errorf("statfs counts %d of %d inodes free, want 0 of 3", out.Ffree, out.Files)
	}
	k.must(k.rmdir(root, "b"), "rmdir")
	if got := k.sys.Snapshot().RecordBytes; got != records-uint64(nameRecord("b")) {
		t.Errorf("%d bytes of records after rmdir of a directory that the host still knows, were %d", got, records)
	}
}

// TestStatfs: total is the commit limit, free what can still be promised.
func TestStatfs(t *testing.T) {
	k := newKernel(t)
	id, fh := k.mustCreate(root, "f")
	k.must(k.write(id, fh, 0, make([]byte, 4<<20), 0), "write")
	var out fuse.StatfsOut
	in := header(root)
	k.must(k.StatFs(nil, &in, &out), "statfs")
	s := k.sys.Snapshot()
	if out.Blocks != s.CommitLimit || out.Bfree != s.CommitLimit-s.Commit || out.Bavail != out.Bfree {
		t.Errorf("statfs: %d blocks, %d free, %d available; commit is %d of %d",
			out.Blocks, out.Bfree, out.Bavail, s.Commit, s.CommitLimit)
	}
	if s.Commit < 4<<20/mm.PageSize || out.Bsize != mm.PageSize || out.NameLen != 255 {
		t.Errorf("commit %d, block size %d, name length %d", s.Commit, out.Bsize, out.NameLen)
	}
}

// TestTimes: what changes which time.
func TestTimes(t *testing.T) {
	k := newKernel(t)
	dir := k.mustMkdir(root, "d")
	id, fh := k.mustCreate(dir, "f")
	long := time.Now().Add(-time.Hour)
	old := func() {
		for _, id := range []uint64{dir, id} {
			k.must(k.setattr(id, fuse.FATTR_ATIME|fuse.FATTR_MTIME|fuse.FATTR_CTIME, func(in *fuse.SetAttrIn) {
				in.Atime, in.Mtime, in.Ctime = uint64(long.Unix()), uint64(long.Unix()), uint64(long.Unix())
				in.Atimensec, in.Mtimensec, in.Ctimensec = 1, 2, 3
			}), "utimens")
		}
	}
	data := []byte("data")
	for _, c := range []struct {
		what      string
		do        func() fuse.Status
		file, dir string // which of a, m and c changed
	}{
		{"nothing", func() fuse.Status { return fuse.OK }, "", ""},
		{"write", func() fuse.Status { return k.write(id, fh, 0, data, 0) }, "mc", ""},
		{"write-back", func() fuse.Status { return k.write(id, fh, 0, data, fuse.WRITE_CACHE) }, "", ""},
		{"truncate", func() fuse.Status {
			return k.setattr(id, fuse.FATTR_SIZE, func(in *fuse.SetAttrIn) { in.Size = 100 })
		}, "mc", ""},
		{"truncate with times", func() fuse.Status {
			return k.setattr(id, fuse.FATTR_SIZE|fuse.FATTR_MTIME|fuse.FATTR_CTIME, func(in *fuse.SetAttrIn) {
				in.Mtime, in.Ctime = uint64(long.Unix()), uint64(long.Unix())
				in.Mtimensec, in.Ctimensec = 2, 3
			})
		}, "", ""},
		{"fallocate", func() fuse.Status {
			return k.Fallocate(nil, &fuse.FallocateIn{InHeader: header(id), Length: 4096})
		}, "mc", ""},
		{"chmod", func() fuse.Status {
			return k.setattr(id, fuse.FATTR_MODE, func(in *fuse.SetAttrIn) { in.Mode = 0o600 })
		}, "c", ""},
		{"chown", func() fuse.Status {
			return k.setattr(id, fuse.FATTR_UID, func(in *fuse.SetAttrIn) { in.Uid = 7 })
		}, "c", ""},
		{"setxattr", func() fuse.Status {
			return k.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: header(id)}, "user.x", data)
		}, "c", ""},
		{"removexattr", func() fuse.Status {
			in := header(id)
			return k.RemoveXAttr(nil, &in, "user.x")
		}, "c", ""},
		{"link", func() fuse.Status { return k.link(id, dir, "g") }, "c", "mc"},
		{"rename", func() fuse.Status { return k.rename(dir, "g", dir, "h", 0) }, "c", "mc"},
		{"unlink", func() fuse.Status { return k.unlink(dir, "h") }, "c", "mc"},
		{"read", func() fuse.Status { k.read(id, fh, 0, 1); return fuse.OK }, "a", ""},
		{"readdir", func() fuse.Status {
			return k.ReadDir(nil, &fuse.ReadIn{InHeader: header(dir)}, fuse.NewDirEntryList(make([]byte, 4096), 0))
		}, "", "a"},
	} {
		old()
		k.must(c.do(), c.what)
		for _, n := range []struct {
			what, want string
			id         uint64
		}{{"file", c.file, id}, {"directory", c.dir, dir}} {
			if got := changedTimes(k.attr(n.id), long); got != n.want {
				t.Errorf("%s changed %q of the %s, want %q", c.what, got, n.what, n.want)
			}
		}
	}
}

// changedTimes names the times that are not the ones that TestTimes sets.
func changedTimes(a fuse.Attr, was time.Time) string {
	var s string
	for _, f := range []struct {
		name string
		sec  uint64
		nsec uint32
		is   uint32
	}{{"a", a.Atime, a.Atimensec, 1}, {"m", a.Mtime, a.Mtimensec, 2}, {"c", a.Ctime, a.Ctimensec, 3}} {
		if f.sec != uint64(was.Unix()) || f.nsec != f.is {
			s += f.name
		}
	}
	return s
}

// TestRelatime: a read stamps atime only if it is not newer than mtime and ctime, or a day old.
func TestRelatime(t *testing.T) {
	k := newKernel(t)
	id, fh := k.mustCreate(root, "f")
	now := uint64(time.Now().Unix())
	for _, c := range []struct {
		what         string
		atime, mtime uint64
		flags        uint32
		stamped      bool
	}{
		{"newer", now - 10, now - 100, 0, false},
		{"older than mtime", now - 100, now - 10, 0, true},
		{"a day old", now - 86401, now - 90000, 0, true},
		{"older, but O_NOATIME", now - 100, now - 10, syscall.O_NOATIME, false},
		{"older, but not the program's read", now - 100, now - 10, syscall.O_WRONLY, false},
	} {
		k.must(k.setattr(id, fuse.FATTR_ATIME|fuse.FATTR_MTIME|fuse.FATTR_CTIME, func(in *fuse.SetAttrIn) {
			in.Atime, in.Mtime, in.Ctime = c.atime, c.mtime, c.mtime
		}), "utimens")
		result, st := k.Read(nil, &fuse.ReadIn{InHeader: header(id), Fh: fh, Size: 1, Flags: c.flags}, make([]byte, 1))
		k.must(st, "read")
		result.Done()
		if stamped := k.attr(id).Atime != c.atime; stamped != c.stamped {
			t.Errorf("%s: stamped %v, want %v", c.what, stamped, c.stamped)
		}
	}
}

// TestSetID: setuid, setgid and capabilities go where Linux has them go.
func TestSetID(t *testing.T) {
	k := newKernel(t)
	id, fh := k.mustCreate(root, "f")
	kill := func(in *fuse.SetAttrIn) {}
	for _, c := range []struct {
		what       string
		mode, want uint32
		keepsCap   bool
		do         func() fuse.Status
	}{
		{"chown", 0o6755, 0o755, false, func() fuse.Status {
			return k.setattr(id, fuse.FATTR_UID|fuse.FATTR_KILL_SUIDGID, kill)
		}},
		{"truncate", 0o6755, 0o755, false, func() fuse.Status {
			return k.setattr(id, fuse.FATTR_SIZE|fuse.FATTR_KILL_SUIDGID, kill)
		}},
		{"truncate by root", 0o6755, 0o6755, false, func() fuse.Status { return k.setattr(id, fuse.FATTR_SIZE, kill) }},
		{"write", 0o6755, 0o755, false, func() fuse.Status {
			return k.write(id, fh, 0, []byte("x"), fuse.WRITE_KILL_SUIDGID)
		}},
		{"write with setgid as a mark", 0o6745, 0o2745, false, func() fuse.Status {
			return k.write(id, fh, 0, []byte("x"), fuse.WRITE_KILL_SUIDGID)
		}},
		{"late write-back", 0o6755, 0o6755, true, func() fuse.Status {
			return k.write(id, fh, 0, []byte("x"), fuse.WRITE_CACHE)
		}},
		{"chmod", 0o6755, 0o4711, true, func() fuse.Status {
			return k.setattr(id, fuse.FATTR_MODE, func(in *fuse.SetAttrIn) { in.Mode = 0o4711 })
		}},
	} {
		k.chmod(id, c.mode)
		k.must(k.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: header(id)}, xattrCapability, []byte("caps")), "setxattr")
		k.must(c.do(), c.what)
		if got := k.attr(id).Mode & permMask; got != c.want {
			t.Errorf("%s: mode %o became %o, want %o", c.what, c.mode, got, c.want)
		}
		in := header(id)
		if _, st := k.GetXAttr(nil, &in, xattrCapability, nil); (st == fuse.ERANGE) != c.keepsCap {
			t.Errorf("%s: capability %v, want it kept: %v", c.what, st, c.keepsCap)
		}
	}
}

// TestSetgidWithoutExecution: setgid of a file that its group cannot execute goes unless the caller is of that group or has
// CAP_FSETID, which /proc tells of a caller that is there.
func TestSetgidWithoutExecution(t *testing.T) {
	k := newKernel(t)
	id, fh := k.mustCreate(root, "f")
	k.must(k.setattr(id, fuse.FATTR_GID, func(in *fuse.SetAttrIn) { in.Gid = 77 }), "chown")
	self := fuse.Caller{Owner: fuse.Owner{Uid: 1, Gid: 1}, Pid: uint32(os.Getpid())}
	_, capable := credentials(self)
	for _, c := range []struct {
		what   string
		caller fuse.Caller
		keeps  bool
	}{
		{"of the group", fuse.Caller{Owner: fuse.Owner{Uid: 1, Gid: 77}}, true},
		{"of another", fuse.Caller{Owner: fuse.Owner{Uid: 1, Gid: 1}}, false},
		{"root", fuse.Caller{}, true},
		{"this process", self, capable},
	} {
		k.chmod(id, 0o6765)
		in := fuse.WriteIn{InHeader: header(id), Fh: fh, Size: 1, WriteFlags: fuse.WRITE_KILL_SUIDGID}
		in.Caller = c.caller
		_, st := k.Write(nil, &in, []byte("x"))
		k.must(st, "write")
		if got := k.attr(id).Mode & permMask; (got == 0o2765) != c.keeps || got&syscall.S_ISUID != 0 {
			t.Errorf("%s: mode %o, setgid stays is to be %v", c.what, got, c.keeps)
		}
		k.chmod(id, 0o6765)
		alloc := fuse.FallocateIn{InHeader: header(id), Fh: fh, Length: 10}
		alloc.Caller = c.caller
		k.must(k.Fallocate(nil, &alloc), "fallocate")
		want := uint32(0o765)
		switch {
		case c.what == "root" || c.what == "this process" && capable:
			want = 0o6765
		case c.keeps:
			want = 0o2765
		}
		if got := k.attr(id).Mode & permMask; got != want {
			t.Errorf("fallocate, %s: mode %o, want %o", c.what, got, want)
		}
	}
}

// TestChownNothing: chown(2) with neither user nor group reaches us as a change of ctime alone.
func TestChownNothing(t *testing.T) {
	k := newKernel(t)
	id, _ := k.mustCreate(root, "f")
	k.must(k.setattr(id, fuse.FATTR_UID, func(in *fuse.SetAttrIn) { in.Uid = 5 }), "chown")
	for _, c := range []struct {
		uid  uint32
		st   fuse.Status
		want uint32
	}{{6, fuse.EPERM, 0o4755}, {5, fuse.OK, 0o755}, {0, fuse.OK, 0o755}} {
		k.chmod(id, 0o4755)
		k.want(k.setattr(id, fuse.FATTR_CTIME, func(in *fuse.SetAttrIn) { in.Caller.Uid = c.uid }), c.st, "chown by %d", c.uid)
		if got := k.attr(id).Mode & permMask; got != c.want {
			t.Errorf("by %d: mode %o, want %o", c.uid, got, c.want)
		}
	}
}

// TestBirth: statx(2) has all that stat(2) has, and a time of birth that nothing moves.
func TestBirth(t *testing.T) {
	k := newKernel(t)
	id, fh := k.mustCreate(root, "f")
	statx := func(id uint64) (out fuse.StatxOut) {
		t.Helper()
		k.must(k.Statx(nil, &fuse.StatxIn{InHeader: header(id)}, &out), "statx")
		return out
	}
	born := statx(id)
	if born.Mask != unix.STATX_BASIC_STATS|unix.STATX_BTIME || born.Btime != born.Mtime || born.Btime.Sec == 0 {
		t.Errorf("a new file: %+v", born)
	}
	k.must(k.write(id, fh, 0, []byte("bytes"), 0), "write")
	k.chmod(id, 0o600)
	now, attr := statx(id), k.attr(id)
	if now.Btime != born.Btime {
		t.Errorf("born at %v, then at %v", born.Btime, now.Btime)
	}
	if now.Size != attr.Size || uint32(now.Mode) != attr.Mode || now.Ino != id || now.Ctime.Sec != attr.Ctime || now.Ctime.Nsec != attr.Ctimensec {
		t.Errorf("statx says %+v, getattr %+v", now.Statx, attr)
	}
	k.want(k.Statx(nil, &fuse.StatxIn{InHeader: header(12345)}, new(fuse.StatxOut)), fuse.ENOENT, "statx of nothing")
	var control fuse.EntryOut
	in := header(root)
	k.must(k.Lookup(nil, &in, ".proc", &control), "lookup of the control tree")
	if c := statx(control.NodeId); uint32(c.Mode) != control.Attr.Mode || c.Mask&unix.STATX_BTIME != 0 {
		t.Errorf("the control tree: %+v", c)
	}
}

// TestWriterAttributes: the host asks for the attributes of a file again soon while it is open for writing.
func TestWriterAttributes(t *testing.T) {
	k := newKernel(t)
	var out fuse.CreateOut
	k.must(k.Create(nil, &fuse.CreateIn{InHeader: header(root), Flags: syscall.O_WRONLY}, "f", &out), "create")
	timeout := func() time.Duration {
		var a fuse.AttrOut
		k.must(k.GetAttr(nil, &fuse.GetAttrIn{InHeader: header(out.NodeId)}, &a), "getattr")
		return a.Timeout()
	}
	if out.AttrTimeout() != writerCacheTime || timeout() != writerCacheTime {
		t.Errorf("open for writing: time-outs %v and %v, want %v", out.AttrTimeout(), timeout(), writerCacheTime)
	}
	k.release(out.NodeId, out.Fh)
	if timeout() != cacheTime {
		t.Errorf("closed: time-out %v, want %v", timeout(), cacheTime)
	}
}

// TestUmask: the umask is ours to apply, and setgid directories hand their group on.
func TestUmask(t *testing.T) {
	k := newKernel(t)
	dir := k.mustMkdir(root, "d")
	k.must(k.setattr(dir, fuse.FATTR_GID|fuse.FATTR_MODE, func(in *fuse.SetAttrIn) { in.Gid, in.Mode = 42, 0o2777 }), "chown")
	caller := header(dir)
	caller.Uid, caller.Gid = 7, 8
	var file fuse.CreateOut
	k.must(k.Create(nil, &fuse.CreateIn{InHeader: caller, Mode: 0o666, Umask: 0o027}, "f", &file), "create")
	var sub, symlink fuse.EntryOut
	k.must(k.Mkdir(nil, &fuse.MkdirIn{InHeader: caller, Mode: 0o777, Umask: 0o027}, "s", &sub), "mkdir")
	k.must(k.Symlink(nil, &caller, "to/where", "l", &symlink), "symlink")
	for _, c := range []struct {
		id   uint64
		mode uint32
	}{
		{file.NodeId, syscall.S_IFREG | 0o640}, {sub.NodeId, syscall.S_IFDIR | 0o2750}, {symlink.NodeId, syscall.S_IFLNK | 0o777},
	} {
		if a := k.attr(c.id); a.Mode != c.mode || a.Uid != 7 || a.Gid != 42 {
			t.Errorf("mode %o, owner %d:%d; want %o, 7:42", a.Mode, a.Uid, a.Gid, c.mode)
		}
	}
	in := header(symlink.NodeId)
	if target, st := k.Readlink(nil, &in); string(target) != "to/where" || !st.Ok() {
		t.Errorf("readlink: %q, %v", target, st)
	}
	k.release(file.NodeId, file.Fh)
}

// TestSpecial: fifos, sockets and devices are nodes without contents.
func TestSpecial(t *testing.T) {
	k := newKernel(t)
	for i, kind := range []uint32{syscall.S_IFIFO, syscall.S_IFSOCK, syscall.S_IFCHR, syscall.S_IFBLK, syscall.S_IFREG} {
		var out fuse.EntryOut
		in := fuse.MknodIn{InHeader: header(root), Mode: kind | 0o600, Rdev: 0x103}
		k.must(k.Mknod(nil, &in, fmt.Sprint(i), &out), "mknod")
		if out.Attr.Mode != kind|0o600 || out.Attr.Rdev != 0x103 || out.Attr.Nlink != 1 {
			t.Errorf("mknod %o: mode %o, device %x, %d links", kind, out.Attr.Mode, out.Attr.Rdev, out.Attr.Nlink)
		}
	}
	in := fuse.MknodIn{InHeader: header(root), Mode: syscall.S_IFDIR}
	k.want(k.Mknod(nil, &in, "d", new(fuse.EntryOut)), fuse.EINVAL, "mknod of a directory")
	fifo, _ := k.lookup(root, "0")
	k.want(k.setattr(fifo, fuse.FATTR_SIZE, func(*fuse.SetAttrIn) {}), fuse.EINVAL, "truncate a fifo")
	k.want(k.setattr(root, fuse.FATTR_SIZE, func(*fuse.SetAttrIn) {}), fuse.EISDIR, "truncate a directory")
	k.want(k.Open(nil, &fuse.OpenIn{InHeader: header(root)}, new(fuse.OpenOut)), fuse.EISDIR, "open a directory")
}

// TestNodeMemory: what a node is charged is what it costs, contents and name not counted.
func TestNodeMemory(t *testing.T) {
	const n = 20000
	k := newKernel(t, func(o *Options) { o.Inodes = n })
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("%08d", i)
	}
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	before := heap()
	for i, name := range names {
		k.Forget(k.touch(root, name), 1)
		if i%4 == 3 { // as a directory that things come and go in
			k.must(k.unlink(root, names[i-1]), "unlink")
		}
	}
	used, _ := k.inodeCounts()
	if each := (heap() - before) / used; each > mm.InodeBytes {
		t.Errorf("a small file costs %d bytes, charged are %d", each, mm.InodeBytes)
	} else {
		t.Logf("a small file costs %d bytes, charged are %d", each, mm.InodeBytes)
	}
	runtime.KeepAlive(names)
}

// TestTogether: everything at once, from several threads. What is left must add up, and nothing may leak.
func TestTogether(t *testing.T) {
	k := newKernel(t)
	dirs := []uint64{root, k.mustMkdir(root, "a"), k.mustMkdir(root, "b")}
	var wait sync.WaitGroup
	for g := range 4 {
		wait.Go(func() { k.bustle(dirs, g) })
	}
	wait.Wait()
	checkTree(t, k)
}

// bustle does a bit of everything, deaf to errors: names are fought over.
func (k *kernel) bustle(dirs []uint64, seed int) {
	for i := range 300 {
		dir, other := dirs[(i+seed)%len(dirs)], dirs[i%len(dirs)]
		name, next := fmt.Sprintf("n%d", i%7), fmt.Sprintf("n%d", (i*seed)%7)
		if id, fh, st := k.create(dir, name); st.Ok() {
			k.write(id, fh, int64(i)*1000, make([]byte, 5000), fuse.WRITE_CACHE)
			k.link(id, other, next)
			k.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: header(id)}, "user.x", make([]byte, i))
			k.read(id, fh, 0, 8192)
			k.release(id, fh)
			k.Forget(id, uint64(1+i%2))
		}
		k.rename(dir, name, other, next, uint32(i%3))
		k.ReadDirPlus(nil, &fuse.ReadIn{InHeader: header(other)}, fuse.NewDirEntryList(make([]byte, 2048), 0))
		if id, st := k.lookup(other, next); st.Ok() && id != 0 {
			k.attr(id)
			k.nodes.get(id).path()
			if i%5 == 0 {
				k.setattr(id, fuse.FATTR_SIZE, func(*fuse.SetAttrIn) {})
			}
		}
		if sub, st := k.mkdir(other, "sub"); st.Ok() {
			k.Forget(sub, 1)
		}
		k.rmdir(dir, "sub")
		k.unlink(dir, next)
	}
}

// TestGate: an LSEEK sees what programs have written, and only so many wait for that.
func TestGate(t *testing.T) {
	l := &waitingLaunderer{proceed: make(chan struct{}), asked: make(chan uint64, 10)}
	l.answer = syscall.ENOSPC // as after a refused WRITE: not ours to report here
	k := newKernel(t, func(o *Options) {})
	k.seeks = make(ctl.Gate, 2)
	id, fh := k.mustCreate(root, "f")
	seek := func() fuse.Status {
		var out fuse.LseekOut
		return k.Lseek(nil, &fuse.LseekIn{InHeader: header(id), Fh: fh, Whence: unix.SEEK_DATA}, &out)
	}
	k.want(seek(), fuse.ENOSYS, "lseek while it is unknown what programs have written")

	k.setLaunderer(l)
	l.writeBack = func() { k.write(id, fh, 0, []byte("data"), fuse.WRITE_CACHE) }
	answers := make(chan fuse.Status)
	for range 2 {
		go func() { answers <- seek() }()
	}
	for range 2 {
		if node := <-l.asked; node != id {
			t.Errorf("write-back of node %d, want %d", node, id)
		}
	}
	k.want(seek(), fuse.EBUSY, "one lseek too many")
	close(l.proceed)
	for range 2 {
		k.want(<-answers, fuse.OK, "lseek")
	}
	l.answer = errors.New("the child is gone")
	k.want(seek(), fuse.ENOSYS, "lseek when nothing can be written back")
	<-l.asked
	if err := k.nodes.get(id).WriteBack(0, -1); err != nil {
		t.Errorf("the trimmer hears of the launderer's trouble (%v), though it can go on", err)
	}
	<-l.asked
	k.release(id, fh)
	k.want(seek(), fuse.OK, "lseek of a file that is open nowhere for writing")
	if len(l.asked) != 0 {
		t.Error("a file that is open nowhere for writing was written back")
	}
	k.shutdown()
	if !l.closed {
		t.Error("the launderer is still there after the end of the mount")
	}
}

// waitingLaunderer does nothing until it may proceed.
type waitingLaunderer struct {
	proceed   chan struct{}
	asked     chan uint64
	writeBack func()
	answer    error
	closed    bool
}

func (l *waitingLaunderer) WriteBack(node uint64, off, n int64) error {
	l.asked <- node
	<-l.proceed
	l.writeBack()
	return l.answer
}

func (l *waitingLaunderer) Truncate(node uint64, size int64) error { return l.answer }
func (l *waitingLaunderer) Extend(node uint64, size int64) error   { return l.answer }

func (l *waitingLaunderer) Close() error {
	l.closed = true
	return nil
}

// TestHostErrors: what an Invalidate or WriteBack may pass over.
func TestHostErrors(t *testing.T) {
	for err, passed := range map[error]bool{
		syscall.ENOENT: true, syscall.ESTALE: true, syscall.ENODEV: true, syscall.ENOSPC: false, syscall.EIO: false,
		errors.New("the child is gone"): false,
	} {
		if got := except(fmt.Errorf("write-back: %w", err), notCached) == nil; got != passed {
			t.Errorf("%v passed over: %v, want %v", err, got, passed)
		}
	}
}
