package integration

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stresser does random things to names in one tree, in which others do the same. Few names, so that they meet. The idea
// is that of SGI's fsstress.
type stresser struct {
	dir  string
	r    *rand.Rand
	open []int    // descriptors held open, with or without a name; Go's os.File would wait for a fifo
	said []string // what was done last
}

// stressSteps are the operations, each as often as its share says. What another process may have brought about is no
// error: see harmless.
var stressSteps = []struct {
	name  string
	share int
	do    func(s *stresser) error
}{
	{"create", 10, (*stresser).stepCreate},
	{"mkdir", 6, func(s *stresser) error { return unix.Mkdir(s.path(), 0o755) }},
	{"rmdir", 4, func(s *stresser) error { return unix.Rmdir(s.path()) }},
	{"unlink", 6, func(s *stresser) error { return unix.Unlink(s.path()) }},
	{"link", 6, func(s *stresser) error { return unix.Link(s.path(), s.path()) }},
	{"symlink", 3, (*stresser).stepSymlink},
	{"mknod", 3, (*stresser).stepMknod},
	{"tmpfile", 3, (*stresser).stepTmpfile},
	{"rename", 10, func(s *stresser) error { return unix.Rename(s.path(), s.path()) }},
	{"rename noreplace", 3, func(s *stresser) error { return s.rename(unix.RENAME_NOREPLACE) }},
	{"rename exchange", 5, func(s *stresser) error { return s.rename(unix.RENAME_EXCHANGE) }},
	{"chmod", 3, func(s *stresser) error { return unix.Chmod(s.path(), uint32(0o600|s.r.IntN(0o200))) }},
	{"chown", 2, func(s *stresser) error { return unix.Lchown(s.path(), s.r.IntN(1000), s.r.IntN(1000)) }},
	{"utimes", 2, (*stresser).stepTimes},
	{"setxattr", 4, (*stresser).stepSetXattr},
	{"removexattr", 2, func(s *stresser) error { return unix.Lremovexattr(s.path(), s.attribute()) }},
	{"listxattr", 2, (*stresser).stepListXattr},
	{"stat", 4, func(s *stresser) error { var st unix.Stat_t; return unix.Lstat(s.path(), &st) }},
	{"statfs", 1, func(s *stresser) error { var st unix.Statfs_t; return unix.Statfs(s.path(), &st) }},
	{"readlink", 2, func(s *stresser) error { _, err := unix.Readlink(s.path(), make([]byte, 100)); return err }},
	{"readdir", 4, (*stresser).stepReaddir},
	{"truncate", 3, func(s *stresser) error { return unix.Truncate(s.path(), s.r.Int64N(1<<18)) }},
	{"write", 8, (*stresser).stepWrite},
	{"read", 6, (*stresser).stepRead},
	{"mmap", 4, (*stresser).stepMmap},
	{"fallocate", 4, (*stresser).stepFallocate},
	{"copy", 2, (*stresser).stepCopy},
	{"fsync", 2, func(s *stresser) error { return s.with(func(fd int) error { return unix.Fsync(fd) }) }},
	{"fsync directory", 1, (*stresser).stepFsyncDir},
	{"lock", 1, (*stresser).stepLock},
}

// fsstressMain is the stresser as a program.
func fsstressMain(args []string) error {
	flags := flag.NewFlagSet("fsstress", flag.ContinueOnError)
	dir := flags.String("dir", "", "the tree")
	seed := flags.Uint64("seed", 1, "")
	ops := flags.Int("ops", 1000, "operations")
	if err := flags.Parse(args); err != nil {
		return err
	}
	unix.Umask(0)
	debug.SetPanicOnFault(true)
	s := &stresser{dir: *dir, r: rand.New(rand.NewPCG(*seed, 1))}
	total := 0
	for _, step := range stressSteps {
		total += step.share
	}
	for range *ops {
		at := s.r.IntN(total)
		for _, step := range stressSteps {
			if at -= step.share; at < 0 {
				s.said = append(s.said[max(0, len(s.said)-30):], step.name+":")
				if err := step.do(s); err != nil && !harmless(err) {
					return fmt.Errorf("seed %d: %s: %w\n%s", *seed, step.name, err, strings.Join(s.said, "\n"))
				}
				break
			}
		}
	}
	var err error
	for _, fd := range s.open {
		err = errors.Join(err, unix.Close(fd))
	}
	return err
}

