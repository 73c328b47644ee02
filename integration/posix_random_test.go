package integration

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

var _ = scenarios(true, map[string]func(p *trace){"RandomCalls": randomCalls})

// rambler makes random calls on a few names and descriptors, as several users, and writes down what each answered. Nothing
// that it chooses depends on an answer, so that the same seed makes the same calls on another file system.
type rambler struct {
	p   *trace
	r   *rand.Rand
	fds [5]int // -1: closed
	as  user
}

// randomSeeds are so many walks of so many calls each. With another number they are others: what one found once belongs
// into a scenario of its own.
const (
	randomSeeds = 12
	randomCount = 500
)

func randomCalls(p *trace) {
	for seed := range uint64(randomSeeds) {
		w := &rambler{p: p, r: rand.New(rand.NewPCG(seed, 3)), fds: [5]int{-1, -1, -1, -1, -1}}
		must(p.t, unix.Chmod(p.dir, 0o777))
		p.log("seed %d", seed)
		for left := randomCount; left > 0; {
			stretch := min(1+w.r.IntN(100), left) // for each user
			left -= stretch
			w.as = []user{root, root, nobody, other, {uid: 65533, gid: 65534}}[w.r.IntN(5)]
			w.as.do(p.t, func() {
				unix.Umask(0o022)
				for range stretch {
					w.step()
				}
			})
		}
		for fd := range w.fds {
			w.replace(fd, -1)
		}
		p.tree()
		p.clean()
	}
}

var (
	randomNames = strings.Fields("a b c d1 d2 d1/x d1/y d2/x d1/d3 d1/d3/z l1 d2/l2 d1/d3/d4")
	randomModes = []uint32{0o644, 0o600, 0o755, 0o4755, 0o2755, 0o6777, 0o1777, 0o2777, 0}
	randomFlags = []int{
		unix.O_RDWR | unix.O_CREAT, unix.O_RDWR | unix.O_CREAT, unix.O_RDWR | unix.O_CREAT, unix.O_RDONLY, unix.O_WRONLY,
		unix.O_RDWR, unix.O_RDWR | unix.O_TRUNC, unix.O_WRONLY | unix.O_APPEND | unix.O_CREAT,
		unix.O_RDWR | unix.O_CREAT | unix.O_EXCL, unix.O_RDONLY | unix.O_DIRECTORY, unix.O_RDWR | unix.O_NOFOLLOW,
		unix.O_RDWR | unix.O_SYNC | unix.O_CREAT, unix.O_RDWR | unix.O_APPEND, unix.O_PATH,
		unix.O_RDONLY | unix.O_CREAT | unix.O_TRUNC,
	}
	randomAttributes = []string{"user.a", "user.b", "trusted.c", "security.d", "bogus.x",
		"user." + strings.Repeat("n", 250), "user." + strings.Repeat("n", 251)}
)

func (w *rambler) name() string { return randomNames[w.r.IntN(len(randomNames))] }

// of picks one of the values.
func of[T any](w *rambler, values ...T) T { return values[w.r.IntN(len(values))] }

// place is an offset or a length about which something could be wrong.
func (w *rambler) place() int64 {
	return of[int64](w, 0, 1, 100, 4095, 4096, 4097, 8191, 10000, 65536, 131072, 200000, 262143, 300000)
}

func (w *rambler) data(n int) []byte {
	pattern := binaryPattern(w.r)
	return bytes.Repeat(pattern, n/len(pattern)+1)[:n]
}

func binaryPattern(r *rand.Rand) []byte {
	b := make([]byte, 17)
	for i := range b {
		b[i] = byte(1 + r.IntN(255))
	}
	return b
}

// replace puts a descriptor in the place of another one.
func (w *rambler) replace(i, fd int) {
	if old := w.fds[i]; old >= 0 {
		must(w.p.t, unix.Close(old))
	}
	w.fds[i] = fd
}

