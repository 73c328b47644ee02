package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// posixCases are cases about POSIX that go-fuse's posixtest does not have. Each gets an empty directory. They say
// nothing about which file system it is on: what tmpfs does is right.
var posixCases = map[string]func(t *testing.T, dir string){
	"SparseToTheEnd":        sparseToTheEnd,
	"SparseMiddle":          sparseMiddle,
	"HardLinks":             hardLinks,
	"RenameOver":            renameOver,
	"RenameDirectories":     renameDirectories,
	"RenameExchange":        renameExchange,
	"UnlinkWhileOpen":       unlinkWhileOpen,
	"TruncateBothWays":      truncateBothWays,
	"TruncateMapped":        truncateMapped,
	"TimesNanoseconds":      timesNanoseconds,
	"TimesMove":             timesMove,
	"StatfsTruth":           statfsTruth,
	"InodesRunOut":          inodesRunOut,
	"FallocatePlain":        fallocatePlain,
	"FallocateKeepSizeEnd":  fallocateKeepSizeEnd,
	"PunchHole":             punchHole,
	"SeekHoleData":          seekHoleData,
	"SeekUnwritten":         seekUnwritten,
	"Blocks":                blocks,
	"Symlinks":              symlinks,
	"ChmodChown":            chmodChown,
	"Permissions":           permissions,
	"AppendFromMany":        appendFromMany,
	"WriteFromMany":         writeFromMany,
	"HugeDirectory":         hugeDirectory,
	"NamesAndErrors":        namesAndErrors,
	"DirectoryLinks":        directoryLinks,
	"OpenFlags":             openFlags,
	"RandomAgainstModel":    randomAgainstModel,
	"CopyFileRange":         copyFileRange,
	"VectoredAndPositional": vectoredAndPositional,
	"DeepTree":              deepTree,
	"LocksBetweenProcesses": locksBetweenProcesses,
}

func create(t testing.TB, name string) *os.File {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func writeAt(t testing.TB, f *os.File, b []byte, off int64) {
	t.Helper()
	if n, err := f.WriteAt(b, off); n != len(b) || err != nil {
		t.Fatalf("write of %d bytes at %d: %d %v", len(b), off, n, err)
	}
}

func wantAt(t testing.TB, f *os.File, off int64, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := f.ReadAt(got, off); n != len(want) {
		t.Errorf("read of %d bytes at %d: %d %v", len(want), off, n, err)
	} else if at := firstDifference(got, want); at >= 0 {
		t.Errorf("read at %d: byte %d is %#x, want %#x", off, at, got[at], want[at])
	}
}

func stat(t testing.TB, name string) (st unix.Stat_t) {
	t.Helper()
	if err := unix.Lstat(name, &st); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return st
}

func wantSize(t testing.TB, f *os.File, want int64) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Fstat(int(f.Fd()), &st))
	if st.Size != want {
		t.Errorf("size is %d, want %d", st.Size, want)
	}
}

// sparseToTheEnd writes the very last byte that a file can have, at 8 EiB − 2.
func sparseToTheEnd(t *testing.T, dir string) {
	f := create(t, filepath.Join(dir, "f"))
	const last = math.MaxInt64 - 1
	writeAt(t, f, []byte{1}, 0)
	writeAt(t, f, []byte{2}, last)
	wantSize(t, f, math.MaxInt64)
	must(t, f.Sync())
	wantAt(t, f, 0, []byte{1, 0})
	wantAt(t, f, last-5, []byte{0, 0, 0, 0, 0, 2})
	wantAt(t, f, 1<<62, make([]byte, 4096))
	if n, err := unix.Pread(int(f.Fd()), make([]byte, 1), last+1); n > 0 {
		t.Errorf("read past the last byte: %d %v", n, err)
	}
	if _, err := unix.Pwrite(int(f.Fd()), []byte{3}, math.MaxInt64); err == nil {
		t.Error("a byte past 8 EiB − 1 was written")
	}
	var st unix.Stat_t
	must(t, unix.Fstat(int(f.Fd()), &st))
	if st.Blocks > 64 {
		t.Errorf("two pages take %d blocks", st.Blocks)
	}
	must(t, f.Truncate(1<<40))
	wantAt(t, f, 1<<40-2, []byte{0, 0})
	must(t, f.Truncate(math.MaxInt64))
	wantAt(t, f, last, []byte{0})
	must(t, f.Truncate(0))
	wantSize(t, f, 0)
}

// sparseMiddle writes into holes, across page boundaries, and reads around.
func sparseMiddle(t *testing.T, dir string) {
	f := create(t, filepath.Join(dir, "f"))
	for _, off := range []int64{5000, 1 << 20, 1<<30 - 1, 1<<40 + 4095} {
		b := block(int(off%1000), 9000)
		writeAt(t, f, b, off)
		wantAt(t, f, off-1, append([]byte{0}, b...))
		wantSize(t, f, off+9000)
	}
	must(t, f.Sync())
	wantAt(t, f, 1<<35, make([]byte, 1<<16))
	wantAt(t, f, 1<<40+4095, block(int((1<<40+4095)%1000), 9000))
}

func hardLinks(t *testing.T, dir string) {
	a, b, sub := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "sub")
	must(t, os.WriteFile(a, []byte("one"), 0o600))
	must(t, os.Link(a, b))
	must(t, os.Mkdir(sub, 0o755))
	must(t, os.Link(b, filepath.Join(sub, "c")))
	if st := stat(t, a); st.Nlink != 3 || st.Ino != stat(t, filepath.Join(sub, "c")).Ino {
		t.Errorf("three names: %d links", st.Nlink)
	}
	must(t, os.WriteFile(b, []byte("two and more"), 0o600))
	wantFile(t, a, []byte("two and more"))
	must(t, os.Remove(a))
	wantFile(t, filepath.Join(sub, "c"), []byte("two and more"))
	if st := stat(t, b); st.Nlink != 2 {
		t.Errorf("two names: %d links", st.Nlink)
	}
	wantErrno(t, "link of a directory", os.Link(sub, filepath.Join(dir, "d")), unix.EPERM)
	wantErrno(t, "link over a name", os.Link(b, filepath.Join(sub, "c")), unix.EEXIST)
	must(t, os.Rename(b, filepath.Join(sub, "c"))) // two names of one file: nothing happens
	if st := stat(t, b); st.Nlink != 2 {
		t.Errorf("after renaming a link over its twin: %d links", st.Nlink)
	}
}

