package integration

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// exerciser does everything to one file that a program can do to its bytes, in an order that follows from its seed, and
// compares each byte that it reads with a model in its own memory. The idea is that of fsx, which came with NFS.
type exerciser struct {
	name   string
	r      *rand.Rand
	most   int    // the largest size
	chunk  int    // the largest range of one operation
	ctl    string // where commands to the memory manager go, empty on another file system
	file   *os.File
	direct *os.File // the same file, opened with O_DIRECT
	view   []byte   // a shared mapping of most bytes that stays while the file is reopened
	model  []byte   // what the file has; its length is the file's size
	recent []string // what was done last
	op     int
}

// fsxSteps are the operations, each as often as its share says.
var fsxSteps = []struct {
	name  string
	share int
	do    func(x *exerciser) error
}{
	{"read", 10, (*exerciser).stepRead},
	{"write", 12, (*exerciser).stepWrite},
	{"direct read", 5, (*exerciser).stepDirectRead},
	{"direct write", 5, (*exerciser).stepDirectWrite},
	{"append", 2, (*exerciser).stepAppend},
	{"map and read", 6, (*exerciser).stepMapRead},
	{"map and write", 8, (*exerciser).stepMapWrite},
	{"read the view", 6, (*exerciser).stepViewRead},
	{"write the view", 8, (*exerciser).stepViewWrite},
	{"map privately", 2, (*exerciser).stepPrivate},
	{"truncate", 6, (*exerciser).stepTruncate},
	{"fallocate", 4, (*exerciser).stepAllocate},
	{"punch", 5, (*exerciser).stepPunch},
	{"zero", 5, (*exerciser).stepZero},
	{"copy_file_range", 4, (*exerciser).stepCopy},
	{"sendfile", 2, (*exerciser).stepSendfile},
	{"splice", 2, (*exerciser).stepSplice},
	{"seek", 3, (*exerciser).stepSeek},
	{"sync", 4, (*exerciser).stepSync},
	{"advise", 3, (*exerciser).stepAdvise},
	{"reopen", 2, (*exerciser).stepReopen},
	{"stat", 3, (*exerciser).stepStat},
	{"everything", 1, (*exerciser).stepEverything},
	{"ctl", 2, (*exerciser).stepCtl},
}

// fsxMain is the exerciser as a program. With several seeds in a row it goes through them.
func fsxMain(args []string) error {
	flags := flag.NewFlagSet("fsx", flag.ContinueOnError)
	name := flags.String("file", "", "path of the file; it is made, and removed when all went well")
	seed := flags.Uint64("seed", 1, "first seed")
	seeds := flags.Uint64("seeds", 1, "how many seeds")
	ops := flags.Int("ops", 1000, "operations for each seed")
	most := flags.Int("most", 256<<10, "largest size of the file in bytes")
	chunk := flags.Int("chunk", 64<<10, "largest range of one operation in bytes")
	ctl := flags.String("ctl", "", "the memory manager's control file")
	if err := flags.Parse(args); err != nil {
		return err
	}
	debug.SetPanicOnFault(true)
	for s := *seed; s < *seed+*seeds; s++ {
		x := &exerciser{name: *name, r: rand.New(rand.NewPCG(s, 0)), most: *most, chunk: min(*chunk, *most), ctl: *ctl}
		if err := x.run(*ops); err != nil {
			return fmt.Errorf("seed %d, operation %d: %w\n%s", s, x.op, err, strings.Join(x.recent, "\n"))
		}
	}
	return nil
}

// run makes the file and does so many operations. A fault that the file system cannot answer is an error.
func (x *exerciser) run(ops int) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v\n%s", p, debug.Stack())
		}
	}()
	if err := x.open(os.O_CREATE | os.O_EXCL); err != nil {
		return err
	}
	defer x.close()
	if x.view, err = unix.Mmap(int(x.file.Fd()), 0, x.most, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	defer func() { _ = unix.Munmap(x.view) }()
	total := 0
	for _, s := range fsxSteps {
		total += s.share
	}
	for x.op = range ops {
		at := x.r.IntN(total)
		for _, s := range fsxSteps {
			if at -= s.share; at < 0 {
				x.say("%s", s.name)
				if err := s.do(x); err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				break
			}
		}
	}
	if err := x.stepEverything(); err != nil {
		return err
	}
	return os.Remove(x.name)
}