// harmless reports whether all of an error only says that a name is not what it was, or is one of several kinds of file.
func harmless(err error) bool {
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		return !slices.ContainsFunc(all.Unwrap(), func(e error) bool { return !harmless(e) })
	}
	return slices.ContainsFunc([]error{unix.ENOENT, unix.EEXIST, unix.ENOTDIR, unix.EISDIR, unix.ENOTEMPTY, unix.EINVAL,
		unix.ELOOP, unix.ENXIO, unix.ENODATA, unix.ENODEV, unix.ESPIPE, unix.EPERM, unix.EOPNOTSUPP, unix.EAGAIN},
		func(e error) bool { return errors.Is(err, e) })
}

// path is one of the names in the tree, at most three deep.
func (s *stresser) path() string {
	parts := []string{s.dir}
	for range 1 + s.r.IntN(3) {
		parts = append(parts, string(rune('a'+s.r.IntN(6))))
	}
	p := filepath.Join(parts...)
	s.said[len(s.said)-1] += " " + strings.TrimPrefix(p, s.dir)
	return p
}

func (s *stresser) attribute() string { return "user." + strconv.Itoa(s.r.IntN(4)) }

// with calls f with a descriptor of some file: one held open, or a name's.
func (s *stresser) with(f func(fd int) error) error {
	if len(s.open) > 0 && s.r.IntN(2) == 0 {
		return f(s.open[s.r.IntN(len(s.open))])
	}
	fd, err := openFile(s.path(), unix.O_RDWR)
	if err != nil {
		return err
	}
	return errors.Join(f(fd), unix.Close(fd))
}

// openFile is open(2), which waits for nobody.
func openFile(name string, flags int) (fd int, err error) {
	return unix.Open(name, flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o644)
}

// hold keeps a file open, in the place of another one if there are many.
func (s *stresser) hold(fd int) error {
	if len(s.open) < 8 {
		s.open = append(s.open, fd)
		return nil
	}
	i := s.r.IntN(len(s.open))
	old := s.open[i]
	s.open[i] = fd
	return unix.Close(old)
}

// fill writes zeros to a new file and keeps it open.
func (s *stresser) fill(fd int) error {
	_, err := unix.Write(fd, make([]byte, s.r.IntN(20000)))
	return errors.Join(err, s.hold(fd))
}

func (s *stresser) stepCreate() error {
	flags := []int{0, unix.O_EXCL, unix.O_TRUNC, unix.O_APPEND, unix.O_DIRECT, unix.O_SYNC, unix.O_NOFOLLOW}[s.r.IntN(7)]
	fd, err := openFile(s.path(), unix.O_RDWR|unix.O_CREAT|flags)
	if err != nil {
		return err
	}
	return s.fill(fd)
}

// stepSymlink makes symlinks that lead to other names of the tree, there or not, and to themselves; never out of it.
func (s *stresser) stepSymlink() error {
	target := []string{s.path(), ".", "a", "b/c"}[s.r.IntN(4)]
	return unix.Symlink(target, s.path())
}

func (s *stresser) stepMknod() error {
	kind := []uint32{unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFREG, unix.S_IFCHR, unix.S_IFBLK}[s.r.IntN(5)]
	dev := 0
	if kind == unix.S_IFCHR { // /dev/null; a block device 0:0 cannot be opened
		dev = int(unix.Mkdev(1, 3))
	}
	return unix.Mknod(s.path(), kind|0o600, dev)
}