func renameOver(t *testing.T, dir string) {
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	must(t, os.WriteFile(a, []byte("new"), 0o644))
	must(t, os.WriteFile(b, []byte("old"), 0o644))
	old, err := os.Open(b)
	must(t, err)
	defer old.Close()
	must(t, os.Rename(a, b))
	wantFile(t, b, []byte("new"))
	wantAt(t, old, 0, []byte("old"))
	wantEntries(t, dir, "b")
	must(t, os.WriteFile(a, []byte("newer"), 0o644))
	wantErrno(t, "renameat2 NOREPLACE over a name", unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_NOREPLACE), unix.EEXIST)
	must(t, unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, filepath.Join(dir, "c"), unix.RENAME_NOREPLACE))
	wantEntries(t, dir, "b", "c")
}

func renameDirectories(t *testing.T, dir string) {
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.MkdirAll(at("a/b/c"), 0o755))
	must(t, os.MkdirAll(at("x/y"), 0o755))
	must(t, os.WriteFile(at("a/b/f"), []byte("f"), 0o644))
	wantErrno(t, "rename into itself", syscall.Rename(at("a"), at("a/b/c/a")), unix.EINVAL)
	wantErrno(t, "rename over a directory with entries", syscall.Rename(at("x"), at("a")), unix.ENOTEMPTY)
	wantErrno(t, "rename of a directory over a file", syscall.Rename(at("x"), at("a/b/f")), unix.ENOTDIR)
	wantErrno(t, "rename of a file over a directory", syscall.Rename(at("a/b/f"), at("x")), unix.EISDIR)
	wantErrno(t, "rename of nothing", syscall.Rename(at("none"), at("x")), unix.ENOENT)
	must(t, syscall.Rename(at("a/b"), at("x/y"))) // over an empty directory, which os.Rename refuses itself
	wantFile(t, at("x/y/f"), []byte("f"))
	wantEntries(t, at("a"))
	wantEntries(t, at("x"), "y")
	wantFile(t, at("x/y/../y/c/../f"), []byte("f"))
	if n := stat(t, at("a")).Nlink; n != 2 {
		t.Errorf("an empty directory has %d links", n)
	}
}

func renameExchange(t *testing.T, dir string) {
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	must(t, os.WriteFile(a, []byte("file"), 0o644))
	must(t, os.MkdirAll(filepath.Join(b, "sub"), 0o755))
	must(t, unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE))
	wantFile(t, b, []byte("file"))
	wantEntries(t, a, "sub")
}

func unlinkWhileOpen(t *testing.T, dir string) {
	name := filepath.Join(dir, "f")
	f := create(t, name)
	data := block(1, 1<<20)
	writeAt(t, f, data, 0)
	must(t, os.Remove(name))
	wantEntries(t, dir)
	wantAt(t, f, 0, data)
	writeAt(t, f, []byte("more"), 2<<20)
	must(t, f.Sync())
	wantAt(t, f, 2<<20-4, []byte("\x00\x00\x00\x00more"))
	must(t, f.Truncate(10))
	wantAt(t, f, 0, data[:10])
	var st unix.Stat_t
	must(t, unix.Fstat(int(f.Fd()), &st))
	if st.Nlink != 0 || st.Size != 10 {
		t.Errorf("%d links and %d bytes, want 0 and 10", st.Nlink, st.Size)
	}
	if _, err := os.Stat(name); !errors.Is(err, unix.ENOENT) {
		t.Errorf("stat of the name: %v", err)
	}
	create(t, name) // the name is free
}

func truncateBothWays(t *testing.T, dir string) {
	name := filepath.Join(dir, "f")
	f := create(t, name)
	data := block(2, 100_000)
	writeAt(t, f, data, 0)
	for _, size := range []int64{99_999, 65_536, 65_535, 4097, 4096, 1, 0} {
		must(t, f.Truncate(size))
		wantSize(t, f, size)
		wantAt(t, f, 0, data[:size])
		must(t, f.Truncate(100_000)) // what was cut off is zeros, not what it was
		wantAt(t, f, 0, append(bytes.Clone(data[:size]), make([]byte, 100_000-size)...))
		must(t, f.Truncate(size))
		writeAt(t, f, data[size:], size)
		wantAt(t, f, 0, data)
	}
	must(t, f.Truncate(0))
	must(t, f.Truncate(1<<33))
	wantAt(t, f, 1<<32, make([]byte, 10))
	wantErrno(t, "truncate to a negative size", unix.Ftruncate(int(f.Fd()), -1), unix.EINVAL)
	must(t, os.Truncate(name, 5))
	wantSize(t, f, 5)
	must(t, f.Close())
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
	must(t, err)
	wantSize(t, f, 0)
	must(t, f.Close())
}

