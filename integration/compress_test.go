package integration

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
)

// text is n bytes that compress, and that can be told apart by number.
func text(number, n int) []byte {
	line := strings.Repeat("The quick brown fox jumps over the lazy dog. ", 3) + string(rune('a'+number%26)) + "\n"
	return bytes.Repeat([]byte(line), n/len(line)+1)[:n]
}

// TestCompress fills a mount with text, noise and zeros beyond its memory, with either codec, reads all of it back, and
// sees that the memory it takes is that of the budget.
func TestCompress(t *testing.T) {
	for _, codec := range []string{"s2", "zstd"} {
		t.Run(codec, func(t *testing.T) {
			m := mountMemfs(t, options{memory: "32M", pageFile: "256M", flags: []string{"--compress", "25%", "--codec", codec}})
			for i := range 24 {
				must(t, os.WriteFile(m.path("text"+string(rune('a'+i))), text(i, 1<<20), 0o644))
				must(t, os.WriteFile(m.path("zeros"+string(rune('a'+i))), make([]byte, 1<<20), 0o644))
				must(t, writeContent(m.path("noise"+string(rune('a'+i))), i, 1<<20))
			}
			m.ctl("trim")
			if n := m.vmstat().get(t, "pages_compressed"); n == 0 {
				t.Error("nothing was compressed")
			}
			info := m.counters("meminfo")
			if pages, memory := info.get(t, "Zswapped"), info.get(t, "Zswap"); pages < 4*memory || memory > 8<<10+64 {
				t.Errorf("%d kB are kept in %d kB; want them to be a quarter at most, and within 8 MiB", pages, memory)
			}
			for i := range 24 {
				wantFile(t, m.path("text"+string(rune('a'+i))), text(i, 1<<20))
				wantFile(t, m.path("zeros"+string(rune('a'+i))), make([]byte, 1<<20))
				wantContent(t, m.path("noise"+string(rune('a'+i))), i, 1<<20)
			}
			run(t, m.dir, "sh", "-c", "rm text* zeros* noise*")
			if memory := m.counters("meminfo").get(t, "Zswap"); memory != 0 {
				t.Errorf("%d kB of compressed memory are left when all files are gone", memory)
			}
		})
	}
}

// TestEncrypted: what is in the page file cannot be read there, unless that was asked for. The file has no name any more,
// but its daemon has it open.
func TestEncrypted(t *testing.T) {
	for _, encrypt := range []bool{true, false} {
		t.Run(map[bool]string{true: "on", false: "off"}[encrypt], func(t *testing.T) {
			o := options{memory: "16M", pageFile: "128M"}
			if !encrypt {
				o.flags = []string{"--encrypt=false"}
			}
			m := mountMemfs(t, o)
			secret := []byte("a secret that nobody must find on the disk ")
			content := bytes.Repeat(secret, 32<<20/len(secret))
			must(t, os.WriteFile(m.path("file"), content, 0o644))
			m.pageOut()
			if found := bytes.Contains(m.pageFileBytes(t), secret); found == encrypt {
				t.Errorf("the page file shows what was written: %v", found)
			}
			wantFile(t, m.path("file"), content)
		})
	}
}

// pageFileBytes is what lies in the page file.
func (m *mount) pageFileBytes(t *testing.T) []byte {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd/", m.pid)
	fds, err := os.ReadDir(dir)
	must(t, err)
	for _, fd := range fds {
		name := dir + fd.Name()
		if target, _ := os.Readlink(name); strings.Contains(target, "page") {
			b, err := os.ReadFile(name)
			must(t, err)
			return b
		}
	}
	t.Fatal("the daemon has no page file open")
	return nil
}