// say keeps a line of what is done, for the report of a failure.
func (x *exerciser) say(format string, args ...any) {
	if len(x.recent) == 60 {
		x.recent = append(x.recent[:0], x.recent[1:]...)
	}
	x.recent = append(x.recent, fmt.Sprintf("%6d size %#8x ", x.op, len(x.model))+fmt.Sprintf(format, args...))
}

// detail adds what an operation chose to its line.
func (x *exerciser) detail(format string, args ...any) {
	x.recent[len(x.recent)-1] += fmt.Sprintf(" "+format, args...)
}

func (x *exerciser) open(flags int) (err error) {
	if x.file, err = os.OpenFile(x.name, os.O_RDWR|flags, 0o644); err != nil {
		return err
	}
	x.direct, err = os.OpenFile(x.name, os.O_RDWR|unix.O_DIRECT, 0)
	return err
}

func (x *exerciser) close() error {
	return errors.Join(x.file.Close(), x.direct.Close())
}

// span chooses a range that begins at or below begin and ends at or below end, often on the borders of pages.
func (x *exerciser) span(begin, end int) (off, n int) {
	off = x.r.IntN(begin + 1)
	if x.r.IntN(3) == 0 {
		off &^= pageSize - 1
	}
	n = 1 + x.r.IntN(x.chunk)
	if x.r.IntN(3) == 0 {
		n = (n + pageSize - 1) &^ (pageSize - 1)
	}
	return off, min(n, end-off)
}

const pageSize = 4096

// inside chooses a range that has bytes of the file; n is 0 if the file is empty.
func (x *exerciser) inside() (off, n int) {
	if len(x.model) == 0 {
		return 0, 0
	}
	return x.span(len(x.model)-1, len(x.model))
}

// anywhere chooses a range up to the largest size, with at least one byte.
func (x *exerciser) anywhere() (off, n int) {
	off, n = x.span(x.most-1, x.most)
	x.detail("%#x..%#x (%#x bytes)", off, off+n, n)
	return off, n
}

// fresh are new bytes for the file. None is zero, so that a byte that was lost is not taken for one.
func (x *exerciser) fresh(n int) []byte {
	b := make([]byte, n)
	base := byte(1 + x.r.IntN(200))
	for i := range b {
		b[i] = base + byte(i%53) + 1
		if b[i] == 0 {
			b[i] = 1
		}
	}
	return b
}

// grow makes the model at least end bytes long, with zeros.
func (x *exerciser) grow(end int) {
	if end > len(x.model) {
		x.model = append(x.model, make([]byte, end-len(x.model))...)
	}
}

func (x *exerciser) store(off int, b []byte) {
	x.grow(off + len(b))
	copy(x.model[off:], b)
}

// same compares bytes that were read at off with the model, which is zeros from the end of the file on.
func (x *exerciser) same(off int, got []byte) error {
	want := make([]byte, len(got))
	if off < len(x.model) {
		copy(want, x.model[off:])
	}
	if bytes.Equal(got, want) {
		return nil
	}
	at := firstDifference(got, want)
	wrong, zeros := 0, 0
	last := at
	for i := at; i < len(got); i++ {
		if got[i] != want[i] {
			wrong++
			last = i
			if got[i] == 0 {
				zeros++
			}
		}
	}
	return fmt.Errorf("%w: %d bytes in %#x..%#x are wrong, %d of them zeros; the first is %#x, want %#x",
		errOtherBytes, wrong, off+at, off+last+1, zeros, got[at], want[at])
}