// truncateMapped cuts a file that is mapped: beyond the end of the last page nothing shows, and after growing again the
// mapping shows zeros.
func truncateMapped(t *testing.T, dir string) {
	f := create(t, filepath.Join(dir, "f"))
	writeAt(t, f, block(3, 64<<10), 0)
	p, err := unix.Mmap(int(f.Fd()), 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(p)
	p[20_000] = 7
	must(t, f.Truncate(10_000))
	if !bytes.Equal(p[:10_000], block(3, 10_000)) {
		t.Error("the mapping does not show what is left")
	}
	if !bytes.Equal(p[10_000:12_288], make([]byte, 2288)) {
		t.Error("the rest of the last page is not zeros")
	}
	must(t, f.Truncate(64<<10))
	if !bytes.Equal(p[10_000:], make([]byte, 64<<10-10_000)) {
		t.Error("what was cut off and grown again is not zeros")
	}
	p[40_000] = 9
	wantAt(t, f, 39_999, []byte{0, 9, 0})
}

func timesNanoseconds(t *testing.T, dir string) {
	name := filepath.Join(dir, "f")
	must(t, os.WriteFile(name, []byte("x"), 0o644))
	set := func(atime, mtime unix.Timespec) {
		t.Helper()
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{atime, mtime}, unix.AT_SYMLINK_NOFOLLOW))
	}
	want := func(atime, mtime unix.Timespec) {
		t.Helper()
		if st := stat(t, name); st.Atim != atime || st.Mtim != mtime {
			t.Errorf("times are %v and %v, want %v and %v", st.Atim, st.Mtim, atime, mtime)
		}
	}
	a, b := unix.Timespec{Sec: 1_234_567_890, Nsec: 123_456_789}, unix.Timespec{Sec: 4_000_000_000, Nsec: 999_999_999}
	set(a, b)
	want(a, b)
	set(unix.Timespec{Nsec: unix.UTIME_OMIT}, a)
	want(a, a)
	set(b, unix.Timespec{Nsec: unix.UTIME_OMIT})
	want(b, a)
	before := time.Now().Add(-time.Second)
	set(unix.Timespec{Nsec: unix.UTIME_NOW}, unix.Timespec{Nsec: unix.UTIME_NOW})
	st := stat(t, name)
	for _, ts := range []unix.Timespec{st.Atim, st.Mtim, st.Ctim} {
		if at := time.Unix(ts.Unix()); at.Before(before) || at.After(time.Now().Add(time.Second)) {
			t.Errorf("UTIME_NOW gave %v", at)
		}
	}
	set(a, unix.Timespec{Sec: -1, Nsec: 5})
	want(a, unix.Timespec{Sec: -1, Nsec: 5})
}

// timesMove checks which operation moves which time.
func timesMove(t *testing.T, dir string) {
	name := filepath.Join(dir, "f")
	f := create(t, name)
	old := unix.Timespec{Sec: 1_000_000_000, Nsec: 1}
	reset := func() {
		t.Helper()
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{old, old}, 0))
		time.Sleep(15 * time.Millisecond) // the kernel's clock for times moves in ticks
	}
	moved := func(what string, mtime, ctime bool, f func()) {
		t.Helper()
		reset()
		before := stat(t, name)
		f()
		after := stat(t, name)
		if got := after.Mtim != before.Mtim; got != mtime {
			t.Errorf("%s: mtime moved is %v, want %v", what, got, mtime)
		}
		if got := after.Ctim != before.Ctim; got != ctime {
			t.Errorf("%s: ctime moved is %v, want %v", what, got, ctime)
		}
	}
	moved("write", true, true, func() { writeAt(t, f, []byte("hello"), 0) })
	moved("read", false, false, func() { wantAt(t, f, 0, []byte("hello")) })
	moved("truncate", true, true, func() { must(t, f.Truncate(3)) })
	moved("chmod", false, true, func() { must(t, f.Chmod(0o600)) })
	moved("link", false, true, func() { must(t, os.Link(name, name+"2")) })
	moved("unlink of a link", false, true, func() { must(t, os.Remove(name+"2")) })
	moved("rename", false, true, func() { must(t, os.Rename(name, name+"3")); must(t, os.Rename(name+"3", name)) })
	moved("fallocate", true, true, func() { must(t, unix.Fallocate(int(f.Fd()), 0, 0, 10_000)) })
	moved("fsync", false, false, func() { must(t, f.Sync()) })

	directory := func(what string, want bool, f func()) {
		t.Helper()
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, dir, []unix.Timespec{old, old}, 0))
		f()
		if got := stat(t, dir).Mtim != old; got != want {
			t.Errorf("%s: the directory's mtime moved is %v, want %v", what, got, want)
		}
	}
	directory("create", true, func() { create(t, filepath.Join(dir, "g")) })
	directory("unlink", true, func() { must(t, os.Remove(filepath.Join(dir, "g"))) })
	directory("mkdir", true, func() { must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755)) })
	directory("write to a file", false, func() { writeAt(t, f, []byte("again"), 0) })
	directory("rename", true, func() { must(t, os.Rename(filepath.Join(dir, "d"), filepath.Join(dir, "e"))) })
	directory("rmdir", true, func() { must(t, os.Remove(filepath.Join(dir, "e"))) })
}

// statfsTruth writes a megabyte and expects statfs to say so.
func statfsTruth(t *testing.T, dir string) {
	var before, after, removed unix.Statfs_t
	// The kernel forgets the files of earlier cases when it pleases.
	within(5*time.Second, func() bool {
		must(t, unix.Statfs(dir, &after))
		time.Sleep(100 * time.Millisecond)
		must(t, unix.Statfs(dir, &before))
		return before.Ffree == after.Ffree
	})
	if before.Bfree > before.Blocks || before.Bavail > before.Bfree || before.Blocks == 0 {
		t.Errorf("%d blocks, %d free, %d available", before.Blocks, before.Bfree, before.Bavail)
	}
	if size := int64(before.Blocks) * before.Bsize; size < 64<<20 || size > 256<<20 {
		t.Errorf("the file system claims %d MiB", size>>20)
	}
	if before.Ffree > before.Files || before.Files != posixInodes && before.Files != 0 {
		t.Errorf("%d inodes, %d free, want %d in all", before.Files, before.Ffree, posixInodes)
	}
	if before.Namelen != 255 {
		t.Errorf("names may be %d long, want 255", before.Namelen)
	}
	name := filepath.Join(dir, "f")
	const size = 8 << 20
	must(t, writeContent(name, 1, size))
	must(t, unix.Statfs(dir, &after))
	took := int64(before.Bavail)*before.Bsize - int64(after.Bavail)*after.Bsize
	if took < size || took > size+size/16 {
		t.Errorf("8 MiB took %d bytes", took)
	}
	if n := before.Ffree - after.Ffree; n != 1 {
		t.Errorf("a file took %d inodes", n)
	}
	must(t, os.Remove(name))
	if !within(2*time.Second, func() bool {
		must(t, unix.Statfs(dir, &removed))
		return removed.Ffree == before.Ffree && removed.Bavail >= before.Bavail-before.Bavail/100
	}) {
		t.Errorf("after removing it %d blocks and %d inodes are free, %d and %d were before",
			removed.Bavail, removed.Ffree, before.Bavail, before.Ffree)
	}
}