// step makes one call.
func (w *rambler) step() {
	if w.r.IntN(2) == 0 {
		w.named()
		return
	}
	i := w.r.IntN(len(w.fds))
	if w.fds[i] < 0 || w.r.IntN(6) == 0 {
		w.open(i)
		return
	}
	w.described(i)
}

func (w *rambler) open(i int) {
	name, flags, mode := w.name(), randomFlags[w.r.IntN(len(randomFlags))], randomModes[w.r.IntN(len(randomModes))]
	fd, err := unix.Open(w.p.at(name), flags|unix.O_NONBLOCK|unix.O_CLOEXEC, mode)
	w.p.call(err, "%v: %d = open %s %#x %o", w.as, i, name, flags, mode)
	if err == nil {
		w.replace(i, fd)
	}
}

// named makes a call on a name.
func (w *rambler) named() {
	a, b, mode := w.name(), w.name(), randomModes[w.r.IntN(len(randomModes))]
	pa, pb := w.p.at(a), w.p.at(b)
	var what string
	var err error
	switch w.r.IntN(16) {
	case 0:
		what, err = fmt.Sprintf("mkdir %s %o", a, mode), unix.Mkdir(pa, mode)
	case 1:
		end := of(w, "", "/", "/.")
		what, err = "rmdir "+a+end, unix.Rmdir(pa+end)
	case 2:
		what, err = "unlink "+a, unix.Unlink(pa)
	case 3:
		flags := of(w, 0, unix.AT_SYMLINK_FOLLOW)
		what, err = fmt.Sprintf("link %s %s %#x", a, b, flags), unix.Linkat(unix.AT_FDCWD, pa, unix.AT_FDCWD, pb, flags)
	case 4:
		target := of(w, "nowhere", ".", "../a", "x", a)
		what, err = fmt.Sprintf("symlink %s %s", target, b), unix.Symlink(target, pb)
	case 5, 6:
		flags := of[uint](w, 0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, unix.RENAME_WHITEOUT,
			unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE)
		what = fmt.Sprintf("rename %s %s %d", a, b, flags)
		err = unix.Renameat2(unix.AT_FDCWD, pa, unix.AT_FDCWD, pb, flags)
	case 7:
		what, err = fmt.Sprintf("chmod %s %o", a, mode), unix.Chmod(pa, mode)
	case 8:
		uid, gid := of(w, -1, 0, 65533, 65534), of(w, -1, 0, 65533, 65534)
		what, err = fmt.Sprintf("lchown %s %d %d", a, uid, gid), unix.Lchown(pa, uid, gid)
	case 9:
		size := w.place()
		what, err = fmt.Sprintf("truncate %s %d", a, size), unix.Truncate(pa, size)
	case 10:
		at := unix.Timespec{Sec: w.r.Int64N(1 << 33), Nsec: w.r.Int64N(1e9)}
		err = unix.UtimesNanoAt(unix.AT_FDCWD, pa, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
		var st unix.Stat_t
		if unix.Lstat(pa, &st) == nil && err == nil {
			what = fmt.Sprint(st.Mtim == at)
		}
		what = fmt.Sprintf("utimes %s %v", a, what)
	case 11:
		name, value, flags := of(w, randomAttributes...), w.data(of(w, 0, 10, 1000, 3000)), of(w, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE)
		what = fmt.Sprintf("setxattr %s %s %d %d", a, name, len(value), flags)
		err = unix.Lsetxattr(pa, name, value, flags)
	case 12:
		name, buf := of(w, randomAttributes...), make([]byte, of(w, 0, 100, 65536))
		var n int
		n, err = unix.Lgetxattr(pa, name, buf)
		what = fmt.Sprintf("getxattr %s %s %d: %d bytes %08x", a, name, len(buf), n, crc32.ChecksumIEEE(buf[:min(max(n, 0), len(buf))]))
	case 13:
		name := of(w, randomAttributes...)
		what, err = "removexattr "+a+" "+name, unix.Lremovexattr(pa, name)
	case 14:
		kind := of[uint32](w, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFREG, unix.S_IFCHR)
		what, err = fmt.Sprintf("mknod %s %o", a, kind|mode), unix.Mknod(pa, kind|mode, int(unix.Mkdev(1, 3)))
	case 15:
		var names []string
		entries, readErr := os.ReadDir(pa)
		for _, e := range entries {
			names = append(names, e.Name()+" "+e.Type().String())
		}
		slices.Sort(names)
		what, err = fmt.Sprintf("readdir %s %q", a, names), readErr
	}
	w.p.call(err, "%v: %s; %s; %s", w.as, what, w.p.describe(pa), w.p.describe(pb))
}

// described makes a call on a descriptor.
func (w *rambler) described(i int) {
	fd := w.fds[i]
	at, n := w.place(), w.place()
	var st unix.Stat_t
	must(w.p.t, unix.Fstat(fd, &st))
	var what string
	var err error
	switch w.r.IntN(11) {
	case 0, 1:
		var done int
		done, err = unix.Write(fd, w.data(int(n)))
		what = fmt.Sprintf("write %d of %d", done, n)
	case 2:
		var done int
		done, err = unix.Pwrite(fd, w.data(int(n)), at)
		what = fmt.Sprintf("pwrite %d of %d at %d", done, n, at)
	case 3:
		buf := make([]byte, n)
		var done int
		done, err = unix.Read(fd, buf)
		what = fmt.Sprintf("read %d of %d, %08x", done, n, crc32.ChecksumIEEE(buf[:max(done, 0)]))
	case 4:
		buf := make([]byte, n)
		var done int
		done, err = unix.Pread(fd, buf, at)
		what = fmt.Sprintf("pread %d of %d at %d, %08x", done, n, at, crc32.ChecksumIEEE(buf[:max(done, 0)]))
	case 5:
		what, err = fmt.Sprintf("ftruncate %d", at), unix.Ftruncate(fd, at)
	case 6:
		what, err = "fsync", unix.Fsync(fd)
	case 7:
		mode := of[uint32](w, 0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE)
		what, err = fmt.Sprintf("fallocate %d %d %d", mode, at, n), unix.Fallocate(fd, mode, at, n)
	case 8:
		mode := randomModes[w.r.IntN(len(randomModes))]
		what, err = fmt.Sprintf("fchmod %o", mode), unix.Fchmod(fd, mode)
	case 9:
		what, err = w.mapping(fd, &st, int(at), int(n))
	case 10:
		to, in, out := w.r.IntN(len(w.fds)), w.place(), w.place()
		var done int
		if w.fds[to] >= 0 {
			done, err = unix.CopyFileRange(fd, &in, w.fds[to], &out, int(n), 0)
		}
		what = fmt.Sprintf("copy_file_range %d of %d to %d", done, n, to)
	}
	must(w.p.t, unix.Fstat(fd, &st))
	size := st.Size
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		size = 0 // counts entries on tmpfs
	}
	w.p.call(err, "%v: %d: %s; mode %o owner %d:%d links %d size %d", w.as, i, what, st.Mode, st.Uid, st.Gid, st.Nlink, size)
}

// mapping stores into a mapping of the file and says what is there then.
func (w *rambler) mapping(fd int, st *unix.Stat_t, at, n int) (what string, err error) {
	sharing, sync := of(w, unix.MAP_SHARED, unix.MAP_SHARED, unix.MAP_PRIVATE), w.r.IntN(3) == 0
	data := w.data(min(n, 70000))
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size == 0 {
		return "no bytes to map", nil
	}
	m, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, sharing)
	if err != nil {
		return "mmap", err
	}
	done := copy(m[at%len(m):], data)
	if sync {
		err = unix.Msync(m, unix.MS_SYNC)
	}
	what = fmt.Sprintf("mapped %d, %d stored at %d, %08x", sharing, done, at%len(m), crc32.ChecksumIEEE(m))
	if unmapErr := unix.Munmap(m); err == nil {
		err = unmapErr
	}
	return what, err
}