func (x *exerciser) readFrom(f *os.File) error {
	off, n := x.anywhere()
	buf := make([]byte, n)
	got, err := f.ReadAt(buf, int64(off))
	want := max(0, min(len(x.model)-off, n))
	if got != want || (err != nil && !errors.Is(err, io.EOF)) {
		return fmt.Errorf("%d bytes, want %d: %w", got, want, err)
	}
	return x.same(off, buf[:got])
}

func (x *exerciser) stepRead() error       { return x.readFrom(x.file) }
func (x *exerciser) stepDirectRead() error { return x.readFrom(x.direct) }

func (x *exerciser) writeTo(f *os.File) error {
	off, n := x.anywhere()
	b := x.fresh(n)
	if _, err := f.WriteAt(b, int64(off)); err != nil {
		return err
	}
	x.store(off, b)
	return nil
}

func (x *exerciser) stepWrite() error       { return x.writeTo(x.file) }
func (x *exerciser) stepDirectWrite() error { return x.writeTo(x.direct) }

func (x *exerciser) stepAppend() error {
	n := min(1+x.r.IntN(x.chunk), x.most-len(x.model))
	if n == 0 {
		return nil
	}
	f, err := os.OpenFile(x.name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	b := x.fresh(n)
	x.detail("%#x bytes", n)
	_, err = f.Write(b)
	x.store(len(x.model), b)
	return errors.Join(err, f.Close())
}

// mapped maps the pages of [off, off+n) and calls f with those bytes and with the rest of the last page.
func (x *exerciser) mapped(off, n, prot, flags int, f func(b, rest []byte) error) error {
	start := off &^ (pageSize - 1)
	length := (off + n - start + pageSize - 1) &^ (pageSize - 1)
	m, err := unix.Mmap(int(x.file.Fd()), int64(start), length, prot, flags)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	return errors.Join(f(m[off-start:off-start+n], m[off-start+n:]), unix.Munmap(m))
}

func (x *exerciser) stepMapRead() error {
	off, n := x.inside()
	if n == 0 {
		return nil
	}
	x.detail("%#x..%#x", off, off+n)
	return x.mapped(off, n, unix.PROT_READ, unix.MAP_SHARED, func(b, rest []byte) error {
		return errors.Join(x.same(off, b), x.same(off+n, rest))
	})
}

func (x *exerciser) stepMapWrite() error {
	off, n := x.anywhere()
	if off+n > len(x.model) {
		if err := x.file.Truncate(int64(off + n)); err != nil {
			return err
		}
		x.grow(off + n)
	}
	b := x.fresh(n)
	return x.mapped(off, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED, func(m, rest []byte) error {
		copy(m, b)
		x.store(off, b)
		return errors.Join(x.msync(m[:n]), x.same(off+n, rest))
	})
}

// msync is one of msync(2)'s kinds, or nothing. It begins at a page border, which a mapping's range need not.
func (x *exerciser) msync(b []byte) error {
	kinds := []int{0, unix.MS_ASYNC, unix.MS_SYNC, unix.MS_SYNC | unix.MS_INVALIDATE, unix.MS_INVALIDATE}
	kind := kinds[x.r.IntN(len(kinds))]
	if kind == 0 {
		return nil
	}
	x.detail("msync %#x", kind)
	inPage := int(uintptr(unsafe.Pointer(&b[0])) % pageSize)
	whole := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(&b[0]), -inPage)), len(b)+inPage)
	if err := unix.Msync(whole, kind); err != nil {
		return fmt.Errorf("msync %#x: %w", kind, err)
	}
	return nil
}

func (x *exerciser) stepViewRead() error {
	off, n := x.inside()
	if n == 0 {
		return nil
	}
	x.detail("%#x..%#x", off, off+n)
	end := min((off+n+pageSize-1)&^(pageSize-1), len(x.view))
	return errors.Join(x.same(off, x.view[off:off+n]), x.same(off+n, x.view[off+n:end]))
}