// inodesRunOut makes files until there are no inodes left, and then one more after removing one.
func inodesRunOut(t *testing.T, dir string) {
	name := func(i int) string { return filepath.Join(dir, fmt.Sprint(i)) }
	n := 0
	var err error
	for ; n < posixInodes+10; n++ {
		if err = os.WriteFile(name(n), nil, 0o644); err != nil {
			break
		}
	}
	wantErrno(t, fmt.Sprintf("file number %d", n), err, unix.ENOSPC)
	if n < posixInodes-100 {
		t.Errorf("only %d of %d inodes could be used", n, posixInodes)
	}
	wantErrno(t, "mkdir", os.Mkdir(name(-1), 0o755), unix.ENOSPC)
	wantErrno(t, "symlink", os.Symlink("x", name(-1)), unix.ENOSPC)
	must(t, os.Remove(name(0)))
	if !within(2*time.Second, func() bool { return os.WriteFile(name(0), []byte("x"), 0o644) == nil }) {
		t.Error("no inode was free after removing a file")
	}
	wantFile(t, name(0), []byte("x"))
}

func fallocatePlain(t *testing.T, dir string) {
	f := create(t, filepath.Join(dir, "f"))
	writeAt(t, f, []byte("start"), 0)
	must(t, unix.Fallocate(int(f.Fd()), 0, 0, 1<<20))
	wantSize(t, f, 1<<20)
	wantAt(t, f, 0, append([]byte("start"), make([]byte, 1<<20-5)...))
	must(t, unix.Fallocate(int(f.Fd()), 0, 100, 100)) // inside: nothing changes
	wantSize(t, f, 1<<20)
	wantAt(t, f, 0, []byte("start"))
	var st unix.Stat_t
	must(t, f.Sync())
	must(t, unix.Fstat(int(f.Fd()), &st))
	if st.Blocks != 2048 {
		t.Errorf("1 MiB allocated takes %d blocks, want 2048", st.Blocks)
	}
	wantErrno(t, "fallocate of nothing", unix.Fallocate(int(f.Fd()), 0, 0, 0), unix.EINVAL)
	wantErrno(t, "fallocate of more than there is", unix.Fallocate(int(f.Fd()), 0, 0, 1<<40), unix.ENOSPC)
	wantSize(t, f, 1<<20)
	wantErrno(t, "fallocate past the end of all files", unix.Fallocate(int(f.Fd()), 0, math.MaxInt64-10, 100), unix.EFBIG)
}

func fallocateKeepSizeEnd(t *testing.T, dir string) {
	f := create(t, filepath.Join(dir, "f"))
	must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 1<<20, 1<<20))
	wantSize(t, f, 0)
	if b, err := io.ReadAll(f); err != nil || len(b) != 0 {
		t.Errorf("an empty file reads %d bytes, %v", len(b), err)
	}
	must(t, f.Truncate(3<<20))
	wantAt(t, f, 1<<20, make([]byte, 1<<20))
	data := block(4, 1<<20)
	writeAt(t, f, data, 1<<20)
	must(t, f.Sync())
	wantAt(t, f, 1<<20, data)
}

func punchHole(t *testing.T, dir string) {
	f := create(t, filepath.Join(dir, "f"))
	data := block(5, 256<<10)
	writeAt(t, f, data, 0)
	punch := func(off, n int64) {
		t.Helper()
		must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n))
		for i := off; i < off+n && i < int64(len(data)); i++ {
			data[i] = 0
		}
		wantAt(t, f, 0, data)
		wantSize(t, f, int64(len(data)))
	}
	punch(10, 20)              // inside a page
	punch(8192, 4096)          // a page
	punch(20_000, 30_000)      // with both edges inside pages
	punch(100_000, 1<<40)      // past the end
	punch(0, 1)                // the first byte
	punch(int64(1<<41), 1<<20) // beyond it all
	must(t, f.Sync())
	wantAt(t, f, 0, data)
	writeAt(t, f, []byte("again"), 30_000)
	copy(data[30_000:], "again")
	wantAt(t, f, 0, data)
	wantErrno(t, "punching without KEEP_SIZE", unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE, 0, 10), unix.EOPNOTSUPP)
}

// wantSeek fails the test unless lseek finds that offset; -1 stands for ENXIO.
func wantSeek(t testing.TB, f *os.File, off int64, whence int, want int64) {
	t.Helper()
	name := map[int]string{unix.SEEK_DATA: "SEEK_DATA", unix.SEEK_HOLE: "SEEK_HOLE"}[whence]
	got, err := unix.Seek(int(f.Fd()), off, whence)
	if errors.Is(err, unix.ENXIO) {
		got, err = -1, nil
	}
	if err != nil || got != want {
		t.Errorf("%s from %d: %d %v, want %d", name, off, got, err, want)
	}
}

