package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file looks at a mount from the host's side: processes, descriptors, mounts, resident memory and what the host
// kernel caches of the files.

// mountsUnder lists the mount points at or below dir.
func mountsUnder(dir string) []string {
	var points []string
	eachMount(func(point, fstype, device string) {
		if point == dir || strings.HasPrefix(point, dir+"/") {
			points = append(points, point)
		}
	})
	return points
}

// isMounted says whether a FUSE file system is mounted on dir. It asks the host kernel only, never the mount.
func isMounted(dir string) (mounted bool) {
	eachMount(func(point, fstype, device string) {
		mounted = mounted || point == dir && strings.HasPrefix(fstype, "fuse")
	})
	return mounted
}

func eachMount(f func(point, fstype, device string)) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(string(b)) {
		// 36 35 98:0 /root /point options - type source superoptions
		head, rest, ok := strings.Cut(line, " - ")
		fields, super := strings.Fields(head), strings.Fields(rest)
		if ok && len(fields) > 4 && len(super) > 0 {
			f(unescape.Replace(fields[4]), super[0], fields[2])
		}
	}
}

// daemonPID is the process that serves the mount on dir, 0 if it does not say.
func daemonPID(dir string) int {
	b, err := os.ReadFile(filepath.Join(dir, ".proc/version"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == "Process:" {
			pid, _ := strconv.Atoi(fields[1])
			return pid
		}
	}
	return 0
}

// alive says whether a process is there and not merely waiting to be reaped.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// pid (name) state …; the name may hold anything, a parenthesis included.
	_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')'):]), " ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

// procLine is the command line of a process.
func procLine(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))
}

// childrenOf lists the children of a process.
func childrenOf(pid int) []int {
	var children []int
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, name := range tasks {
		b, _ := os.ReadFile(name)
		for _, field := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(field); err == nil {
				children = append(children, n)
			}
		}
	}
	return children
}

// openFDs lists what a process has open, but for pipes.
func openFDs(pid int) []string {
	var open []string
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, _ := os.ReadDir(dir)
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join(dir, fd.Name()))
		if err == nil && !strings.HasPrefix(target, "pipe:") {
			open = append(open, fd.Name()+" "+target)
		}
	}
	return open
}

// fdsUnder finds processes other than this one with a file under dir open, deleted files included.
func fdsUnder(dir string) map[int]string {
	found := map[int]string{}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil || !strings.HasPrefix(target, dir+"/") {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(fd, "/")[2]); err == nil && pid != os.Getpid() {
			found[pid] = target
		}
	}
	return found
}

// holders names the processes that keep a mount busy.
func holders(dir string) string {
	var b strings.Builder
	for pid, target := range fdsUnder(dir) {
		fmt.Fprintf(&b, "process %d (%s) holds %s\n", pid, procLine(pid), target)
	}
	return b.String()
}

// kernelStacks shows where the threads of the processes stand in the kernel, equal stacks once.
func kernelStacks(pids []int) string {
	threads := map[string]int{}
	for _, pid := range pids {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		for _, task := range tasks {
			stack, err := os.ReadFile(filepath.Join(task, "stack"))
			if err == nil && len(stack) > 0 && !strings.Contains(string(stack), "futex_wait") {
				threads[fmt.Sprintf("process %d\n%s", pid, stack)]++
			}
		}
	}
	var b strings.Builder
	for _, stack := range slices.Sorted(maps.Keys(threads)) {
		fmt.Fprintf(&b, "%d threads of %s", threads[stack], stack)
	}
	return b.String()
}

// residentBytes is the memory that the processes have in RAM together.
func residentBytes(pids []int) (n uint64) {
	for _, pid := range pids {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for line := range strings.Lines(string(b)) {
			if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "VmRSS:" {
				kib, _ := strconv.ParseUint(fields[1], 10, 64)
				n += kib << 10
			}
		}
	}
	return n
}

// cachedPages is how many pages of an open file the host kernel caches. It uses cachestat(2), and mincore(2) on kernels
// before 6.5. It must not run in the process that serves the file.
func cachedPages(fd int) (uint64, error) {
	var all unix.CachestatRange // the zero range is the whole file
	var stat unix.Cachestat_t
	err := unix.Cachestat(uint(fd), &all, &stat, 0)
	if err == nil {
		return stat.Cache, nil
	}
	if !errors.Is(err, unix.ENOSYS) {
		return 0, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Size == 0 {
		return 0, err
	}
	data, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(data)
	resident := make([]byte, (len(data)+4095)/4096)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&data[0])), uintptr(len(data)),
		uintptr(unsafe.Pointer(&resident[0]))); errno != 0 {
		return 0, errno
	}
	var n uint64
	for _, r := range resident {
		n += uint64(r & 1)
	}
	return n, nil
}

// cacheWatch counts what the host kernel caches of the files of a mount. It keeps a descriptor of every file, so that
// one count of ten thousand files takes some milliseconds.
type cacheWatch struct {
	dir  string
	most int // files to hold open

	mu sync.Mutex
	// +checklocks:mu
	files map[string]int // descriptors by name
	// +checklocks:mu
	missed int // files past most
}

