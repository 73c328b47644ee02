package integration

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pageMap is the map of a file, one letter a page, without the page numbers before each line.
func (m *mount) pageMap(name string) string {
	m.t.Helper()
	b, err := os.ReadFile(m.path(".proc/files", name, "map"))
	if err != nil {
		m.t.Fatal(err)
	}
	var pages strings.Builder
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) != 2 {
			m.t.Fatalf("map of %s: line %q is not a page number and letters", name, line)
		}
		if first, err := strconv.ParseUint(fields[0], 16, 64); err != nil || first != uint64(pages.Len()) {
			m.t.Fatalf("map of %s: line %q does not begin with page %x", name, line, pages.Len())
		}
		pages.WriteString(fields[1])
	}
	m.agree(name, pages.String())
	return pages.String()
}

// agree fails the test unless the other forms of a map say the same: map.json and, but for the holes, pages.json.
func (m *mount) agree(name, pages string) {
	m.t.Helper()
	var lines struct {
		Map []struct {
			FirstPage uint64 `json:"first_page"`
			Pages     string `json:"pages"`
		} `json:"map"`
	}
	m.json(".proc/files/"+name+"/map.json", &lines)
	var joined strings.Builder
	for _, line := range lines.Map {
		joined.WriteString(line.Pages)
	}
	if joined.String() != pages {
		m.t.Errorf("map.json of %s says %q, map %q", name, joined.String(), pages)
	}
	var table struct {
		Pages []struct {
			Index uint64 `json:"index"`
			State string `json:"state"`
			Frame *int64 `json:"frame"`
			Slot  *int64 `json:"slot"`
		} `json:"pages"`
	}
	m.json(".proc/files/"+name+"/pages.json", &table)
	listed := []byte(strings.Repeat(".", len(pages)))
	for _, p := range table.Pages {
		letter := map[string]byte{"Hole": '.', "Committed": 'z', "Active": 'A', "Standby": 'S', "Modified": 'M',
			"ModifiedNoWrite": 'N', "Transition": 'T', "Paged": 'P'}[p.State]
		listed[p.Index] = letter
		if inMemory := strings.IndexByte("ASMNT", letter) >= 0; inMemory != (p.Frame != nil) {
			m.t.Errorf("page %d of %s is %s with frame %v", p.Index, name, p.State, p.Frame)
		}
		if letter == 'P' && p.Slot == nil || letter == 'z' && p.Slot != nil {
			m.t.Errorf("page %d of %s is %s with slot %v", p.Index, name, p.State, p.Slot)
		}
	}
	if string(listed) != pages {
		m.t.Errorf("pages.json of %s says %q, map %q", name, listed, pages)
	}
}

// json reads a JSON control file.
func (m *mount) json(name string, to any) {
	m.t.Helper()
	b, err := os.ReadFile(m.path(name))
	if err != nil {
		m.t.Fatal(err)
	}
	if err := json.Unmarshal(b, to); err != nil {
		m.t.Fatalf("%s: %v\n%s", name, err, tail(string(b)))
	}
}

// TestPagesMove watches single pages of a file move between the lists, with exactly the faults that this takes.
func TestPagesMove(t *testing.T) {
	const pages = 64
	m := mountMemfs(t, options{})
	if err := writeContent(m.path("file"), 3, pages*4096); err != nil {
		t.Fatal(err)
	}
	wantMap(t, m, "after writing", strings.Repeat("A", pages))

	m.ctl("trim")
	if got := m.pageMap("file"); strings.Trim(got, "SM") != "" || len(got) != pages {
		t.Errorf("after trim the map is %q, want %d pages Modified or Standby", got, pages)
	}
	m.ctl("flush")
	wantMap(t, m, "after trim and flush", strings.Repeat("S", pages))

	// Soft faults: three pages touched, three transition faults, nothing read.
	fd, err := unix.Open(m.path("file"), unix.O_RDONLY, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM)) // one request a page
	touched := []int{3, 17, 40}
	before := m.vmstat()
	touch(t, fd, touched)
	after := m.vmstat()
	wantMap(t, m, "after touching three Standby pages", withPages(strings.Repeat("S", pages), touched, 'A'))
	wantFaults(t, before, after, counters{"page_faults": 3, "transition_faults": 3, "hard_faults": 0, "demand_zero_faults": 0, "pages_input": 0})

	// Pages that the host still caches are touched without any fault.
	before = m.vmstat()
	touch(t, fd, touched)
	wantFaults(t, before, m.vmstat(), counters{"page_faults": 0})

	// Trimmed while clean they need not be written again.
	m.ctl("trim")
	m.ctl("flush")
	wantMap(t, m, "after the second trim", strings.Repeat("S", pages))
	if n := m.vmstat().since(t, before, "pages_output"); n != 0 {
		t.Errorf("%d clean pages were written again", n)
	}

	// Hard faults.
	m.ctl("empty standby")
	wantMap(t, m, "after emptying Standby", strings.Repeat("P", pages))
	before = m.vmstat()
	touch(t, fd, touched)
	after = m.vmstat()
	got := m.pageMap("file")
	for i := range pages {
		switch want := withPages(strings.Repeat("P", pages), touched, 'A')[i]; {
		case got[i] == want:
		case got[i] == 'S' && want == 'P': // read along with its cluster
		default:
			t.Errorf("after touching three paged pages, page %d is %c, want %c", i, got[i], want)
		}
	}
	if n := after.since(t, before, "hard_faults") + after.since(t, before, "transition_faults"); n != 3 {
		t.Errorf("three touches of paged pages took %d faults", n)
	}
	if n := after.since(t, before, "hard_faults"); n == 0 {
		t.Error("three touches of paged pages took no hard fault")
	}
	if in := after.since(t, before, "pages_input"); in != uint64(pages-strings.Count(got, "P")) {
		t.Errorf("pages_input grew by %d, but %d pages have left the page file", in, pages-strings.Count(got, "P"))
	}

	// The rest comes back with a fault each, soft or hard, and every page is read from the page file once.
	before2 := m.vmstat()
	wantContent(t, m.path("file"), 3, pages*4096)
	after = m.vmstat()
	wantMap(t, m, "after reading all", strings.Repeat("A", pages))
	if n := after.since(t, before2, "page_faults"); n != pages-3 {
		t.Errorf("reading the other %d pages took %d faults", pages-3, n)
	}
	if n := after.since(t, before, "pages_input"); n != pages {
		t.Errorf("%d pages were read from the page file, want %d", n, pages)
	}

	// The first store of a page is a demand-zero fault; a hole takes nothing.
	before = m.vmstat()
	f, err := os.Create(m.path("sparse"))
	must(t, err)
	_, err = f.WriteAt(block(4, 4096), 10*4096)
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
	wantMapOf(t, m, "sparse", "of a sparse file", strings.Repeat(".", 10)+"A")
	wantFaults(t, before, m.vmstat(), counters{"demand_zero_faults": 1, "hard_faults": 0, "transition_faults": 0})

	// Punching a hole frees at once.
	fd2, err := unix.Open(m.path("file"), unix.O_RDWR, 0)
	must(t, err)
	defer unix.Close(fd2)
	must(t, unix.Fallocate(fd2, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 8*4096, 8*4096))
	wantMap(t, m, "after punching a hole", strings.Repeat("A", 8)+strings.Repeat(".", 8)+strings.Repeat("A", pages-16))
	must(t, unix.Fallocate(fd2, 0, 8*4096, 4*4096))
	wantMap(t, m, "after fallocate", strings.Repeat("A", 8)+"zzzz...."+strings.Repeat("A", pages-16))
}