func seekHoleData(t *testing.T, dir string) {
	f := create(t, filepath.Join(dir, "f"))
	wantSeek(t, f, 0, unix.SEEK_DATA, -1)
	wantSeek(t, f, 0, unix.SEEK_HOLE, -1)
	// pages:  0 . . 3 4 . . . 8 then a hole to 20
	for _, page := range []int64{0, 3, 4, 8} {
		writeAt(t, f, block(6, 4096), page*4096)
	}
	must(t, f.Truncate(20*4096))
	must(t, f.Sync())
	const p = 4096
	for _, c := range []struct{ off, data, hole int64 }{
		{0, 0, p}, {100, 100, p}, {p, 3 * p, p}, {2*p + 5, 3 * p, 2*p + 5}, {3 * p, 3 * p, 5 * p}, {4*p + 1, 4*p + 1, 5 * p},
		{5 * p, 8 * p, 5 * p}, {8*p + 4095, 8*p + 4095, 9 * p}, {9 * p, -1, 9 * p}, {20*p - 1, -1, 20*p - 1}, {20 * p, -1, -1}, {1 << 40, -1, -1},
	} {
		wantSeek(t, f, c.off, unix.SEEK_DATA, c.data)
		wantSeek(t, f, c.off, unix.SEEK_HOLE, c.hole)
	}
	// With data in the last page the end of the file is the hole.
	writeAt(t, f, []byte("end"), 20*p+100)
	wantSeek(t, f, 9*p, unix.SEEK_DATA, 20*p)
	wantSeek(t, f, 20*p, unix.SEEK_HOLE, 20*p+103)
	must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 3*p, 2*p))
	wantSeek(t, f, p, unix.SEEK_DATA, 8*p)
	wantSeek(t, f, 0, unix.SEEK_HOLE, p)
	// Zeros that were written are data.
	writeAt(t, f, make([]byte, p), 6*p)
	wantSeek(t, f, 5*p, unix.SEEK_DATA, 6*p)
	wantErrno(t, "SEEK_DATA from before the start", errOf(unix.Seek(int(f.Fd()), -1, unix.SEEK_DATA)), unix.ENXIO)
}

func errOf[T any](_ T, err error) error { return err }

// seekUnwritten looks for data that only the host kernel has yet, written and stored, through another descriptor too.
func seekUnwritten(t *testing.T, dir string) {
	name := filepath.Join(dir, "f")
	f := create(t, name)
	must(t, f.Truncate(1<<20))
	other, err := os.Open(name)
	must(t, err)
	defer other.Close()
	const p = 4096
	wantSeek(t, other, 0, unix.SEEK_DATA, -1)
	writeAt(t, f, []byte("x"), 10*p+7)
	for _, g := range []*os.File{f, other} {
		wantSeek(t, g, 0, unix.SEEK_DATA, 10*p)
		wantSeek(t, g, 0, unix.SEEK_HOLE, 0)
		wantSeek(t, g, 10*p, unix.SEEK_HOLE, 11*p)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(m)
	m[50*p] = 1
	for _, g := range []*os.File{f, other} {
		wantSeek(t, g, 11*p, unix.SEEK_DATA, 50*p)
		wantSeek(t, g, 50*p, unix.SEEK_HOLE, 51*p)
		wantSeek(t, g, 51*p, unix.SEEK_DATA, -1)
	}
}

// blocks checks st_blocks: what was written, not what is between. A FUSE file system can be a moment behind with it, since
// the host kernel asks it only now and then while a file is written.
func blocks(t *testing.T, dir string) {
	name := filepath.Join(dir, "f")
	f := create(t, name)
	want := func(n int64) {
		t.Helper()
		must(t, f.Sync())
		var st unix.Stat_t
		if !within(100*time.Millisecond, func() bool {
			must(t, unix.Fstat(int(f.Fd()), &st))
			return st.Blocks == n
		}) {
			t.Errorf("%d blocks, want %d", st.Blocks, n)
		}
		if st := stat(t, name); st.Blocks != n {
			t.Errorf("by name %d blocks, want %d", st.Blocks, n)
		}
	}
	want(0)
	writeAt(t, f, block(7, 64<<10), 0)
	want(128)
	writeAt(t, f, []byte("x"), 1<<30)
	want(136)
	must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 32<<10))
	want(72)
	must(t, f.Truncate(48<<10))
	want(32)
	must(t, f.Truncate(0))
	want(0)
}

func symlinks(t *testing.T, dir string) {
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, target := range map[string]string{"short": "x", "dangling": "no/where", "long": strings.Repeat("0123456789/", 373)[:4095]} {
		must(t, os.Symlink(target, at(name)))
		if got, err := os.Readlink(at(name)); got != target || err != nil {
			t.Errorf("%s: %d bytes %v, want %d", name, len(got), err, len(target))
		}
		st := stat(t, at(name))
		if st.Size != int64(len(target)) || st.Mode != unix.S_IFLNK|0o777 || st.Nlink != 1 {
			t.Errorf("%s: size %d mode %o", name, st.Size, st.Mode)
		}
	}
	wantErrno(t, "symlink over a name", os.Symlink("y", at("short")), unix.EEXIST)
	wantErrno(t, "open of a dangling link", errOf(os.Open(at("dangling"))), unix.ENOENT)
	must(t, os.Mkdir(at("d"), 0o755))
	must(t, os.Symlink("d", at("tod")))
	must(t, os.WriteFile(at("tod/f"), []byte("through"), 0o644))
	wantFile(t, at("d/f"), []byte("through"))
	must(t, os.Symlink("loop2", at("loop1")))
	must(t, os.Symlink("loop1", at("loop2")))
	wantErrno(t, "a loop", errOf(os.Open(at("loop1"))), unix.ELOOP)
	must(t, os.Link(at("short"), at("hard"))) // a hard link to the symlink itself
	if got, err := os.Readlink(at("hard")); got != "x" || err != nil {
		t.Errorf("the link's link: %q %v", got, err)
	}
}

