package integration

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
)

// states counts the letters of a file's map.
func (m *mount) states(file string) map[rune]int {
	m.t.Helper()
	b, err := os.ReadFile(m.path(".proc/files", file, "map"))
	must(m.t, err)
	count := map[rune]int{}
	for line := range strings.Lines(string(b)) {
		if _, letters, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			for _, c := range letters {
				count[c]++
			}
		}
	}
	return count
}

// fileCtl gives a file or directory a command and returns the answer.
func (m *mount) fileCtl(file, command string) string {
	m.t.Helper()
	name := m.path(".proc/files", file, "ctl")
	if err := echo(name, command); err != nil {
		m.t.Fatalf("%s: %s: %v", file, command, err)
	}
	b, err := os.ReadFile(name)
	must(m.t, err)
	return strings.TrimSpace(string(b))
}

// TestResidencyByPriority: of two files that together are twice the memory, and are read in turns, the one of the higher
// priority is in memory; a pinned file keeps every page through everything that empties memory.
func TestResidencyByPriority(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "256M"})
	const size = 24 << 20
	must(t, writeContent(m.path("pinned"), 3, 2<<20))
	m.fileCtl("pinned", "pin")
	for i, file := range []string{"low", "high"} {
		must(t, writeContent(m.path(file), i, size))
	}
	m.fileCtl("low", "priority 1")
	m.fileCtl("high", "priority 6")
	m.pageOut()
	for range 2 {
		readAlternately(t, size, m.path("low"), m.path("high"))
	}
	m.ctl("trim") // what is in memory now is there by its list
	resident := func(file string) int {
		s := m.states(file)
		return s['A'] + s['S'] + s['M']
	}
	if low, high := resident("low"), resident("high"); high < 2*low || high < 2500 {
		t.Errorf("%d pages of the file of priority 1 are in memory, %d of that of 6", low, high)
	}
	m.ctl("empty all")
	for i := range 3 {
		must(t, writeContent(m.path("flood"), 10+i, 48<<20))
	}
	if s := m.states("pinned"); s['A'] != 512 || len(s) != 1 {
		t.Errorf("the pinned file's pages are %v; want 512 active ones", s)
	}
	wantContent(t, m.path("pinned"), 3, 2<<20)
	v := m.vmstat()
	if v.get(t, "repurposed_priority1") < 1000 {
		t.Errorf("%d pages of priority 1 were repurposed", v.get(t, "repurposed_priority1"))
	}
}

// readAlternately reads files 256 KiB of each at a time.
func readAlternately(t *testing.T, size int, names ...string) {
	t.Helper()
	b := make([]byte, 256<<10)
	var files []*os.File
	for _, name := range names {
		f, err := os.Open(name)
		must(t, err)
		defer f.Close()
		files = append(files, f)
	}
	for off := 0; off < size; off += len(b) {
		for _, f := range files {
			_, err := f.ReadAt(b, int64(off))
			must(t, err)
		}
	}
}

// TestCompressedWorkingSet: data of one and a half times the memory that compresses four to one stays in memory, and reading
// it again reads nothing from the disk; noise goes on to the page file.
func TestCompressedWorkingSet(t *testing.T) {
	m := mountMemfs(t, options{memory: "64M", pageFile: "512M", flags: []string{"--compress", "50%"}})
	const files, size = 12, 8 << 20
	quarter := func(i int) []byte { // a quarter noise, the rest zeros
		b := make([]byte, size)
		noise := rand.NewChaCha8([32]byte{byte(i)})
		for page := range size / 4096 {
			_, _ = noise.Read(b[page*4096:][:950])
		}
		return b
	}
	for i := range files {
		must(t, os.WriteFile(m.path(fmt.Sprint("file", i)), quarter(i), 0o644))
	}
	m.ctl("trim")
	for i := range files {
		wantFile(t, m.path(fmt.Sprint("file", i)), quarter(i))
	}
	after := m.vmstat()
	text := string(readFile(t, m.path(".proc/pagefiles")))
	// A page that finds neither a frame nor a page of compressed memory at the moment it must go is written to the disk;
	// on a busy machine that happens to a few.
	const few = files * size / 4096 / 100
	if n := after.get(t, "pages_migrated") + m.pageFiles()[0].Used; n > few {
		t.Errorf("%d pages went on to the page file:\n%s", n, text)
	}
	var ratio float64
	for line := range strings.Lines(text) {
		_, _ = fmt.Sscanf(line, "Ratio: %f", &ratio)
	}
	if ratio < 3 {
		t.Errorf("a ratio of %.2f:\n%s", ratio, text)
	}
	must(t, writeContent(m.path("noise"), 1, 64<<20))
	m.ctl("trim")
	if m.pageFiles()[0].Used < 4096 {
		t.Errorf("noise is not in the page file:\n%s", readFile(t, m.path(".proc/pagefiles")))
	}
	for i := range files {
		wantFile(t, m.path(fmt.Sprint("file", i)), quarter(i))
	}
	wantContent(t, m.path("noise"), 1, 64<<20)
}