func (x *exerciser) stepViewWrite() error {
	off, n := x.inside()
	if n == 0 {
		return nil
	}
	x.detail("%#x..%#x", off, off+n)
	b := x.fresh(n)
	copy(x.view[off:], b)
	x.store(off, b)
	return x.msync(x.view[off : off+n])
}

// stepPrivate stores into a private mapping, which the file must not show, and the file's bytes must be around it.
func (x *exerciser) stepPrivate() error {
	off, n := x.inside()
	if n == 0 {
		return nil
	}
	x.detail("%#x..%#x", off, off+n)
	return x.mapped(off, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE, func(b, rest []byte) error {
		at := x.r.IntN(n)
		b[at] = ^b[at]
		got := bytes.Clone(b)
		got[at] = ^got[at]
		return errors.Join(x.same(off, got), x.same(off+n, rest), x.same(off, x.view[off:off+n]))
	})
}

func (x *exerciser) stepTruncate() error {
	size := x.r.IntN(x.most + 1)
	switch x.r.IntN(6) {
	case 0:
		size &^= pageSize - 1
	case 1:
		size = min(size, len(x.model))
	case 2:
		size = 0
	}
	x.detail("to %#x", size)
	if x.r.IntN(2) == 0 {
		if err := os.Truncate(x.name, int64(size)); err != nil {
			return err
		}
	} else if err := x.file.Truncate(int64(size)); err != nil {
		return err
	}
	x.grow(size)
	x.model = x.model[:size:size]
	return nil
}

func (x *exerciser) fallocate(mode, off, n int) error {
	if err := unix.Fallocate(int(x.file.Fd()), uint32(mode), int64(off), int64(n)); err != nil {
		return fmt.Errorf("mode %#x: %w", mode, err)
	}
	return nil
}

func (x *exerciser) stepAllocate() error {
	off, n := x.anywhere()
	mode := x.r.IntN(2) * unix.FALLOC_FL_KEEP_SIZE
	x.detail("mode %#x", mode)
	if mode == 0 {
		defer x.grow(off + n)
	}
	return x.fallocate(mode, off, n)
}

func (x *exerciser) stepPunch() error {
	off, n := x.anywhere()
	x.clear(off, n)
	return x.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// stepZero zeroes a range with ZERO_RANGE, or as programs do where that is not supported, as on tmpfs.
func (x *exerciser) stepZero() error {
	off, n := x.anywhere()
	keep := x.r.IntN(2) * unix.FALLOC_FL_KEEP_SIZE
	x.detail("keep %d", keep)
	if keep == 0 {
		x.grow(off + n)
	}
	x.clear(off, n)
	err := x.fallocate(unix.FALLOC_FL_ZERO_RANGE|keep, off, n)
	if !errors.Is(err, unix.EOPNOTSUPP) || x.ctl != "" {
		return err
	}
	if err := x.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n); err != nil {
		return err
	}
	return x.fallocate(keep, off, n)
}

func (x *exerciser) clear(off, n int) {
	if off < len(x.model) {
		clear(x.model[off:min(off+n, len(x.model))])
	}
}

// stepCopy copies within the file. Ranges that overlap are refused.
func (x *exerciser) stepCopy() error {
	from, n := x.inside()
	if n == 0 {
		return nil
	}
	to := x.r.IntN(x.most - n + 1)
	x.detail("%#x..%#x to %#x", from, from+n, to)
	overlap := from < to+n && to < from+n
	for done := 0; done < n; {
		in, out := int64(from+done), int64(to+done)
		copied, err := unix.CopyFileRange(int(x.file.Fd()), &in, int(x.file.Fd()), &out, n-done, 0)
		if overlap {
			if errors.Is(err, unix.EINVAL) {
				return nil
			}
			return fmt.Errorf("ranges that overlap: %d bytes, %v; want EINVAL", copied, err)
		}
		if err != nil || copied <= 0 {
			return fmt.Errorf("%d bytes of %d: %w", copied, n-done, err)
		}
		x.store(to+done, bytes.Clone(x.model[from+done:from+done+copied]))
		done += copied
	}
	return nil
}

