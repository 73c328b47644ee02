package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestResizeWhileFioVerifies changes memory and size at random while fio writes and verifies and files of four times the
// memory lie there, which are then read back. What is refused changes nothing.
func TestResizeWhileFioVerifies(t *testing.T) {
	const files, size = 16, 8 << 20 // four times the least memory that they are read back with
	m := mountMemfs(t, options{memory: "64M", pageFile: "512M"})
	for i := range files {
		must(t, writeContent(m.path(fmt.Sprint(i)), i, size))
	}
	var programs sync.WaitGroup
	for job := range 3 {
		programs.Go(func() {
			for round := range 2 {
				if err := m.fioVerify(job, round, "24m"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { programs.Wait(); close(done) }()
	rnd := rand.New(rand.NewPCG(1, 5))
	steps := 0
	for running := true; running || steps < 10; steps++ {
		m.resize([]int{16, 24, 32, 64, 96, 128}[rnd.IntN(6)])
		m.ctl(fmt.Sprintf("size %dM", 256+rnd.IntN(256)))
		select {
		case <-done:
			running = false
		case <-time.After(20 * time.Millisecond):
		}
	}
	t.Logf("%d changes", steps)
	m.resize(32)
	for i := range files {
		wantContent(t, m.path(fmt.Sprint(i)), i, size)
	}
	if m.vmstat().get(t, "pages_input") == 0 {
		t.Error("nothing was paged in")
	}

	was := mustRead(t, m.path(".proc/limits"))
	for command, errno := range map[string]unix.Errno{
		"memory 15M": unix.EINVAL, "memory 4E": unix.EINVAL, "memory 0": unix.EINVAL, "size 100M": unix.EINVAL,
	} {
		wantErrno(t, command, m.tryCtl(command), errno)
		answer := mustRead(t, m.path(".proc/ctl"))
		if !strings.HasPrefix(string(answer), "ERR EINVAL ") {
			t.Errorf("%s: the answer is %q", command, answer)
		}
		t.Logf("%s: %s", command, answer)
	}
	if got := mustRead(t, m.path(".proc/limits")); string(got) != string(was) {
		t.Errorf("refused commands have changed\n%s\nto\n%s", was, got)
	}
}

// resize has the memory changed, and looks whether everything goes by the new one.
func (m *mount) resize(mebibytes int) {
	m.t.Helper()
	m.ctl(fmt.Sprintf("memory %dM", mebibytes))
	info := m.counters("meminfo")
	memory := uint64(mebibytes) << 10
	if got := info.get(m.t, "MemTotal"); got != memory {
		m.t.Errorf("MemTotal is %d kB, want %d", got, memory)
	}
	frames, retired := info.get(m.t, "Frames"), info.get(m.t, "Retired")
	if frames < memory/2 || frames > memory*2/3 || retired != 0 {
		m.t.Errorf("in a memory of %d kB, frames are %d kB, retired %d kB", memory, frames, retired)
	}
	if limit := info.get(m.t, "HostLimit"); limit < memory/5 || limit > memory/3 {
		m.t.Errorf("in a memory of %d kB, HostLimit is %d kB", memory, limit)
	}
	if most := m.maxDirty(); most != 0 && (most < memory/16 || most > memory/8) {
		m.t.Errorf("in a memory of %d kB, the device takes %d kB of dirty data", memory, most)
	}
	m.check()
}

// maxDirty is how much dirty data the host takes for the mount, in kB; 0 if nobody may look.
func (m *mount) maxDirty() uint64 {
	m.t.Helper()
	var st unix.Stat_t
	must(m.t, unix.Stat(m.dir, &st))
	device := fmt.Sprintf("%d:%d", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)))
	b, err := os.ReadFile(filepath.Join("/sys/class/bdi", device, "max_bytes"))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	must(m.t, err)
	return n >> 10
}

// TestShrinkingGivesMemoryBack fills a large memory, makes it small and looks at what the daemon still holds. Then it
// grows again and is filled again.
func TestShrinkingGivesMemoryBack(t *testing.T) {
	const size = 160 << 20
	m := mountMemfs(t, options{memory: "256M", pageFile: "512M"})
	must(t, writeContent(m.path("file"), 1, size))
	wantContent(t, m.path("file"), 1, size)
	m.ctl("trim")
	full := m.resident()
	m.resize(32)
	small := m.resident()
	t.Logf("the daemon holds %d MiB of 256M, and %d MiB of 32M", full>>20, small>>20)
	// Generous: a tenth and 64 MiB above the memory is what the daemon may cost at all.
	if most := uint64(32<<20 + 32<<20/10 + 64<<20); small > most && !raceBuild || full < small+100<<20 {
		t.Errorf("the daemon held %d MiB in 256M, and holds %d MiB in 32M", full>>20, small>>20)
	}
	wantContent(t, m.path("file"), 1, size)
	m.check()
	m.resize(256)
	wantContent(t, m.path("file"), 1, size)
	m.ctl("trim")
	if got := m.resident(); got < small+100<<20 {
		t.Errorf("grown again and filled, the daemon holds %d MiB", got>>20)
	}
}

// resident is what the daemon holds of memory, in bytes.
func (m *mount) resident() uint64 {
	m.t.Helper()
	for line := range strings.Lines(string(mustRead(m.t, fmt.Sprintf("/proc/%d/smaps_rollup", m.pid)))) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "Rss:" {
			n, err := strconv.ParseUint(fields[1], 10, 64)
			must(m.t, err)
			return n << 10
		}
	}
	m.t.Fatal("no Rss in smaps_rollup")
	return 0
}

// TestSizeIsTheLimit: like tmpfs's size=, but live. statfs shows it, a write beyond is ENOSPC, what files hold cannot be
// undercut.
func TestSizeIsTheLimit(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "128M"})
	m.ctl("size 8M")
	var st unix.Statfs_t
	must(t, unix.Statfs(m.dir, &st))
	if total, free := st.Blocks*uint64(st.Bsize), st.Bavail*uint64(st.Bsize); total != 8<<20 || free != 8<<20 {
		t.Errorf("statfs shows %d bytes, %d free, want 8M of both", total, free)
	}
	must(t, writeContent(m.path("file"), 1, 6<<20))
	if free := freeBytes(t, m.dir); free != 2<<20 {
		t.Errorf("with 6M of 8M in use %d bytes are free", free)
	}
	wantErrno(t, "writing 4M into 2M", writeContent(m.path("more"), 2, 4<<20), unix.ENOSPC)
	must(t, os.Remove(m.path("more")))
	wantErrno(t, "a size of 5M with 6M in use", m.tryCtl("size 5M"), unix.EINVAL)
	m.ctl("size 6M")
	wantErrno(t, "writing into a full file system", writeContent(m.path("more"), 2, 4096), unix.ENOSPC)
	must(t, os.Remove(m.path("more")))
	must(t, os.Mkdir(m.path("directory"), 0o755)) // records do not count
	must(t, writeInPlace(m.path("file"), 1, 6<<20))
	m.ctl("size default")
	must(t, writeContent(m.path("more"), 2, 40<<20))
	wantContent(t, m.path("file"), 1, 6<<20)
	wantContent(t, m.path("more"), 2, 40<<20)
}
