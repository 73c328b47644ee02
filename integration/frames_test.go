package integration

import (
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"
)

// frame is a line of pfn.json.
type frame struct {
	Frame          uint64
	List, Why, Use string
	Inode, Page    *uint64
	Pid, Address   *uint64
	Name           *string
}

// frames lists the PFN database.
func (m *mount) frames() []frame {
	m.t.Helper()
	var list struct{ Frames []frame }
	m.json(".proc/pfn.json", &list)
	return list.Frames
}

// TestPFN finds every page of a file and of a process in the PFN database, where its own control files say it is.
func TestPFN(t *testing.T) {
	const pages = 40
	m := mountMemfs(t, options{})
	must(t, os.Mkdir(m.path("dir"), 0755))
	must(t, writeContent(m.path("dir/a file"), 3, pages*4096))
	m.ctl("trim")
	must(t, os.Mkdir(m.path(".proc/demo"), 0755))
	must(t, echo(m.path(".proc/demo/ctl"), "VirtualAlloc 0x200000 0x1000 MEM_RESERVE|MEM_COMMIT PAGE_READWRITE\nWrite 0x200000 c3"))

	var table struct {
		Pages []struct {
			Index      uint64
			State, Why string
			Frame      *uint64
		}
	}
	m.json(".proc/files/dir/a file/pages.json", &table)
	all := m.frames()
	byNumber := make(map[uint64]frame)
	for _, f := range all {
		byNumber[f.Frame] = f
	}
	if len(byNumber) != len(all) || uint64(len(all))*4 != m.counters("meminfo").get(t, "Frames") {
		t.Errorf("%d frames are listed, %d different ones; meminfo says %d kB", len(all), len(byNumber), m.counters("meminfo").get(t, "Frames"))
	}
	if len(table.Pages) != pages {
		t.Fatalf("the file has %d pages, want %d", len(table.Pages), pages)
	}
	for _, p := range table.Pages {
		if p.Frame == nil {
			t.Fatalf("page %d is %s and in no frame", p.Index, p.State)
		}
		f := byNumber[*p.Frame]
		if f.Use != "File" || f.Name == nil || *f.Name != "/dir/a file" || f.Page == nil || *f.Page != p.Index || f.Why != p.Why {
			t.Errorf("page %d is in frame %d by %s, which is listed as %+v", p.Index, *p.Frame, p.Why, f)
		}
	}
	private := 0
	for _, f := range all {
		if f.Name != nil && *f.Name == "demo" {
			if f.Use != "Private" || f.Pid == nil || f.Address == nil {
				t.Errorf("the process's frame is listed as %+v", f)
			} else if *f.Address == 0x200000 { // it has others of its own accord, such as its heap's
				private++
			}
		}
	}
	if private != 1 {
		t.Errorf("%d frames are listed as the page that was written, want 1", private)
	}

	// The text has a line for each as well, and is read in pieces of any size.
	file, err := os.Open(m.path(".proc/pfn"))
	must(t, err)
	defer file.Close()
	text, err := io.ReadAll(io.MultiReader(io.LimitReader(file, 7), file))
	must(t, err)
	if lines := strings.Count(string(text), "\n"); lines != len(all)+1 || !strings.HasPrefix(strings.TrimSpace(string(text)), "Frame ") {
		t.Errorf("pfn has %d lines, want %d and a header:\n%s", lines, len(all)+1, tail(string(text)))
	}
	if !json.Valid([]byte(readAll(t, m.path(".proc/pfn.json")))) {
		t.Error("pfn.json is not JSON")
	}
}

func readAll(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	must(t, err)
	return string(b)
}

// TestFramesInLines: programs that read more than a line and seek back, as head(1) and the shell's read do, get along with a
// list that is made while it is read.
func TestFramesInLines(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M"})
	first := run(t, m.dir, "sh", "-c", "head -n 2 .proc/pfn")
	again := run(t, m.dir, "bash", "-c", "{ head -n 1; IFS= read -r line; printf '%s\\n' \"$line\"; } < .proc/pfn")
	if strings.Count(first, "\n") != 2 || first != again {
		t.Errorf("two lines at once:\n%s\none by one:\n%s", first, again)
	}
}