// through has bytes that one call moves into a pipe read from it and compared. A pipe holds 64 KiB.
func (x *exerciser) through(move func(pipe, off, n int) (int, error)) error {
	off, n := x.inside()
	if n == 0 {
		return nil
	}
	n = min(n, 48<<10)
	x.detail("%#x..%#x", off, off+n)
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	moved, err := move(p[1], off, n)
	if err != nil || moved <= 0 {
		return fmt.Errorf("%d of %d bytes: %w", moved, n, err)
	}
	got := make([]byte, moved)
	for done := 0; done < moved; {
		k, err := unix.Read(p[0], got[done:])
		if err != nil || k == 0 {
			return fmt.Errorf("pipe: %d %w", k, err)
		}
		done += k
	}
	return x.same(off, got)
}

func (x *exerciser) stepSendfile() error {
	return x.through(func(pipe, off, n int) (int, error) {
		at := int64(off)
		return unix.Sendfile(pipe, int(x.file.Fd()), &at, n)
	})
}

// stepSplice moves bytes out of the file through a pipe, or into it.
func (x *exerciser) stepSplice() error {
	if x.r.IntN(2) == 0 {
		return x.through(func(pipe, off, n int) (int, error) {
			at := int64(off)
			k, err := unix.Splice(int(x.file.Fd()), &at, pipe, nil, n, unix.SPLICE_F_MOVE)
			return int(k), err
		})
	}
	off, n := x.anywhere()
	n = min(n, 48<<10)
	b := x.fresh(n)
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	if k, err := unix.Write(p[1], b); k != n {
		return fmt.Errorf("pipe: %d %w", k, err)
	}
	for done := 0; done < n; {
		at := int64(off + done)
		k, err := unix.Splice(p[0], nil, int(x.file.Fd()), &at, n-done, unix.SPLICE_F_MOVE)
		if err != nil || k <= 0 {
			return fmt.Errorf("%d of %d bytes: %w", k, n-done, err)
		}
		x.store(off+done, b[done:done+int(k)])
		done += int(k)
	}
	return nil
}

// stepSeek goes from data to hole to data. A hole must have zeros only, and the end of the file must be one.
func (x *exerciser) stepSeek() error {
	size := int64(len(x.model))
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(x.file.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			data = size
		} else if err != nil || data < at || data >= size {
			return fmt.Errorf("SEEK_DATA at %#x of %#x: %#x %w", at, size, data, err)
		}
		for i := at; i < data; i++ {
			if x.model[i] != 0 {
				return fmt.Errorf("SEEK_DATA at %#x says that %#x is in a hole, which has data", at, i)
			}
		}
		if data == size {
			return nil
		}
		hole, err := unix.Seek(int(x.file.Fd()), data, unix.SEEK_HOLE)
		if err != nil || hole <= data || hole > size {
			return fmt.Errorf("SEEK_HOLE at %#x of %#x: %#x %w", data, size, hole, err)
		}
		at = hole
	}
	_, err := unix.Seek(int(x.file.Fd()), size, unix.SEEK_DATA)
	if !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("SEEK_DATA at the end: %v, want ENXIO", err)
	}
	return nil
}

func (x *exerciser) stepSync() error {
	fd := int(x.file.Fd())
	switch x.r.IntN(4) {
	case 0:
		return unix.Fsync(fd)
	case 1:
		return unix.Fdatasync(fd)
	case 2:
		const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
		off, n := x.anywhere()
		return unix.SyncFileRange(fd, int64(off), int64(n), all)
	}
	return unix.Msync(x.view, unix.MS_SYNC)
}

func (x *exerciser) stepAdvise() error {
	switch x.r.IntN(4) {
	case 0:
		return unix.Madvise(x.view, unix.MADV_DONTNEED)
	case 1:
		advice := []int{unix.MADV_RANDOM, unix.MADV_SEQUENTIAL, unix.MADV_NORMAL, unix.MADV_WILLNEED}
		return unix.Madvise(x.view, advice[x.r.IntN(len(advice))])
	}
	off, n := x.anywhere()
	return unix.Fadvise(int(x.file.Fd()), int64(off), int64(n), unix.FADV_DONTNEED)
}

