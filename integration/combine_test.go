package integration

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestCombine: copies of a file share its pages when they are told to, programs that map and write them see nothing of it,
// and what it saves is said.
func TestCombine(t *testing.T) {
	m := mountMemfs(t, options{memory: "64M", pageFile: "256M"})
	const copies, size = 4, 6 << 20
	name := func(i int) string { return m.path(fmt.Sprint("copy", i)) }
	want := make([]byte, size)
	for i := range copies {
		must(t, writeContent(name(i), 7, size))
	}
	copy(want, readFile(t, name(0)))
	m.ctl("empty workingsets")
	before := m.counters("meminfo").get(t, "MemFree")
	// A page that is on its way out just then is left alone; the next time it is not.
	var combined, freed uint64
	var reply string
	if !within(10*time.Second, func() bool {
		m.ctl("combine")
		reply = string(readFile(t, m.path(".proc/ctl")))
		var now, frames uint64
		if _, err := fmt.Sscanf(reply, "OK combined=%d freed=%d", &now, &frames); err != nil {
			t.Fatalf("combine: %q", reply)
		}
		combined, freed = combined+now, freed+frames
		return combined >= (copies-1)*size/4096*9/10
	}) {
		t.Fatalf("%d pages combined, at last: %q", combined, reply)
	}
	m.check()
	info := m.counters("meminfo")
	if got := info.get(t, "CombinedSaved"); got != combined*4 {
		t.Errorf("%d kB are saved, of %d pages", got, combined)
	}
	if got := info.get(t, "MemFree"); got < before+freed*4*8/10 {
		t.Errorf("%d kB are free, %d before", got, before)
	}
	for i := range copies {
		wantContent(t, name(i), 7, size)
	}
	// Stores into one are not seen in the others, in memory or from the page file.
	for round := range 2 {
		text := []byte(fmt.Sprint("round ", round))
		must(t, patchFile(name(1), text, 100_000))
		must(t, patchFile(name(2), want[:8192], 40960))
		m.pageOut()
		m.check()
		b := readFile(t, name(1))
		if !bytes.Equal(b[100_000:100_000+len(text)], text) || !bytes.Equal(b[:100_000], want[:100_000]) {
			t.Error("a store is lost")
		}
		wantContent(t, name(0), 7, size)
		wantContent(t, name(3), 7, size)
	}
	if n := m.vmstat().get(t, "write_copies"); n == 0 {
		t.Error("no page was copied on write")
	}
	if text := string(readFile(t, m.path(".proc/files/copy3/info"))); !strings.Contains(text, "Combined:") {
		t.Errorf("info: %q", text)
	}
	for i := range copies {
		must(t, os.Remove(name(i)))
	}
	if !within(10*time.Second, func() bool { return m.counters("meminfo").get(t, "Combined") == 0 }) {
		t.Errorf("the files are gone, and %d kB are combined", m.counters("meminfo").get(t, "Combined"))
	}
}