func newCacheWatch(dir string, most int) *cacheWatch {
	return &cacheWatch{dir: dir, most: most, files: map[string]int{}}
}

// discover opens the files that have come since the last time, and lets go those that have no name any more.
func (w *cacheWatch) discover() {
	missed, most := 0, w.most
	_ = filepath.WalkDir(w.dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return nil
		}
		w.mu.Lock()
		_, known := w.files[name]
		full := len(w.files) >= most
		w.mu.Unlock()
		if known {
			return nil
		}
		if full {
			missed++
			return nil
		}
		if fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0); err == nil {
			w.mu.Lock()
			w.files[name] = fd
			w.mu.Unlock()
		}
		return nil
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.missed = max(w.missed, missed)
	for name, fd := range w.files {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Nlink == 0 {
			unix.Close(fd)
			delete(w.files, name)
		}
	}
}

// count is what was cached at one moment, in bytes, and of how many files. It asks for every file twice and takes the
// smaller figure: what a file had before the moment and has after it, it had then too. Asked once, a program that goes
// from file to file would be counted with pages that the host has given up by the time it is asked for the next file.
func (w *cacheWatch) count() (n uint64, files int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := make(map[string]uint64, len(w.files))
	for name, fd := range w.files {
		before[name], _ = cachedPages(fd)
	}
	for name, fd := range w.files {
		if before[name] > 0 {
			now, _ := cachedPages(fd)
			n += min(before[name], now) * 4096
		}
	}
	return n, len(w.files)
}

// close lets all files go and says how many could not be watched.
func (w *cacheWatch) close() (missed int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, fd := range w.files {
		unix.Close(fd)
	}
	w.files = nil
	return w.missed
}

// hostPeak is the most that a mount was seen to cost the host. The parts peak at different times; total is the most of
// one moment.
type hostPeak struct {
	rss, cached, total uint64
	samples, files     int
	slowest            time.Duration // count of what is cached
	worst              string        // what the mount said of itself when it cost the most, if that was too much
}

func (p hostPeak) String() string {
	return fmt.Sprintf("resident %d MiB, cached by the host %d MiB, together %d MiB (%d samples, of up to %d files in %v)",
		p.rss>>20, p.cached>>20, p.total>>20, p.samples, p.files, p.slowest.Round(time.Millisecond))
}

// watchHost samples what the mount costs the host until stop is called. stop fails the test if that was ever more than
// memory × 1.1 + 64 MiB: the promise of --memory. A race build has its shadow memory besides, so there only the host's
// cache is held to the figure.
func (m *mount) watchHost(memory uint64) (stop func() hostPeak) {
	m.t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		m.t.Fatal(err)
	}
	bound := memory + memory/10 + 64<<20
	w := newCacheWatch(m.dir, int(min(limit.Cur, 1<<20))-200)
	quit := make(chan struct{})
	var watchers sync.WaitGroup
	watchers.Go(func() {
		for {
			began := time.Now()
			w.discover()
			select {
			case <-quit:
				return
			case <-time.After(max(100*time.Millisecond, 3*time.Since(began))):
			}
		}
	})
	var p hostPeak
	watchers.Go(func() {
		for {
			began := time.Now()
			cached, files := w.count()
			p.slowest = max(p.slowest, time.Since(began))
			rss := residentBytes(append(slices.Clone(m.children), m.pid))
			if rss+cached > p.total && rss+cached > bound {
				info, _ := os.ReadFile(m.path(".proc/meminfo"))
				p.worst = string(info) + kernelStacks(append(slices.Clone(m.children), m.pid))
			}
			p.rss, p.cached, p.total = max(p.rss, rss), max(p.cached, cached), max(p.total, rss+cached)
			p.samples++
			p.files = max(p.files, files)
			select {
			case <-quit:
				return
			case <-time.After(max(20*time.Millisecond, 5*time.Since(began))):
			}
		}
	})
	return func() hostPeak {
		m.t.Helper()
		close(quit)
		watchers.Wait()
		if missed := w.close(); missed > 0 {
			m.t.Errorf("%d files were not watched, for want of descriptors: raise ulimit -n", missed)
		}
		got := p.total
		if raceBuild {
			got = p.cached
		}
		if got > bound {
			m.t.Errorf("the mount cost the host %d MiB, promised are at most %d MiB: %v\nat the worst moment:\n%s", got>>20, bound>>20, p, p.worst)
		}
		m.t.Logf("host memory at most: %v; bound %d MiB", p, bound>>20)
		return p
	}
}

// mountTmpfs mounts a tmpfs of a size, the oracle of POSIX cases, and unmounts it when the test ends.
func mountTmpfs(t testing.TB, optionString string) string {
	t.Helper()
	needMount(t)
	dir := filepath.Join(scratch(t), "tmpfs")
	must(t, os.Mkdir(dir, 0o755))
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, optionString); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("umount %s: %v\n%s", dir, err, holders(dir))
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir
}
