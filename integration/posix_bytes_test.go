package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

var _ = scenarios(true, map[string]func(p *trace){
	"FallocateSeek": fallocateSeek,
	"Splices":       splices,
	"MapCalls":      mapCalls,
	"MapBeyondEnd":  mapBeyondEnd,
	"MapPrivate":    mapPrivate,
	"ForkShared":    forkShared,
	"Programs":      programs,
	"SparseTools":   sparseTools,
	"AppendRecords": appendRecords,
	"DirectIO":      directIO,
})

// extents writes down where a file has data, as lseek says.
func (p *trace) extents(fd int, what string) {
	var st unix.Stat_t
	must(p.t, unix.Fstat(fd, &st))
	line := fmt.Sprintf("%s: size %d:", what, st.Size)
	for at := int64(0); ; {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if err != nil {
			line += " " + errnoName(err)
			break
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			line += " hole " + errnoName(err)
			break
		}
		line += fmt.Sprintf(" [%d,%d)", data, hole)
		at = hole
	}
	p.log("%s", line)
}

// sum is a number that stands for bytes.
func sum(b []byte) string { return fmt.Sprintf("%d bytes %08x", len(b), checksum(b)) }

func checksum(b []byte) (h uint32) {
	for _, c := range b {
		h = h*16777619 ^ uint32(c)
	}
	return h
}