// TestOfferOnMount: what is offered is kept as long as there is memory, is lost first when there is none, and the answers
// say so.
func TestOfferOnMount(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "128M"})
	must(t, writeContent(m.path("cache"), 1, 4<<20))
	m.ctl("memory 64M")
	offered := 0
	if _, err := fmt.Sscanf(m.fileCtl("cache", "offer"), "OK offered=%d", &offered); err != nil || offered < 900 {
		t.Fatalf("%d pages offered, %v", offered, err)
	}
	var reclaimed, lost int
	if _, err := fmt.Sscanf(m.fileCtl("cache", "reclaim"), "OK reclaimed=%d lost=%d", &reclaimed, &lost); err != nil ||
		reclaimed != offered || lost != 0 {
		t.Fatalf("%d reclaimed, %d lost, %v", reclaimed, lost, err)
	}
	wantContent(t, m.path("cache"), 1, 4<<20)
	// A range: its whole pages and no others.
	part := 0
	if _, err := fmt.Sscanf(m.fileCtl("cache", "offer 1M 1048577"), "OK offered=%d", &part); err != nil || part == 0 || part > 256 {
		t.Fatalf("%d pages of 1 MiB offered, %v", part, err)
	}
	m.ctl("empty standby0")
	if got := m.fileCtl("cache", "reclaim 0 1M"); got != "OK reclaimed=0 lost=0" {
		t.Errorf("reclaiming before the range: %q", got)
	}
	if got, want := m.fileCtl("cache", "reclaim 1M 2M"), fmt.Sprintf("OK reclaimed=0 lost=%d", part); got != want {
		t.Errorf("reclaiming the range: %q, want %q", got, want)
	}
	whole := make([]byte, 4<<20)
	_, err := io.ReadFull(newContent(1), whole)
	must(t, err)
	if got := readFile(t, m.path("cache")); !bytes.Equal(got[:1<<20], whole[:1<<20]) || !bytes.Equal(got[2<<20:], whole[2<<20:]) {
		t.Error("pages outside of the range are lost")
	}
	must(t, writeContent(m.path("cache"), 1, 4<<20))
	m.fileCtl("cache", "offer")
	must(t, writeContent(m.path("flood"), 2, 96<<20))
	if _, err := fmt.Sscanf(m.fileCtl("cache", "reclaim"), "OK reclaimed=%d lost=%d", &reclaimed, &lost); err != nil || lost == 0 {
		t.Fatalf("%d reclaimed, %d lost, %v", reclaimed, lost, err)
	}
	if got := readFile(t, m.path("cache")); len(got) != 4<<20 {
		t.Errorf("%d bytes are left", len(got))
	}
	wantContent(t, m.path("flood"), 2, 96<<20)
}

// TestSystemCacheBounded: a hard maximum bounds what the host keeps of the mount.
func TestSystemCacheBounded(t *testing.T) {
	m := mountMemfs(t, options{memory: "64M"})
	m.ctl("systemcache 0 4M hard")
	must(t, writeContent(m.path("file"), 1, 32<<20))
	wantContent(t, m.path("file"), 1, 32<<20)
	if !within(20e9, func() bool { return m.counters("meminfo").get(t, "HostCached") <= 4<<10 }) {
		t.Errorf("the host holds %d kB, at most 4096 are allowed", m.counters("meminfo").get(t, "HostCached"))
	}
	m.ctl("systemcache 0 0")
	wantContent(t, m.path("file"), 1, 32<<20)
	if got := m.counters("meminfo").get(t, "HostCached"); got <= 4<<10 {
		t.Errorf("the host holds %d kB with the bound gone", got)
	}
}
