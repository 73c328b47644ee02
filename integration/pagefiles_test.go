package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// pageFile is one line of .proc/pagefiles.
type pageFile struct {
	Number   int    `json:"number"`
	Max      uint64 `json:"max_pages"`
	Size     uint64 `json:"size_pages"`
	Used     uint64 `json:"used_pages"`
	Priority int    `json:"priority"`
	Name     string `json:"name"`
}

func (m *mount) pageFiles() (files []pageFile) {
	m.t.Helper()
	b, err := os.ReadFile(m.path(".proc/pagefiles.json"))
	must(m.t, err)
	var doc struct {
		Files []pageFile `json:"pagefiles"`
	}
	must(m.t, json.Unmarshal(b, &doc))
	return doc.Files
}

// fdOf is the daemon's descriptor of a page file, by which it can still be reached.
func (m *mount) fdOf(name string) string {
	m.t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", m.pid))
	must(m.t, err)
	for _, fd := range fds {
		if target, _ := os.Readlink(fd); strings.TrimSuffix(target, " (deleted)") == name {
			return fd
		}
	}
	m.t.Fatalf("the daemon has no %s open", name)
	return ""
}

// TestPageFilesComeAndGo: a mount with two page files of different priorities gets a third one, and loses those that it
// came with, one after the other, while programs read and write. Every byte stays.
func TestPageFilesComeAndGo(t *testing.T) {
	second := filepath.Join(scratch(t), "second")
	third := filepath.Join(scratch(t), "third")
	m := mountMemfs(t, options{memory: "32M", pageFile: "192M", flags: []string{"--pagefile", second + ",size=64M,prio=9"}})
	const files, size = 20, 4 << 20
	name := func(i int) string { return m.path(fmt.Sprint("file", i)) }
	for i := range files {
		must(t, writeContent(name(i), i, size))
	}
	m.ctl("trim")
	f := m.pageFiles()
	if len(f) != 2 || f[1].Name != second || f[1].Priority != 9 || f[1].Used < f[1].Max*9/10 || f[0].Used == 0 {
		t.Fatalf("80 MiB lie so: %+v; want the file of priority 9 full first", f)
	}

	var wg sync.WaitGroup
	quit := make(chan struct{})
	for w := range 2 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-quit:
					return
				default:
				}
				i := n % (files / 2)
				if w == 0 {
					wantContent(t, name(i), i, size)
				} else if err := writeContent(name(files/2+i), files/2+i, size); err != nil {
					t.Error(err)
				}
			}
		})
	}
	m.ctl("pagefile add " + third + ",size=32M-192M,prio=3")
	for _, remove := range []string{"pagefile remove " + second, "pagefile remove 0"} {
		// What is left of a write that was refused for the removal's sake is no reason to fail: there is room enough.
		if err := m.tryCtl(remove); err != nil {
			t.Errorf("%s: %v", remove, err)
		}
		m.check()
	}
	close(quit)
	wg.Wait()
	if f = m.pageFiles(); len(f) != 1 || f[0].Name != third || f[0].Used == 0 {
		t.Fatalf("afterwards: %+v", f)
	}
	if err := m.tryCtl("pagefile remove 2"); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("removing the last page file, which holds more than memory can: %v", err)
	}
	for i := range files {
		wantContent(t, name(i), i, size)
	}
	m.pageOut()
	for i := range files {
		wantContent(t, name(i), i, size)
	}
	// With the files its space on the disk goes as well, but for its minimum.
	run(t, m.dir, "sh", "-c", "rm file*")
	disk := m.fdOf(third)
	if !within(20*time.Second, func() bool {
		var st syscall.Stat_t
		return syscall.Stat(disk, &st) == nil && st.Blocks*512 <= 33<<20
	}) {
		t.Errorf("the page file still takes its space: %+v", m.pageFiles())
	}
	m.ctl("pagefile add " + second + ",size=64M") // as many descriptors as at first
}

// TestPageFileAddRefused: what cannot be a page file is refused in words, and nothing has changed.
func TestPageFileAddRefused(t *testing.T) {
	m := mountMemfs(t, options{memory: "16M", pageFile: "16M"})
	there := filepath.Join(scratch(t), "there")
	must(t, os.WriteFile(there, nil, 0o600))
	for spec, want := range map[string]syscall.Errno{
		"relative": syscall.EINVAL, there: syscall.EINVAL, "/no/such/place/x": syscall.EINVAL, "none": syscall.EINVAL,
		m.path("own"): syscall.EINVAL, there + "2,size=8000T": syscall.EINVAL, there + "2,prio=x": syscall.EINVAL,
		filepath.Dir(there) + ",size=2G": syscall.EINVAL, // more records than half of the memory
	} {
		wantErrno(t, "pagefile add "+spec, m.tryCtl("pagefile add "+spec), want)
	}
	wantErrno(t, "pagefile remove 7", m.tryCtl("pagefile remove 7"), syscall.EINVAL)
	wantErrno(t, "inject", m.tryCtl("inject read=EIO"), syscall.EPERM)
	if f := m.pageFiles(); len(f) != 1 {
		t.Errorf("there are %+v", f)
	}
}

