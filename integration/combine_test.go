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