// touch reads one byte of each page.
func touch(t testing.TB, fd int, pages []int) {
	t.Helper()
	var b [1]byte
	for _, p := range pages {
		if n, err := unix.Pread(fd, b[:], int64(p)*4096); n != 1 {
			t.Fatalf("page %d: %v", p, err)
		}
	}
}

// withPages is a map with some pages' letters replaced.
func withPages(s string, pages []int, letter byte) string {
	b := []byte(s)
	for _, p := range pages {
		b[p] = letter
	}
	return string(b)
}

func wantMap(t testing.TB, m *mount, when, want string) {
	t.Helper()
	wantMapOf(t, m, "file", when, want)
}

func wantMapOf(t testing.TB, m *mount, name, when, want string) {
	t.Helper()
	if got := m.pageMap(name); got != want {
		t.Errorf("map %s:\n got %s\nwant %s", when, got, want)
	}
}

// wantFaults fails the test unless the counters grew by exactly these figures.
func wantFaults(t testing.TB, before, after, want counters) {
	t.Helper()
	for name, n := range want {
		if got := after.since(t, before, name); got != n {
			t.Errorf("%s grew by %d, want %d", name, got, n)
		}
	}
}

// TestHostAccounting compares what the manager says that the host kernel may cache with what the kernel says it does.
// The manager may count pages that the kernel has dropped by itself, but never fewer than there are, and after unmapping
// everything there are none.
func TestHostAccounting(t *testing.T) {
	m := mountMemfs(t, options{memory: "48M"})
	w := newCacheWatch(m.dir, 5000)
	defer w.close()
	compare := func(when string) {
		t.Helper()
		w.discover()
		var said, limit uint64
		if !within(5*time.Second, func() bool { // the trimmer may have a moment's work left
			info := m.counters("meminfo")
			said, limit = info.get(t, "HostCached")<<10, info.get(t, "HostLimit")<<10
			return said <= limit
		}) {
			t.Errorf("%s: HostCached is %d KiB, above HostLimit, %d KiB", when, said>>10, limit>>10)
		}
		cached, files := w.count()
		if cached > said {
			t.Errorf("%s: the host caches %d KiB of %d files, HostCached says %d KiB", when, cached>>10, files, said>>10)
		}
		t.Logf("%s: the host caches %d KiB of %d files, HostCached says %d KiB", when, cached>>10, files, said>>10)
	}
	run(t, "", "cp", "-a", goSource(t, "net"), m.path("net"))
	run(t, "", "sync", "-f", m.dir)
	compare("after cp")
	run(t, m.dir, "sh", "-c", "find . -type f -print0 | xargs -0 cat > /dev/null")
	compare("after reading")
	must(t, writeContent(m.path("big"), 1, 80<<20))
	compare("after writing a big file")
	wantContent(t, m.path("big"), 1, 80<<20)
	compare("after reading it")
	run(t, m.dir, "python3", "-c", `
import mmap, random
with open("big", "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
    for i in range(3000):
        o = random.randrange(len(m))
        m[o] = m[o]
    m.flush()
`)
	compare("after a mapping")
	must(t, os.Truncate(m.path("big"), 40<<20))
	compare("after truncating it")
	m.ctl("empty workingsets")
	if cached, _ := w.count(); cached != 0 {
		t.Errorf("after unmapping everything the host still caches %d KiB", cached>>10)
	}
	compare("after unmapping everything")
	if said := m.counters("meminfo").get(t, "HostCached"); said != 0 {
		t.Errorf("after unmapping everything HostCached says %d KiB", said)
	}
}