func (x *exerciser) stepReopen() error {
	if err := x.close(); err != nil {
		return err
	}
	return x.open(0)
}

func (x *exerciser) stepStat() error {
	var st, byName unix.Stat_t
	if err := errors.Join(unix.Fstat(int(x.file.Fd()), &st), unix.Stat(x.name, &byName)); err != nil {
		return err
	}
	if size := int64(len(x.model)); st.Size != size || byName.Size != size {
		return fmt.Errorf("fstat says %#x bytes and stat %#x, want %#x", st.Size, byName.Size, size)
	}
	return nil
}

// stepEverything reads the whole file in each of the three ways.
func (x *exerciser) stepEverything() error {
	if err := x.stepStat(); err != nil {
		return err
	}
	buf := make([]byte, len(x.model)+1)
	for _, f := range []*os.File{x.file, x.direct} {
		n, err := f.ReadAt(buf, 0)
		if n != len(x.model) {
			return fmt.Errorf("%d bytes, want %d: %w", n, len(x.model), err)
		}
		if err := x.same(0, buf[:n]); err != nil {
			return err
		}
	}
	end := min((len(x.model)+pageSize-1)&^(pageSize-1), len(x.view))
	return x.same(0, x.view[:end])
}

// stepCtl gives the manager, or the file in it, a command.
func (x *exerciser) stepCtl() error {
	if x.ctl == "" {
		return nil
	}
	name := x.ctl
	commands := []string{"trim", "flush", "empty standby", "empty modified", "empty workingsets"}
	if x.r.IntN(2) == 0 {
		name = filepath.Join(filepath.Dir(x.ctl), "files", filepath.Base(x.name), "ctl")
		commands = []string{"trim", "flush", "prefetch"}
	}
	command := commands[x.r.IntN(len(commands))]
	x.detail("%s", command)
	if err := echo(name, command); err != nil && !errors.Is(err, unix.EBUSY) { // EBUSY: others wait already
		return err
	}
	return nil
}

// fsxRun runs so many exercisers at once, each on a file of its own in dir. Their seeds follow from the round.
func fsxRun(t *testing.T, dir, ctl string, round int, kind fsxKind, args ...string) {
	t.Helper()
	var all sync.WaitGroup
	for i := range kind.files {
		all.Go(func() {
			seed := strconv.Itoa(1 + 1000*round + 1_000_000*i)
			args := append([]string{"-file", filepath.Join(dir, "fsx"+strconv.Itoa(i)), "-seed", seed, "-ctl", ctl,
				"-most", strconv.Itoa(kind.most), "-chunk", strconv.Itoa(kind.chunk)}, args...)
			if err := runChild("fsx", args...); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

type fsxKind struct {
	name        string
	files       int
	most, chunk int // bytes
}

// fsxKinds are a small file, whose operations meet in the same pages, and files that do not fit into the memory together.
var fsxKinds = []fsxKind{{"small", 2, 128 << 10, 32 << 10}, {"large", 4, 5 << 20, 256 << 10}}

// TestFsx compares files with models of them while everything that changes a file's bytes is done to it.
func TestFsx(t *testing.T) {
	ops := []string{"-seeds", short("3", "1"), "-ops", short("500", "300")}
	t.Run("tmpfs", func(t *testing.T) {
		for _, kind := range fsxKinds {
			fsxRun(t, mountTmpfs(t, "size=256M"), "", 0, kind, ops...)
		}
	})
	for _, memory := range []string{"16M", "64M"} {
		for _, kind := range fsxKinds {
			t.Run(memory+" "+kind.name, func(t *testing.T) {
				m := mountMemfs(t, options{memory: memory})
				fsxRun(t, m.dir, m.path(".proc/ctl"), 0, kind, ops...)
			})
		}
	}
}