// stepTmpfile makes a file without a name, which may get one.
func (s *stresser) stepTmpfile() error {
	fd, err := openFile(filepath.Dir(s.path()), unix.O_RDWR|unix.O_TMPFILE)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("/proc/self/fd/%d", fd)
	err = unix.Linkat(unix.AT_FDCWD, name, unix.AT_FDCWD, s.path(), unix.AT_SYMLINK_FOLLOW)
	return errors.Join(err, s.fill(fd))
}

func (s *stresser) rename(flags uint) error {
	return unix.Renameat2(unix.AT_FDCWD, s.path(), unix.AT_FDCWD, s.path(), flags)
}

func (s *stresser) stepTimes() error {
	at := unix.Timespec{Sec: s.r.Int64N(1 << 32), Nsec: s.r.Int64N(1e9)}
	return unix.UtimesNanoAt(unix.AT_FDCWD, s.path(), []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
}

func (s *stresser) stepSetXattr() error {
	return unix.Lsetxattr(s.path(), s.attribute(), make([]byte, s.r.IntN(300)), s.r.IntN(3))
}

func (s *stresser) stepListXattr() error {
	name := s.path()
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(name, buf)
	if err != nil {
		return err
	}
	for attribute := range strings.FieldsFuncSeq(string(buf[:n]), func(r rune) bool { return r == 0 }) {
		if _, err := unix.Lgetxattr(name, attribute, make([]byte, 4096)); err != nil && !harmless(err) {
			return err
		}
	}
	return nil
}

func (s *stresser) stepReaddir() error {
	entries, err := os.ReadDir(s.path())
	if err != nil {
		return err
	}
	// That a name is listed twice says nothing here: it may have gone and come again.
	for _, e := range entries {
		if name := e.Name(); len(name) != 1 || name < "a" || name > "f" {
			return fmt.Errorf("%q is listed, which nobody made", name)
		}
	}
	return nil
}

func (s *stresser) stepWrite() error {
	return s.with(func(fd int) error {
		_, err := unix.Pwrite(fd, make([]byte, s.r.IntN(30000)), s.r.Int64N(1<<18))
		return err
	})
}

func (s *stresser) stepRead() error {
	return s.with(func(fd int) error {
		_, err := unix.Pread(fd, make([]byte, s.r.IntN(30000)), s.r.Int64N(1<<18))
		return err
	})
}

// stepMmap stores into a mapping, whose file another process may cut off meanwhile: then there is a SIGBUS.
func (s *stresser) stepMmap() error {
	return s.with(func(fd int) (err error) {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size == 0 {
			return err
		}
		m, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		defer func() { _ = recover(); err = unix.Munmap(m) }()
		for range 8 {
			m[s.r.IntN(len(m))]++
		}
		return nil
	})
}

func (s *stresser) stepFallocate() error {
	modes := []uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE,
		unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE}
	return s.with(func(fd int) error {
		return unix.Fallocate(fd, modes[s.r.IntN(len(modes))], s.r.Int64N(1<<18), 1+s.r.Int64N(1<<16))
	})
}

func (s *stresser) stepCopy() error {
	return s.with(func(from int) error {
		return s.with(func(to int) error {
			in, out := s.r.Int64N(1<<16), s.r.Int64N(1<<16)
			_, err := unix.CopyFileRange(from, &in, to, &out, s.r.IntN(1<<16), 0)
			if errors.Is(err, unix.EBADF) { // a file that is held was opened with O_APPEND
				return nil
			}
			return err
		})
	})
}

func (s *stresser) stepFsyncDir() error {
	fd, err := openFile(s.path(), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fsync(fd), unix.Close(fd))
}

func (s *stresser) stepLock() error {
	return s.with(func(fd int) error {
		if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return err
		}
		return unix.Flock(fd, unix.LOCK_UN)
	})
}