// TestFlippedBit: one wrong bit in the page file makes that page, and no other, an error, which is counted and logged.
func TestFlippedBit(t *testing.T) {
	for _, encrypt := range []string{"true", "false"} {
		t.Run("encrypt="+encrypt, func(t *testing.T) {
			m := mountMemfs(t, options{memory: "16M", pageFile: "128M", flags: []string{"--encrypt=" + encrypt}})
			const pages = 2048
			must(t, writeContent(m.path("file"), 1, pages*4096))
			want, err := os.ReadFile(m.path("file"))
			must(t, err)
			m.pageOut()
			lines := strings.Split(string(readFile(t, m.path(".proc/files/file/pages"))), "\n")
			fields := strings.Fields(lines[1000+1])
			var slot int64
			if _, err := fmt.Sscan(fields[7], &slot); err != nil || fields[0] != "1000" || fields[1] != "Paged" {
				t.Fatalf("page 1000: %q", lines[1001])
			}
			disk, err := os.OpenFile(m.fdOf(m.pageFiles()[0].Name), os.O_RDWR, 0)
			must(t, err)
			defer disk.Close()
			b := make([]byte, 1)
			at := slot*4096 + 77
			_, err = disk.ReadAt(b, at)
			must(t, err)
			b[0] ^= 0x10
			_, err = disk.WriteAt(b, at)
			must(t, err)
			must(t, disk.Sync())

			f, err := os.Open(m.path("file"))
			must(t, err)
			defer f.Close()
			var bad []int
			page := make([]byte, 4096)
			for i := range pages {
				switch _, err := f.ReadAt(page, int64(i)*4096); {
				case errors.Is(err, syscall.EIO):
					bad = append(bad, i)
				case err != nil:
					t.Fatalf("page %d: %v", i, err)
				case string(page) != string(want[i*4096:(i+1)*4096]):
					t.Errorf("page %d holds something else", i)
				}
			}
			if len(bad) != 1 || bad[0] != 1000 {
				t.Errorf("pages %v are errors; want page 1000 alone", bad)
			}
			if n := m.vmstat().get(t, "checksum_errors"); n == 0 {
				t.Error("it was not counted")
			}
			if !within(5*time.Second, func() bool { return strings.Contains(m.log(), fmt.Sprint("slot ", slot)) }) {
				t.Errorf("it was not logged; want a line with slot %d", slot)
			}
			// A new page in its place is as good as any.
			must(t, patchFile(m.path("file"), page, 1000*4096))
		})
	}
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	must(t, err)
	return b
}

func patchFile(name string, b []byte, off int64) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(b, off); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// TestWipedDisk: with --wipe nothing of a file is on the disk when the file is gone.
func TestWipedDisk(t *testing.T) {
	m := mountMemfs(t, options{memory: "16M", pageFile: "128M", flags: []string{"--wipe", "--encrypt=false"}})
	secret := strings.Repeat("a secret that nobody must find on the disk ", 24<<20/43)
	must(t, os.WriteFile(m.path("file"), []byte(secret), 0o644))
	m.pageOut()
	if !strings.Contains(string(m.pageFileBytes(t)), secret[:43]) {
		t.Fatal("the secret is not there as long as the file is")
	}
	must(t, os.Remove(m.path("file")))
	if !within(20*time.Second, func() bool { return !strings.Contains(string(m.pageFileBytes(t)), secret[:43]) }) {
		t.Error("the secret is on the disk, and the file is gone")
	}
}

// TestInject: a mount that was made for it fails as it is told, and works again when it is told so.
func TestInject(t *testing.T) {
	m := mountMemfs(t, options{memory: "16M", pageFile: "128M", flags: []string{"--inject", "none"}})
	must(t, writeContent(m.path("file"), 1, 24<<20))
	m.pageOut()
	m.ctl("inject read=EIO rate=1")
	if _, err := os.ReadFile(m.path("file")); !errors.Is(err, syscall.EIO) {
		t.Errorf("reading: %v", err)
	}
	wantErrno(t, "inject burn", m.tryCtl("inject burn"), syscall.EINVAL)
	m.ctl("inject none")
	wantContent(t, m.path("file"), 1, 24<<20)
	if n := m.vmstat().get(t, "read_errors"); n == 0 {
		t.Error("nothing was counted")
	}
}

// TestGuaranteedFrames: the frames that --min names are locked in memory, and a memory without them is refused.
func TestGuaranteedFrames(t *testing.T) {
	m := mountMemfs(t, options{memory: "64M", flags: []string{"--min", "20M"}})
	isLocked := func(mib uint64) {
		t.Helper()
		var locked uint64
		for line := range strings.Lines(string(readFile(t, fmt.Sprintf("/proc/%d/status", m.pid)))) {
			_, _ = fmt.Sscanf(line, "VmLck: %d kB", &locked)
		}
		// Less what records took over, and more for keys.
		if mib > 0 && locked < mib<<10-2048 || locked > mib<<10+1024 || m.counters("meminfo").get(t, "Guaranteed") != mib<<10 {
			t.Errorf("%d kB are locked and %d guaranteed, want %d MiB", locked, m.counters("meminfo").get(t, "Guaranteed"), mib)
		}
	}
	isLocked(20)
	wantErrno(t, "memory 24M", m.tryCtl("memory 24M"), syscall.EINVAL)
	m.ctl("memory 48M")
	must(t, writeContent(m.path("file"), 1, 64<<20))
	// In both directions, with the frames in use; what cannot be had is refused, and nothing has changed.
	m.ctl("min 26M")
	isLocked(26)
	wantErrno(t, "min of more than there is", m.tryCtl("min 48M"), syscall.EINVAL)
	if reply := string(readFile(t, m.path(".proc/ctl"))); !strings.Contains(reply, "more memory first") {
		t.Errorf("min 48M: %q", reply)
	}
	isLocked(26)
	m.ctl("min 4M")
	isLocked(4)
	m.ctl("memory 24M")
	m.check()
	run(t, "", memfsBinary, "mount", "-o", "remount,memory=64M,min=30M", m.dir)
	isLocked(30)
	m.ctl("min 0")
	isLocked(0)
	wantContent(t, m.path("file"), 1, 64<<20)
}