// TestCombineProcesses: private pages of two processes and a file's with the same bytes are one frame, and what says how much
// memory there is says so; a store makes one of them its own again, and what they held goes back when they end.
func TestCombineProcesses(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "64M"})
	const pages, base = 64, 0x10000000
	content := make([]byte, pages*4096)
	for i := range content {
		content[i] = byte(i>>12 + i%251)
	}
	must(t, os.WriteFile(m.path("file"), content, 0644))
	m.ctl("empty workingsets")
	mem := func(name string) *os.File {
		c := m.process(t, name)
		c.say(fmt.Sprintf("VirtualAlloc %#x %#x MEM_RESERVE|MEM_COMMIT|MEM_WRITE_WATCH PAGE_READWRITE", base, len(content)))
		f, err := os.OpenFile(m.path(".proc", name, "mem"), os.O_RDWR, 0)
		must(t, err)
		t.Cleanup(func() { f.Close() })
		_, err = f.WriteAt(content, base)
		must(t, err)
		c.say(fmt.Sprintf("GetWriteWatch 1 %#x %#x 100", base, len(content)))
		return f
	}
	a, b := mem("a"), mem("b")
	before := m.counters("meminfo")
	if !within(10*time.Second, func() bool {
		m.ctl("combine")
		return m.counters("meminfo").get(t, "CombinedSaved") >= 2*len64(content)>>10
	}) {
		t.Fatalf("combine: %q", readFile(t, m.path(".proc/ctl")))
	}
	m.check()
	if got, was := m.counters("meminfo").get(t, "MemFree"), before.get(t, "MemFree"); got < was+2*len64(content)>>10*8/10 {
		t.Errorf("%d kB are free, %d before", got, was)
	}
	type row struct {
		Frame, Sharers, Address *uint64
		State                   string
	}
	frames := func(name string) (rows []row) {
		var table struct{ Pages []row }
		m.json(".proc/"+name, &table)
		for _, p := range table.Pages {
			if p.Address == nil || *p.Address >= base && *p.Address < base+uint64(len(content)) {
				rows = append(rows, p)
			}
		}
		return rows
	}
	first, second, file := frames("a/pagemap.json"), frames("b/pagemap.json"), frames("files/file/pages.json")
	if len(first) != pages || len(second) != pages || len(file) != pages {
		t.Fatalf("%d, %d and %d pages", len(first), len(second), len(file))
	}
	for i, p := range first {
		for _, o := range []row{second[i], file[i]} {
			if p.Frame == nil || o.Frame == nil || *o.Frame != *p.Frame || *o.Sharers != 3 || p.State != "Active" {
				t.Fatalf("page %d: %+v, and another %+v", i, p, o)
			}
		}
	}
	combined := 0
	for _, f := range m.frames() {
		if f.Use == "Combined" {
			combined++
		}
	}
	if combined != pages {
		t.Errorf("%d frames are combined, want %d", combined, pages)
	}
	text := string(readFile(t, m.path(".proc/a/smaps")))
	for _, want := range []string{"Shared_Dirty: %11d kB\n", "Anonymous: %14d kB\n"} {
		if want = fmt.Sprintf(want, len(content)>>10); !strings.Contains(text, want) {
			t.Errorf("smaps of a process whose pages are combined has no %s\n%s", want, text)
		}
	}
	replies, err := m.call(t, "a", fmt.Sprintf("GetWriteWatch 0 %#x %#x 100", base, len(content)),
		fmt.Sprintf("QueryWorkingSetEx %#x", base), fmt.Sprintf("VirtualProtect %#x 0x1000 PAGE_READONLY", base+4096),
		fmt.Sprintf("Write %#x 00", base+4096))
	if err == nil || len(replies) != 4 || !strings.Contains(replies[0], "Count=0") || !strings.Contains(replies[1], "ShareCount=2") ||
		!strings.HasPrefix(replies[3], "EXC 0xC0000005 write") {
		t.Errorf("after combining: %q, %v", replies, err)
	}

	// A store is in its own process alone, and so is what the kernel sends back of it.
	_, err = a.WriteAt([]byte("of a"), base)
	must(t, err)
	_, err = b.WriteAt([]byte("of b"), base+8192+5)
	must(t, err)
	m.pageOut()
	m.check()
	got := make([]byte, len(content))
	for f, want := range map[*os.File][]byte{
		a: append([]byte("of a"), content[4:]...),
		b: bytes.Join([][]byte{content[:8197], []byte("of b"), content[8201:]}, nil),
	} {
		_, err := f.ReadAt(got, base)
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s holds something else", f.Name())
		}
	}
	if !bytes.Equal(readFile(t, m.path("file")), content) {
		t.Error("the file has a process's store")
	}
	replies, err = m.call(t, "b", fmt.Sprintf("GetWriteWatch 0 %#x %#x 100", base, len(content)))
	if must(t, err); !strings.Contains(replies[0], "Count=1") {
		t.Errorf("written after combining: %q", replies)
	}
	must(t, a.Close())
	must(t, b.Close())
	must(t, os.Remove(m.path(".proc/a")))
	m.check()
	must(t, os.Remove(m.path(".proc/b")))
	must(t, os.Remove(m.path("file")))
	if !within(10*time.Second, func() bool { return m.counters("meminfo").get(t, "Combined") == 0 }) {
		t.Errorf("all are gone, and %d kB are combined", m.counters("meminfo").get(t, "Combined"))
	}
}

func len64(b []byte) uint64 { return uint64(len(b)) }