func chmodChown(t *testing.T, dir string) {
	name := filepath.Join(dir, "f")
	must(t, os.WriteFile(name, nil, 0o644))
	for _, mode := range []uint32{0, 0o7777, 0o4755, 0o600, 0o1777} {
		must(t, unix.Chmod(name, mode))
		if got := stat(t, name).Mode; got != unix.S_IFREG|mode {
			t.Errorf("mode %o, want %o", got, unix.S_IFREG|mode)
		}
	}
	must(t, os.Chown(name, 1234, 5678))
	if st := stat(t, name); st.Uid != 1234 || st.Gid != 5678 {
		t.Errorf("owner %d:%d", st.Uid, st.Gid)
	}
	must(t, os.Chown(name, -1, 4321))
	if st := stat(t, name); st.Uid != 1234 || st.Gid != 4321 {
		t.Errorf("owner %d:%d after changing the group alone", st.Uid, st.Gid)
	}
	must(t, unix.Chmod(name, 0o6755))
	must(t, os.Chown(name, 1, 1))
	if got := stat(t, name).Mode & 0o7777; got != 0o755 {
		t.Errorf("chown left the mode at %o, want set-user-ID and set-group-ID gone", got)
	}
	must(t, os.Symlink("f", filepath.Join(dir, "l")))
	must(t, os.Lchown(filepath.Join(dir, "l"), 7, 8))
	if st := stat(t, filepath.Join(dir, "l")); st.Uid != 7 || st.Gid != 8 {
		t.Errorf("the link's owner %d:%d", st.Uid, st.Gid)
	}
	// A directory with the set-group-ID bit gives its group to what is made in it.
	sub := filepath.Join(dir, "d")
	must(t, os.Mkdir(sub, 0o755))
	must(t, os.Chown(sub, 0, 99))
	must(t, unix.Chmod(sub, 0o2775))
	must(t, os.Mkdir(filepath.Join(sub, "d"), 0o755))
	must(t, os.WriteFile(filepath.Join(sub, "f"), nil, 0o644))
	if st := stat(t, filepath.Join(sub, "d")); st.Gid != 99 || st.Mode&unix.S_ISGID == 0 {
		t.Errorf("a directory below: group %d mode %o", st.Gid, st.Mode)
	}
	if st := stat(t, filepath.Join(sub, "f")); st.Gid != 99 {
		t.Errorf("a file below: group %d", st.Gid)
	}
	old := unix.Umask(0o027)
	err := os.WriteFile(filepath.Join(dir, "masked"), nil, 0o666)
	unix.Umask(old)
	must(t, err)
	if got := stat(t, filepath.Join(dir, "masked")).Mode & 0o7777; got != 0o640 {
		t.Errorf("umask 027 of 666 gave %o", got)
	}
}

// permissions checks what another user may do.
func permissions(t *testing.T, dir string) {
	must(t, os.Chmod(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "secret"), []byte("x"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "open"), []byte("y"), 0o644))
	must(t, os.Mkdir(filepath.Join(dir, "drop"), 0o777))
	must(t, unix.Chmod(filepath.Join(dir, "drop"), 0o1777))
	must(t, os.WriteFile(filepath.Join(dir, "drop", "roots"), nil, 0o666))
	script := `
exec 2>&1
cat secret && echo readable
cat open || echo unreadable
echo z > open && echo writable
echo mine > drop/mine || echo nodrop
rm -f drop/roots && echo removed
touch new && echo made
true`
	out := run(t, "", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", "cd "+dir+" || exit; "+script)
	for _, wrong := range []string{"readable", "unreadable", "writable", "nodrop", "removed", "made"} {
		if slices.Contains(strings.Split(out, "\n"), wrong) {
			t.Errorf("for another user: %s\n%s", wrong, out)
		}
	}
	if st := stat(t, filepath.Join(dir, "drop", "mine")); st.Uid != 65534 || st.Gid != 65534 {
		t.Errorf("what nobody made belongs to %d:%d", st.Uid, st.Gid)
	}
}

