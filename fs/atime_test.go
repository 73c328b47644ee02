package fs

import (
	"slices"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestAccessTimeFlags: the flags of the mount say which reads stamp atime, at the mount and after a remount.
func TestAccessTimeFlags(t *testing.T) {
	k := newKernel(t)
	file, fh := k.mustCreate(root, "f")
	dir := k.mustMkdir(root, "d")
	now := uint64(time.Now().Unix())
	read := func(id uint64) {
		if id == file {
			result, st := k.Read(nil, &fuse.ReadIn{InHeader: header(id), Fh: fh, Size: 1}, make([]byte, 1))
			k.must(st, "read")
			result.Done()
			return
		}
		list := fuse.NewDirEntryList(make([]byte, 4096), 0)
		k.must(k.ReadDir(nil, &fuse.ReadIn{InHeader: header(id), Size: 4096}, list), "readdir")
	}
	// stamped sets the times and reads: fresh is an atime later than mtime, which relatime leaves alone.
	stamped := func(id uint64, fresh bool) bool {
		atime, mtime := now-100, now-10
		if fresh {
			atime, mtime = mtime, atime
		}
		k.must(k.setattr(id, fuse.FATTR_ATIME|fuse.FATTR_MTIME|fuse.FATTR_CTIME, func(in *fuse.SetAttrIn) {
			in.Atime, in.Mtime, in.Ctime = atime, mtime, mtime
		}), "utimens")
		read(id)
		return k.attr(id).Atime != atime
	}
	server := &Server{fs: k.fileSystem}
	for _, c := range []struct {
		what                  string
		flags                 uintptr
		staleFile, staleDir   bool
		strictFile, strictDir bool // also when atime is fresh
	}{
		{"none", 0, true, true, false, false},
		{"relatime", unix.MS_RELATIME, true, true, false, false},
		{"strictatime", unix.MS_STRICTATIME, true, true, true, true},
		{"strictatime,nodiratime", unix.MS_STRICTATIME | unix.MS_NODIRATIME, true, false, true, false},
		{"nodiratime", unix.MS_NODIRATIME, true, false, false, false},
		{"noatime", unix.MS_NOATIME, false, false, false, false},
		{"ro", unix.MS_RDONLY, false, false, false, false},
		{"nosuid", unix.MS_NOSUID, true, true, false, false},
	} {
		server.SetFlags(c.flags)
		got := []bool{stamped(file, false), stamped(dir, false), stamped(file, true), stamped(dir, true)}
		if want := []bool{c.staleFile, c.staleDir, c.strictFile, c.strictDir}; !slices.Equal(got, want) {
			t.Errorf("%s: stamped %v, want %v (file and directory with a stale atime, with a fresh one)", c.what, got, want)
		}
	}
}

// TestMountFlags: the flags reach mount(2) as they are, and fusermount3 in its words.
func TestMountFlags(t *testing.T) {
	const flags = unix.MS_RDONLY | unix.MS_NOEXEC | unix.MS_STRICTATIME | unix.MS_NOSUID
	for _, c := range []struct {
		direct bool
		flags  uintptr
		want   uintptr
		words  []string
	}{
		{true, 0, unix.MS_MGC_VAL, []string{"default_permissions"}},
		{true, flags, flags, []string{"default_permissions"}},
		{false, 0, 0, []string{"default_permissions"}},
		{false, flags | unix.MS_NOATIME, 0, []string{"default_permissions", "ro", "noexec", "noatime"}},
	} {
		k := newKernel(t, func(o *Options) { o.DirectMount, o.Flags, o.Source = c.direct, c.flags, "spec" })
		o := k.mountOptions()
		if o.DirectMountFlags != c.want || o.DirectMountStrict != c.direct || o.FsName != "spec" ||
			!slices.Equal(o.Options, c.words) {
			t.Errorf("%+v: flags %#x, strict %v, options %q of %q", c, o.DirectMountFlags, o.DirectMountStrict, o.Options, o.FsName)
		}
	}
}