// fallocateSeek does everything that makes and takes holes, and looks for them each time, before and after the bytes
// have left the kernel.
func fallocateSeek(p *trace) {
	const page = 4096
	const keep, punch = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE
	for _, sync := range []bool{false, true} {
		fd, err := unix.Open(p.at("f"), unix.O_CREAT|unix.O_TRUNC|unix.O_RDWR, 0o644)
		must(p.t, err)
		step := func(err error, format string, args ...any) {
			what := fmt.Sprintf(format, args...)
			p.call(err, "%s", what)
			if sync {
				must(p.t, unix.Fsync(fd))
			}
			p.extents(fd, what)
			b, err := os.ReadFile(p.at("f"))
			p.call(err, "reads %s", sum(b))
		}
		write := func(n int, off int64) {
			step(errOf(unix.Pwrite(fd, block(n, n), off)), "write of %d at %d", n, off)
		}
		alloc := func(mode uint32, off, n int64) {
			step(unix.Fallocate(fd, mode, off, n), "fallocate %#x %d+%d", mode, off, n)
		}
		truncate := func(n int64) { step(unix.Ftruncate(fd, n), "truncate to %d", n) }
		truncate(64 * page)
		write(10, 5*page+100)
		write(3*page, 10*page)
		alloc(punch|keep, 11*page, page)
		alloc(punch|keep, 5*page+101, 3)
		alloc(punch|keep, 5*page, page)
		alloc(punch|keep, 9*page+5, 2*page)
		alloc(punch|keep, 0, 1<<40)
		write(1, 63*page+4095)
		truncate(63*page + 10)
		truncate(80 * page)
		alloc(punch|keep, 200*page, page)
		write(5*page+7, 70*page+9)
		truncate(70*page + 9)
		truncate(0)
		write(3, 0)
		alloc(punch|keep, 0, 1)
		alloc(punch|keep, 0, 3)
		alloc(punch, 0, 3)
		alloc(0, 0, 0)
		alloc(keep, 0, -1)
		must(p.t, unix.Close(fd))
	}
	// madvise(MADV_REMOVE) punches through a mapping.
	fd, err := unix.Open(p.at("g"), unix.O_CREAT|unix.O_RDWR, 0o644)
	must(p.t, err)
	defer unix.Close(fd)
	must(p.t, unix.Ftruncate(fd, 16*page))
	m, err := unix.Mmap(fd, 0, 16*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(p.t, err)
	defer unix.Munmap(m)
	for _, i := range []int{1, 2, 3, 9} {
		m[i*page] = byte(i)
	}
	p.extents(fd, "stores")
	p.call(unix.Madvise(m[2*page:3*page], unix.MADV_REMOVE), "MADV_REMOVE")
	p.extents(fd, "removed")
	p.log("byte there %d, next %d", m[2*page], m[3*page])
}

// splices moves bytes between files and pipes without a program's buffer.
func splices(p *trace) {
	must(p.t, os.WriteFile(p.at("from"), block(3, 300_000), 0o644))
	open := func(name string, flags int) int {
		fd, err := unix.Open(p.at(name), flags|unix.O_CREAT, 0o644)
		must(p.t, err)
		return fd
	}
	from, to := open("from", unix.O_RDONLY), open("to", unix.O_RDWR)
	appending := open("appending", unix.O_WRONLY|unix.O_APPEND)
	defer func() { unix.Close(from); unix.Close(to); unix.Close(appending) }()
	var pipe [2]int
	must(p.t, unix.Pipe(pipe[:]))
	defer func() { unix.Close(pipe[0]); unix.Close(pipe[1]) }()
	at := func(off int64) *int64 { return &off }

	for _, c := range []struct{ in, out, n int64 }{{0, 0, 10_000}, {5, 7777, 60_000}, {299_000, 80_000, 5000},
		{300_000, 0, 10}} {
		n, err := unix.Splice(from, at(c.in), pipe[1], nil, int(c.n), 0)
		p.call(err, "splice out at %d: %d", c.in, n)
		if n == 0 {
			continue
		}
		moved, err := unix.Splice(pipe[0], nil, to, at(c.out), int(n), unix.SPLICE_F_MOVE)
		p.call(err, "splice in at %d: %d", c.out, moved)
	}
	p.call(errOf(unix.Splice(from, nil, to, nil, 10, 0)), "splice without a pipe")
	must(p.t, errOf(unix.Write(pipe[1], []byte("12345"))))
	p.call(errOf(unix.Splice(pipe[0], nil, appending, nil, 5, 0)), "splice to O_APPEND")
	p.call(errOf(unix.Splice(pipe[0], nil, from, nil, 5, unix.SPLICE_F_NONBLOCK)), "splice to a read-only descriptor")
	iov := unix.Iovec{Base: &block(9, 5000)[0], Len: 5000}
	p.call(errOf(unix.Vmsplice(pipe[1], []unix.Iovec{iov}, 0)), "vmsplice")
	runtime.KeepAlive(iov)
	p.call(errOf(unix.Splice(pipe[0], nil, to, at(200_000), 5000, 0)), "splice of it")
	n, err := unix.Sendfile(to, from, at(1000), 100_000)
	p.call(err, "sendfile: %d", n)
	p.call(errOf(unix.Sendfile(appending, from, at(0), 10)), "sendfile to O_APPEND")
	b, err := os.ReadFile(p.at("to"))
	p.call(err, "the result: %s", sum(b))

	for _, c := range []struct {
		fd       int
		in, out  int64
		n, flags int
	}{{from, 0, 0, 300_000, 0}, {from, 299_999, 400_000, 10, 0}, {from, 400_000, 0, 10, 0}, {to, 0, 1 << 20, 5000, 0},
		{to, 0, 100, 5000, 0},
		{to, 100, 0, 50, 1}} {
		n, err := unix.CopyFileRange(c.fd, at(c.in), to, at(c.out), c.n, c.flags)
		p.call(err, "copy_file_range %d to %d: %d", c.in, c.out, n)
	}
	p.call(errOf(unix.CopyFileRange(from, at(0), appending, at(0), 5, 0)), "copy_file_range to O_APPEND")
	p.call(errOf(unix.CopyFileRange(from, at(0), from, at(0), 5, 0)), "copy_file_range to a read-only descriptor")
	p.call(errOf(unix.CopyFileRange(to, at(0), pipe[1], nil, 5, 0)), "copy_file_range to a pipe")
	b, err = os.ReadFile(p.at("to"))
	p.call(err, "the result: %s", sum(b))
	p.call(unix.IoctlFileClone(to, from), "FICLONE")
}

// mapCalls makes the calls that there are about a mapping, good and bad.
func mapCalls(p *trace) {
	const page = 4096
	fd, err := unix.Open(p.at("f"), unix.O_CREAT|unix.O_RDWR, 0o644)
	must(p.t, err)
	defer unix.Close(fd)
	must(p.t, errOf(unix.Write(fd, block(4, 16*page))))
	m, err := unix.Mmap(fd, 0, 16*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(p.t, err)
	for _, flags := range []int{unix.MS_ASYNC, unix.MS_SYNC, unix.MS_INVALIDATE, unix.MS_SYNC | unix.MS_INVALIDATE,
		unix.MS_SYNC | unix.MS_ASYNC, 0, 64} {
		m[0]++
		p.call(unix.Msync(m, flags), "msync %d", flags)
	}
	p.call(unix.Mlock(m[:2*page]), "mlock")
	p.call(unix.Msync(m, unix.MS_INVALIDATE), "msync of locked pages")
	p.call(unix.Munlock(m[:2*page]), "munlock")
	for _, advice := range []int{unix.MADV_NORMAL, unix.MADV_RANDOM, unix.MADV_SEQUENTIAL, unix.MADV_WILLNEED,
		unix.MADV_DONTNEED,
		unix.MADV_REMOVE, unix.MADV_DONTFORK, unix.MADV_DOFORK, unix.MADV_COLD, unix.MADV_PAGEOUT, unix.MADV_POPULATE_READ,
		unix.MADV_POPULATE_WRITE, unix.MADV_FREE, unix.MADV_WIPEONFORK, 999} {
		m[5*page] = 7
		p.call(unix.Madvise(m[5*page:6*page], advice), "madvise %d", advice)
		p.log("then the byte is %d", m[5*page])
	}
	p.call(unix.Mprotect(m[:page], unix.PROT_READ), "mprotect")
	p.call(unix.Mprotect(m[:page], unix.PROT_READ|unix.PROT_WRITE), "mprotect back")
	p.call(unix.Mprotect(m[:page], unix.PROT_READ|unix.PROT_EXEC), "mprotect to execute")
	vec := make([]byte, 16)
	must(p.t, unix.Madvise(m, unix.MADV_POPULATE_READ))
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, addressOf(&m[0]), 16*page, addressOf(&vec[0]))
	p.call(asError(errno), "mincore")
	must(p.t, unix.Munmap(m))
	m, err = unix.Mmap(fd, 0, 16*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(p.t, err)
	larger, err := unix.Mremap(m, 32*page, unix.MREMAP_MAYMOVE)
	p.call(err, "mremap")
	if err == nil {
		must(p.t, unix.Ftruncate(fd, 32*page))
		larger[31*page] = 9
		wantByte := make([]byte, 1)
		p.call(errOf(unix.Pread(fd, wantByte, 31*page)), "what was stored beyond: %d", wantByte[0])
		must(p.t, unix.Munmap(larger))
	}
	for _, c := range []struct {
		off       int64
		n         int
		prot, how int
	}{{1, page, unix.PROT_READ, unix.MAP_SHARED}, {0, 0, unix.PROT_READ, unix.MAP_SHARED},
		{1 << 40, page, unix.PROT_READ, unix.MAP_SHARED},
		{-page, page, unix.PROT_READ, unix.MAP_SHARED}, {0, page, unix.PROT_READ, 0},
		{0, page, unix.PROT_READ, unix.MAP_SHARED | unix.MAP_POPULATE},
		{0, page, unix.PROT_READ, unix.MAP_PRIVATE | unix.MAP_LOCKED}, {0, page, unix.PROT_NONE, unix.MAP_SHARED},
		{0, page, unix.PROT_READ, unix.MAP_SHARED | unix.MAP_HUGETLB}} {
		m, err := unix.Mmap(fd, c.off, c.n, c.prot, c.how)
		p.call(err, "mmap %d+%d %d %#x", c.off, c.n, c.prot, c.how)
		if err == nil {
			must(p.t, unix.Munmap(m))
		}
	}
	dir, err := unix.Open(p.dir, unix.O_RDONLY, 0)
	must(p.t, err)
	p.call(mapOnce(dir, unix.PROT_READ, unix.MAP_SHARED), "mmap of a directory")
	unix.Close(dir)
	b, err := os.ReadFile(p.at("f"))
	p.call(err, "%s", sum(b))
}

// faults reports whether touching a byte is a SIGBUS or SIGSEGV.
func faults(touch func()) (fault bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { fault = recover() != nil }()
	touch()
	return false
}

// mapBeyondEnd touches mapped pages past the end of the file.
func mapBeyondEnd(p *trace) {
	const page = 4096
	fd, err := unix.Open(p.at("f"), unix.O_CREAT|unix.O_RDWR, 0o644)
	must(p.t, err)
	defer unix.Close(fd)
	must(p.t, errOf(unix.Write(fd, block(4, 2*page+10))))
	m, err := unix.Mmap(fd, 0, 8*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(p.t, err)
	defer unix.Munmap(m)
	private, err := unix.Mmap(fd, 0, 8*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	must(p.t, err)
	defer unix.Munmap(private)
	touch := func(what string) {
		line := what + ":"
		for i := range 8 {
			for _, b := range [][]byte{m, private} {
				var c byte
				line += fmt.Sprint(" ", faults(func() { c = b[i*page+100] }), c, faults(func() { b[i*page+200] = 1 }))
			}
		}
		p.log("%s", line)
	}
	touch("two pages and a bit")
	for _, size := range []int64{2 * page, 5*page + 1, 50, 0, 8 * page} {
		must(p.t, unix.Ftruncate(fd, size))
		touch(fmt.Sprint("truncated to ", size))
	}
	// What was stored past the end inside the last page is not in the file when it grows.
	must(p.t, unix.Ftruncate(fd, page+10))
	m[page+20] = 99
	must(p.t, unix.Msync(m[:2*page], unix.MS_SYNC))
	must(p.t, unix.Ftruncate(fd, 2*page))
	p.log("past the old end: %d", m[page+20])
}

// mapPrivate checks copy-on-write: a private store goes nowhere, and what others write shows until then.
func mapPrivate(p *trace) {
	const page = 4096
	fd, err := unix.Open(p.at("f"), unix.O_CREAT|unix.O_RDWR, 0o644)
	must(p.t, err)
	defer unix.Close(fd)
	must(p.t, errOf(unix.Write(fd, bytes.Repeat([]byte{1}, 4*page))))
	readonly, err := unix.Open(p.at("f"), unix.O_RDONLY, 0)
	must(p.t, err)
	defer unix.Close(readonly)
	m, err := unix.Mmap(readonly, 0, 4*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	must(p.t, err)
	defer unix.Munmap(m)
	m[0], m[page] = 2, 2
	must(p.t, errOf(unix.Pwrite(fd, []byte{3, 3}, 1)))
	must(p.t, errOf(unix.Pwrite(fd, []byte{3}, 2*page)))
	p.log("private %v, %v, %v", m[:4], m[page:page+2], m[2*page:2*page+2])
	b := make([]byte, 4*page)
	_, err = unix.Pread(fd, b, 0)
	p.call(err, "the file %v, %v, %v", b[:4], b[page:page+2], b[2*page:2*page+2])
	p.call(unix.Madvise(m[:page], unix.MADV_DONTNEED), "MADV_DONTNEED")
	p.log("then private %v", m[:4])
}

// forkShared has a child that is forked share a mapping, a descriptor's position and a lock.
func forkShared(p *trace) {
	p.log("%s", run(p.t, p.dir, "python3", "-c", `
import mmap, os, fcntl
f = open("f", "w+b"); f.truncate(1 << 20)
m = mmap.mmap(f.fileno(), 1 << 20)
private = mmap.mmap(f.fileno(), 1 << 20, flags=mmap.MAP_PRIVATE)
fcntl.flock(f, fcntl.LOCK_EX)
os.write(f.fileno(), b"parent")
pid = os.fork()
if pid == 0:
    for i in range(0, 1 << 20, 4096): m[i + 9] = 7
    private[5000] = 1
    os.write(f.fileno(), b"child")
    os._exit(0)
print(os.waitpid(pid, 0)[1])
print(all(m[i + 9] == 7 for i in range(0, 1 << 20, 4096)), private[5000], os.lseek(f.fileno(), 0, 1))
os.fsync(f.fileno())
print(os.pread(f.fileno(), 20, 0), sum(os.pread(f.fileno(), 1 << 20, 0)))
`))
}

// programs runs programs and loads libraries from the file system, and tries to write to them meanwhile.
func programs(p *trace) {
	copyFile := func(from, to string, perm os.FileMode) {
		b, err := os.ReadFile(from)
		must(p.t, err)
		must(p.t, os.WriteFile(p.at(to), b, perm))
	}
	copyFile("/bin/sleep", "sleep", 0o755)
	copyFile("/bin/sh", "plain", 0o644)
	cmd := exec.Command(p.at("sleep"), "100")
	must(p.t, cmd.Start())
	p.call(openClose(p.at("sleep"), unix.O_WRONLY, 0), "opening a running program to write")
	p.call(unix.Truncate(p.at("sleep"), 0), "truncating a running program")
	p.call(openClose(p.at("sleep"), unix.O_RDONLY|unix.O_TRUNC, 0), "O_TRUNC of a running program")
	p.call(os.Rename(p.at("sleep"), p.at("moved")), "renaming a running program")
	p.call(os.Remove(p.at("moved")), "removing a running program")
	p.call(cmd.Process.Signal(unix.Signal(0)), "it runs on")
	must(p.t, cmd.Process.Kill())
	_ = cmd.Wait()

	copyFile("/bin/true", "true", 0o755)
	p.call(exec.Command(p.at("true")).Run(), "a program")
	fd, err := unix.Open(p.at("true"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	must(p.t, err)
	p.call(exec.Command(p.at("true")).Run(), "a program that is open to write")
	unix.Close(fd)
	p.call(exec.Command(p.at("plain")).Run(), "a program without x")
	must(p.t, os.WriteFile(p.at("script"), []byte("#!"+p.at("true")+"\n"), 0o755))
	p.call(exec.Command(p.at("script")).Run(), "a script whose interpreter is here")
	must(p.t, os.WriteFile(p.at("script"), []byte("#!"+p.at("none")+"\n"), 0o755))
	p.call(exec.Command(p.at("script")).Run(), "a script whose interpreter is missing")
	must(p.t, os.WriteFile(p.at("empty"), nil, 0o755))
	p.call(exec.Command(p.at("empty")).Run(), "an empty program")

	libraries, _ := filepath.Glob("/lib/*/libm.so.6")
	if len(libraries) == 0 {
		p.t.Fatal("no libm to copy")
	}
	copyFile(libraries[0], "libm.so", 0o644)
	p.log("%s", run(p.t, p.dir, "python3", "-c", `
import ctypes
lib = ctypes.CDLL("./libm.so")
lib.cos.restype, lib.cos.argtypes = ctypes.c_double, [ctypes.c_double]
print(lib.cos(0.0), open("libm.so", "r+b").readable())`))
	capabilities(p)
}

// capabilities gives a program a capability, which it loses when its bytes or its owner change.
func capabilities(p *trace) {
	const netRaw = "13"
	program := p.at("status")
	renew := func() {
		b, err := os.ReadFile("/bin/grep")
		must(p.t, err)
		must(p.t, os.WriteFile(program, b, 0o755))
		run(p.t, "", "setcap", "cap_net_raw+ep", program)
	}
	show := func(what string) {
		got, err := tryRun("", "", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", program, "CapEff",
			"/proc/self/status")
		p.log("%s: %q %v %q", what, got, err, run(p.t, "", "getcap", program))
	}
	renew()
	show("with capability " + netRaw)
	must(p.t, os.Chown(program, 1, 1))
	show("after chown")
	renew()
	must(p.t, onFD(program, unix.O_WRONLY, func(fd int) error { return errOf(unix.Pwrite(fd, []byte{0x7f}, 0)) }))
	show("after a write")
	renew()
	must(p.t, os.Truncate(program, stat(p.t, program).Size))
	show("after truncate")
	renew()
	must(p.t, os.Chmod(program, 0o711))
	must(p.t, os.Rename(program, program+"2"))
	must(p.t, os.Rename(program+"2", program))
	show("after chmod and rename")
	run(p.t, "", "setcap", "-r", program)
	show("after setcap -r")
}

// sparseTools copies a file with holes with the programs that keep them.
func sparseTools(p *trace) {
	run(p.t, p.dir, "sh", "-c", `truncate -s 64M sparse
printf start | dd of=sparse conv=notrunc status=none
head -c 100000 /dev/zero | tr '\0' x | dd of=sparse bs=4096 seek=5000 conv=notrunc status=none
mkdir to
cp --sparse=auto sparse to/auto; cp --sparse=always sparse to/always; cp --sparse=never --reflink=never sparse to/never
tar -S -cf sparse.tar sparse; mkdir to/tar; tar -xf sparse.tar -C to/tar; rsync -S sparse to/rsync`)
	for _, name := range []string{"sparse", "to/auto", "to/always", "to/never", "to/tar/sparse", "to/rsync"} {
		if name != "sparse" {
			run(p.t, p.dir, "cmp", "sparse", name)
		}
		fd, err := unix.Open(p.at(name), unix.O_RDONLY, 0)
		must(p.t, err)
		p.extents(fd, name)
		unix.Close(fd)
	}
}

// appendRecords has processes append to one file: every record is there once, whole.
func appendRecords(p *trace) {
	const script = `
import os, sys
fd = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
for i in range(300):
    record = (sys.argv[1] * (17 + i * 7 % 900) + "\n").encode()
    if os.write(fd, record) != len(record): sys.exit("short write")
`
	var writers []*exec.Cmd
	for _, name := range []string{"a", "b", "c", "d"} {
		cmd := exec.Command("python3", "-c", script, name)
		cmd.Dir = p.dir
		must(p.t, cmd.Start())
		writers = append(writers, cmd)
	}
	for _, cmd := range writers {
		must(p.t, cmd.Wait())
	}
	lines := strings.Split(string(mustRead(p.t, p.at("log"))), "\n")
	slices.Sort(lines)
	p.log("%d lines %s", len(lines), sum([]byte(strings.Join(lines, "\n"))))
}

// directIO reads and writes past the cache, aligned and not, next to cached writes and mappings.
func directIO(p *trace) {
	const page = 4096
	fd, err := unix.Open(p.at("f"), unix.O_CREAT|unix.O_RDWR|unix.O_DIRECT, 0o644)
	must(p.t, err)
	defer unix.Close(fd)
	cached, err := unix.Open(p.at("f"), unix.O_RDWR, 0)
	must(p.t, err)
	defer unix.Close(cached)
	buffer, err := unix.Mmap(-1, 0, 8*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(p.t, err)
	defer unix.Munmap(buffer)
	copy(buffer, block(5, 8*page))
	for _, c := range []struct {
		from, n int
		off     int64
	}{{0, page, 0}, {0, 4 * page, page}, {1, 100, 5}, {512, 512, 512}, {0, 3, 9 * page}, {7, 5000, 4095}} {
		n, err := unix.Pwrite(fd, buffer[c.from:c.from+c.n], c.off)
		p.call(err, "direct write %d+%d: %d", c.off, c.n, n)
		n, err = unix.Pwrite(cached, []byte("cached"), c.off+50)
		p.call(err, "cached write %d: %d", c.off, n)
		n, err = unix.Pread(fd, buffer[7*page:], c.off)
		p.call(err, "direct read: %s", sum(buffer[7*page:7*page+max(n, 0)]))
		b, err := os.ReadFile(p.at("f"))
		p.call(err, "cached read: %s", sum(b))
	}
}