// fsstress runs so many stressers at once in one tree, which is whole afterwards.
func fsstress(t *testing.T, dir string, round, processes, ops int) {
	t.Helper()
	var all sync.WaitGroup
	for i := range processes {
		all.Go(func() {
			seed := strconv.Itoa(1 + i + 1000*round)
			if err := runChild("fsstress", "-dir", dir, "-seed", seed, "-ops", strconv.Itoa(ops)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	before := wantWholeTree(t, dir)
	// Without what the kernel remembers of names, so that it is our word that counts.
	must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
	if after := wantWholeTree(t, dir); !slices.Equal(before, after) {
		t.Errorf("the kernel's tree is another one than the file system's:\n%q\n%q", before, after)
	}
}

// wantWholeTree fails the test unless the directories' entries are what a lookup of them says, no name is listed twice,
// and each link count is the number of names. It returns the tree as lines.
func wantWholeTree(t *testing.T, root string) (lines []string) {
	t.Helper()
	links := map[uint64]uint64{}
	found := map[uint64]unix.Stat_t{}
	var walk func(dir string)
	walk = func(dir string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Error(err)
		}
		subdirs := uint64(0)
		seen := map[string]bool{}
		for _, e := range entries {
			name := filepath.Join(dir, e.Name())
			var st unix.Stat_t
			if err := unix.Lstat(name, &st); err != nil {
				t.Errorf("%s is listed: %v", name, err)
				continue
			}
			if seen[e.Name()] {
				t.Errorf("%s is listed twice", name)
			}
			seen[e.Name()] = true
			isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
			if e.IsDir() != isDir || (e.Type()&os.ModeSymlink != 0) != (st.Mode&unix.S_IFMT == unix.S_IFLNK) {
				t.Errorf("%s is listed as %v and is %#o", name, e.Type(), st.Mode)
			}
			links[st.Ino]++
			found[st.Ino] = st
			lines = append(lines, fmt.Sprintf("%s %d %#o %d %d", name[len(root):], st.Ino, st.Mode, st.Nlink, st.Size))
			if isDir {
				subdirs++
				walk(name)
			}
		}
		if st := stat(t, dir); st.Nlink != 2+subdirs {
			t.Errorf("%s has %d links and %d subdirectories", dir, st.Nlink, subdirs)
		}
	}
	walk(root)
	for ino, st := range found {
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink != links[ino] {
			t.Errorf("inode %d has %d links and %d names", ino, st.Nlink, links[ino])
		}
	}
	slices.Sort(lines)
	return lines
}

// space is what statfs(2) says is used.
func space(t testing.TB, dir string) (blocks, inodes uint64) {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	return st.Blocks - st.Bfree, st.Files - st.Ffree
}

// TestFsstress has processes make, link, rename, write and remove files in one tree, and finds the tree whole. Without
// it, all space is free again.
func TestFsstress(t *testing.T) {
	const processes = 4
	ops := short(6000, 3000)
	t.Run("tmpfs", func(t *testing.T) {
		// Not sticky, else it depends on fs.protected_regular whether root may open another user's file with O_CREAT.
		fsstress(t, mountTmpfs(t, "size=256M,mode=755"), 0, processes, ops)
	})
	for _, memory := range []string{"16M", "64M"} {
		t.Run(memory, func(t *testing.T) {
			m := mountMemfs(t, options{memory: memory})
			m.fsstress(t, 0, processes, ops)
		})
	}
}

// fsstress is fsstress in a tree of its own, while everything is trimmed, of which nothing is left.
func (m *mount) fsstress(t *testing.T, round, processes, ops int) {
	tree := m.path("tree")
	blocks, inodes := space(t, m.dir)
	must(t, os.Mkdir(tree, 0o755))
	stop := m.trimLoop(50 * time.Millisecond)
	fsstress(t, tree, round, processes, ops)
	stop()
	m.check()
	run(t, m.dir, "rm", "-rf", "tree")
	var usedBlocks, usedInodes uint64
	if !within(10*time.Second, func() bool {
		usedBlocks, usedInodes = space(t, m.dir)
		return usedBlocks <= blocks && usedInodes == inodes
	}) {
		t.Errorf("%d blocks and %d inodes are in use in an empty mount, %d and %d before", usedBlocks, usedInodes, blocks, inodes)
	}
}