// appendFromMany has several descriptors append records at the same time: all of them must be there, whole.
func appendFromMany(t *testing.T, dir string) {
	name := filepath.Join(dir, "log")
	const writers, records = 6, 400
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			for i := range records {
				record := fmt.Sprintf("%d %04d %s\n", w, i, strings.Repeat(string(rune('a'+w)), 10+i%300))
				if _, err := f.WriteString(record); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	next := [writers]int{}
	total := 0
	for line := range strings.Lines(string(mustRead(t, name))) {
		var w, i int
		var rest string
		if n, _ := fmt.Sscanf(line, "%d %d %s", &w, &i, &rest); n != 3 || w < 0 || w >= writers ||
			rest != strings.Repeat(string(rune('a'+w)), 10+i%300) || i != next[w] {
			t.Fatalf("record %d is torn, lost or out of order: %q", total, line)
		}
		next[w]++
		total++
	}
	if total != writers*records {
		t.Errorf("%d records, want %d", total, writers*records)
	}
}

// writeFromMany has several descriptors write neighbouring byte ranges of the same pages.
func writeFromMany(t *testing.T, dir string) {
	name := filepath.Join(dir, "f")
	const writers, size = 4, 2 << 20
	create(t, name)
	want := block(8, size)
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			f, err := os.OpenFile(name, os.O_WRONLY, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			for at := w * 1000; at < size; at += writers * 1000 {
				if _, err := f.WriteAt(want[at:min(size, at+1000)], int64(at)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	wantFile(t, name, want)
}

// hugeDirectory lists a directory of many entries while others come and go: what stays all the time is listed once.
func hugeDirectory(t *testing.T, dir string) {
	stay := 2000
	for i := range stay {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("stay%05d", i)), nil, 0o644))
	}
	var quit atomic.Bool
	var churn sync.WaitGroup
	churn.Go(func() {
		for i := 0; !quit.Load(); i++ {
			name := filepath.Join(dir, fmt.Sprintf("%s%d", []string{"a", "stay0", "z"}[i%3], i%50))
			if err := os.WriteFile(name+"x", nil, 0o644); err != nil {
				t.Error(err)
			}
			if err := os.Rename(name+"x", name+"y"); err != nil {
				t.Error(err)
			}
			if err := os.Remove(name + "y"); err != nil {
				t.Error(err)
			}
		}
	})
	for range 10 {
		f, err := os.Open(dir)
		must(t, err)
		seen := map[string]int{}
		for {
			names, err := f.Readdirnames(37)
			for _, name := range names {
				seen[name]++
			}
			if err != nil {
				break
			}
		}
		f.Close()
		for i := range stay {
			if n := seen[fmt.Sprintf("stay%05d", i)]; n != 1 {
				t.Errorf("stay%05d was listed %d times", i, n)
			}
		}
		if t.Failed() {
			break
		}
	}
	quit.Store(true)
	churn.Wait()
	// Removing while listing, as rm -rf does.
	f, err := os.Open(dir)
	must(t, err)
	defer f.Close()
	for {
		names, err := f.Readdirnames(100)
		for _, name := range names {
			must(t, os.Remove(filepath.Join(dir, name)))
		}
		if err != nil {
			break
		}
	}
	wantEntries(t, dir)
}

func namesAndErrors(t *testing.T, dir string) {
	at := func(name string) string { return filepath.Join(dir, name) }
	longest := strings.Repeat("n", 255)
	odd := []string{longest, " ", "\\", "new\nline", "\xff\xfe", "*", "-rf", "ä€𝄞", ".hidden", "...", "trailing "}
	for _, name := range odd {
		must(t, os.WriteFile(at(name), []byte(name), 0o644))
		wantFile(t, at(name), []byte(name))
	}
	slices.Sort(odd)
	wantEntries(t, dir, odd...)
	for _, c := range []struct {
		what string
		err  error
		want syscall.Errno
	}{
		{"a name of 256 bytes", os.WriteFile(at(longest+"n"), nil, 0o644), unix.ENAMETOOLONG},
		{"mkdir of a name of 256 bytes", os.Mkdir(at(longest+"n"), 0o755), unix.ENAMETOOLONG},
		{"open of nothing", errOf(os.Open(at("none"))), unix.ENOENT},
		{"a file as a directory", errOf(os.Open(at(" /x"))), unix.ENOTDIR},
		{"mkdir of a name there is", os.Mkdir(at("*"), 0o755), unix.EEXIST},
		{"rmdir of a file", unix.Rmdir(at("*")), unix.ENOTDIR},
		{"unlink of nothing", unix.Unlink(at("none")), unix.ENOENT},
		{"rmdir of nothing", unix.Rmdir(at("none")), unix.ENOENT},
		{"exclusive creation of a name there is", errOf(unix.Open(at("*"), unix.O_CREAT|unix.O_EXCL, 0o644)), unix.EEXIST},
		{"creation in a directory there is not", os.WriteFile(at("none/x"), nil, 0o644), unix.ENOENT},
		{"O_DIRECTORY on a file", errOf(unix.Open(at("*"), unix.O_DIRECTORY, 0)), unix.ENOTDIR},
		{"readlink of a file", errOf(os.Readlink(at("*"))), unix.EINVAL},
	} {
		wantErrno(t, c.what, c.err, c.want)
	}
	must(t, os.Mkdir(at("d"), 0o755))
	must(t, os.WriteFile(at("d/f"), nil, 0o644))
	wantErrno(t, "rmdir of a directory with entries", unix.Rmdir(at("d")), unix.ENOTEMPTY)
	wantErrno(t, "unlink of a directory", unix.Unlink(at("d")), unix.EISDIR)
	wantErrno(t, "writing to a directory", errOf(unix.Open(at("d"), unix.O_WRONLY, 0)), unix.EISDIR)
}

func directoryLinks(t *testing.T, dir string) {
	links := func(want uint64) {
		t.Helper()
		if n := stat(t, dir).Nlink; n != want {
			t.Errorf("the directory has %d links, want %d", n, want)
		}
	}
	links(2)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	must(t, os.Mkdir(a, 0o755))
	must(t, os.Mkdir(b, 0o755))
	links(4)
	must(t, os.Rename(b, filepath.Join(a, "b")))
	links(3)
	if n := stat(t, a).Nlink; n != 3 {
		t.Errorf("the other has %d links", n)
	}
	f, err := os.Open(a)
	must(t, err)
	defer f.Close()
	must(t, os.RemoveAll(a))
	links(2)
	wantErrno(t, "creation in a removed directory", errOf(unix.Openat(int(f.Fd()), "x", unix.O_CREAT|unix.O_WRONLY, 0o644)), unix.ENOENT)
	if names, err := f.Readdirnames(-1); len(names) > 0 || !errors.Is(err, unix.ENOENT) {
		t.Errorf("a removed directory lists %v, %v, want %v", names, err, unix.ENOENT)
	}
}

func openFlags(t *testing.T, dir string) {
	name := filepath.Join(dir, "f")
	must(t, os.WriteFile(name, []byte("0123456789"), 0o644))
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString("ab")
	must(t, err)
	wantErrno(t, "reading a write-only descriptor", errOf(f.Read(make([]byte, 1))), unix.EBADF)
	must(t, f.Close())
	wantFile(t, name, []byte("0123456789ab"))
	f, err = os.Open(name)
	must(t, err)
	wantErrno(t, "writing a read-only descriptor", errOf(f.Write([]byte("x"))), unix.EBADF)
	wantErrno(t, "truncating a read-only descriptor", f.Truncate(0), unix.EINVAL)
	must(t, f.Close())
	f, err = os.OpenFile(name, os.O_WRONLY|os.O_SYNC, 0)
	must(t, err)
	_, err = f.WriteString("AB")
	must(t, err)
	must(t, f.Close())
	wantFile(t, name, []byte("AB23456789ab"))

	// O_DIRECT goes past the host's cache and must agree with it.
	cached, err := os.OpenFile(name, os.O_RDWR, 0)
	must(t, err)
	defer cached.Close()
	direct, err := os.OpenFile(name, os.O_RDWR|unix.O_DIRECT, 0)
	must(t, err)
	defer direct.Close()
	aligned, err := unix.Mmap(-1, 0, 16<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(t, err)
	defer unix.Munmap(aligned)
	copy(aligned, block(9, 16<<10))
	writeAt(t, direct, aligned, 0)
	wantAt(t, cached, 0, aligned)
	writeAt(t, cached, []byte("cached"), 4000)
	copy(aligned[4000:], "cached")
	want := bytes.Clone(aligned)
	clear(aligned)
	if n, err := direct.ReadAt(aligned, 0); n != len(want) || !bytes.Equal(aligned, want) {
		t.Errorf("O_DIRECT reads %d bytes, %v, other than the cache", n, err)
	}
}

// randomAgainstModel does a thousand random things to a file and to a slice of bytes, and compares.
func randomAgainstModel(t *testing.T, dir string) {
	const limit = 600_000
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	f := create(t, filepath.Join(dir, "f"))
	fd := int(f.Fd())
	var model []byte
	grow := func(n int) {
		if n > len(model) {
			model = append(model, make([]byte, n-len(model))...)
		}
	}
	p, err := unix.Mmap(fd, 0, limit, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(p)
	for step := range 1000 {
		off, n := r.IntN(limit/2), 1+r.IntN(1<<(1+r.IntN(18)))
		b := block(step, n)
		switch what := r.IntN(10); what {
		case 0, 1, 2:
			writeAt(t, f, b, int64(off))
			grow(off + n)
			copy(model[off:], b)
		case 3:
			must(t, f.Truncate(int64(off)))
			if off < len(model) {
				model = model[:off:off]
			}
			grow(off)
		case 4:
			must(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n)))
			if off < len(model) {
				clear(model[off:min(len(model), off+n)])
			}
		case 5:
			must(t, unix.Fallocate(fd, 0, int64(off), int64(n)))
			grow(off + n)
		case 6, 7: // a store, inside the file
			if off < len(model) {
				n = min(n, len(model)-off)
				copy(p[off:off+n], b)
				copy(model[off:], b[:n])
			}
		case 8:
			must(t, f.Sync())
		case 9:
			if off < len(model) && !bytes.Equal(p[off:min(len(model), off+n)], model[off:min(len(model), off+n)]) {
				t.Fatalf("step %d: the mapping at %d differs", step, off)
			}
		}
		wantSize(t, f, int64(len(model)))
		if off < len(model) {
			wantAt(t, f, int64(off), model[off:min(len(model), off+n)])
		}
		if t.Failed() {
			t.Fatalf("at step %d", step)
		}
	}
	wantAt(t, f, 0, model)
}

func copyFileRange(t *testing.T, dir string) {
	data := block(10, 300_000)
	must(t, os.WriteFile(filepath.Join(dir, "from"), data, 0o644))
	from, err := os.Open(filepath.Join(dir, "from"))
	must(t, err)
	defer from.Close()
	to := create(t, filepath.Join(dir, "to"))
	copied := 0
	for copied < len(data) {
		n, err := unix.CopyFileRange(int(from.Fd()), nil, int(to.Fd()), nil, len(data)-copied, 0)
		must(t, err)
		if n == 0 {
			break
		}
		copied += n
	}
	if copied != len(data) {
		t.Errorf("copied %d of %d bytes", copied, len(data))
	}
	wantAt(t, to, 0, data)
	// Inside one file, from bytes that only the host has yet.
	writeAt(t, to, []byte("fresh"), 1000)
	in, out := int64(900), int64(1<<20)
	n, err := unix.CopyFileRange(int(to.Fd()), &in, int(to.Fd()), &out, 500, 0)
	if n != 500 || err != nil {
		t.Errorf("copy inside a file: %d %v", n, err)
	}
	copy(data[1000:], "fresh")
	wantAt(t, to, 1<<20, data[900:1400])
	wantSize(t, to, 1<<20+500)
}

func vectoredAndPositional(t *testing.T, dir string) {
	f := create(t, filepath.Join(dir, "f"))
	parts := [][]byte{block(1, 10), block(2, 5000), block(3, 1), block(4, 70_000)}
	whole := bytes.Join(parts, nil)
	if n, err := unix.Pwritev(int(f.Fd()), parts, 33); n != len(whole) || err != nil {
		t.Fatalf("pwritev: %d %v", n, err)
	}
	got := [][]byte{make([]byte, 33), make([]byte, len(whole)), make([]byte, 10)}
	if n, err := unix.Preadv(int(f.Fd()), got, 0); n != 33+len(whole) || err != nil {
		t.Fatalf("preadv: %d %v", n, err)
	}
	if !bytes.Equal(got[0], make([]byte, 33)) || !bytes.Equal(got[1], whole) {
		t.Error("preadv gives other bytes than pwritev took")
	}
	// sendfile, which reads through splice
	to := create(t, filepath.Join(dir, "to"))
	for off := int64(0); off < int64(33+len(whole)); {
		n, err := unix.Sendfile(int(to.Fd()), int(f.Fd()), &off, 1<<20)
		must(t, err)
		if n == 0 {
			break
		}
	}
	wantAt(t, to, 33, whole)
}

// deepTree goes down as deep as a path can name and removes it again.
func deepTree(t *testing.T, dir string) {
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY, 0)
	must(t, err)
	const depth = 500
	for range depth {
		must(t, unix.Mkdirat(fd, "directory-with-a-name", 0o755))
		next, err := unix.Openat(fd, "directory-with-a-name", unix.O_DIRECTORY|unix.O_RDONLY, 0)
		unix.Close(fd)
		must(t, err)
		fd = next
	}
	unix.Close(fd)
	if out := run(t, dir, "sh", "-c", "find . -type d | wc -l"); strings.TrimSpace(out) != fmt.Sprint(depth+1) {
		t.Errorf("find sees %s directories, want %d", strings.TrimSpace(out), depth+1)
	}
	run(t, "", "rm", "-rf", filepath.Join(dir, "directory-with-a-name"))
	wantEntries(t, dir)
}

// locksBetweenProcesses takes locks of each kind here and tries them in another process.
func locksBetweenProcesses(t *testing.T, dir string) {
	name := filepath.Join(dir, "f")
	f := create(t, name)
	writeAt(t, f, block(1, 100), 0)
	try := func() string {
		t.Helper()
		return run(t, "", "python3", "-c", `
import fcntl, sys
f = open(sys.argv[1], "r+b")
for what in (lambda: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB),
             lambda: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0),
             lambda: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 50)):
    try:
        what()
        print("free", end=" ")
    except BlockingIOError:
        print("locked", end=" ")
`, name)
	}
	if got := try(); got != "free free free " {
		t.Errorf("without locks: %s", got)
	}
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	if got := try(); got != "locked free free " {
		t.Errorf("with a flock: %s", got)
	}
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_UN))
	must(t, unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 55, Len: 10}))
	if got := try(); got != "free free locked " {
		t.Errorf("with a lock of bytes 55 to 65: %s", got)
	}
	must(t, unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_UNLCK}))
	if got := try(); got != "free free free " {
		t.Errorf("after unlocking: %s", got)
	}
}
