package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestProcessOptions gives a process its options before its first call, and none afterwards.
func TestProcessOptions(t *testing.T) {
	m := mountMemfs(t, options{})
	must(t, os.WriteFile(m.path(".proc/policy/arch"), []byte("x86\n"), 0))
	wantErrno(t, "an architecture that there is not", os.WriteFile(m.path(".proc/policy/arch"), []byte("z80\n"), 0), unix.EINVAL)
	must(t, os.Mkdir(m.path(".proc/p"), 0o755))
	must(t, os.WriteFile(m.path(".proc/policy/arch"), []byte("x64\n"), 0))
	status := func() string { return string(mustRead(t, m.path(".proc/p/status"))) }
	if got := status(); !strings.Contains(got, "x86") || !strings.Contains(got, "7ffeffff") {
		t.Errorf("under policy x86 status is\n%s", got)
	}
	replies, err := m.call(t, "p", "laa", "commit 1M", "virtual 8M", "priority 3", "workingset 128K 256K hard")
	must(t, err)
	if got := strings.Join(replies, "/"); got != "OK laa/OK commit=1M/OK virtual=8M/OK priority=3/OK workingset=128K,256K,hard" {
		t.Errorf("replies are %s", got)
	}
	if got := status(); !strings.Contains(got, "fffeffff") {
		t.Errorf("large-address-aware, status is\n%s", got)
	}
	if got := string(mustRead(t, m.path(".proc/p/limits"))); !strings.Contains(got, "Max commit                1048576              1048576              bytes") {
		t.Errorf("limits are\n%s", got)
	}
	for _, bad := range []string{"arch z80", "arch", "arch x64 x86", "commit much", "commit -1", "priority 8", "workingset 1M 4K", "laa yes", "translate", "translate x"} {
		if replies, err := m.call(t, "p", bad); err == nil || !strings.HasPrefix(replies[0], "ERR 87 ") {
			t.Errorf("%s: %q, %v", bad, replies, err)
		}
	}
	_, err = m.call(t, "p", "r = VirtualAlloc 0 0xe0000 MEM_RESERVE|MEM_COMMIT PAGE_READWRITE")
	must(t, err)
	replies, err = m.call(t, "p", "VirtualAlloc 0 0x20000 MEM_COMMIT PAGE_READWRITE")
	wantErrno(t, "committing more than the quota", err, unix.ENOMEM)
	if _, err = m.call(t, "p", "VirtualAlloc 0 0x800000 MEM_RESERVE PAGE_READWRITE"); err == nil {
		t.Errorf("reserving more than the quota: %q", replies)
	}
	replies, err = m.call(t, "p", "arch x64")
	wantErrno(t, "another architecture after the first call", err, unix.EACCES)
	if !strings.HasPrefix(replies[0], "ERR 5 ") {
		t.Errorf("another architecture after the first call: %q", replies)
	}
	for i := range 0xe0 { // the hard maximum holds
		_, err = m.call(t, "p", "Write $r+"+fmt.Sprint(i*4096)+" 01")
		must(t, err)
	}
	if n := strings.Count(string(mustRead(t, m.path(".proc/p/workingset"))), "\n") - 1; n > 64 || n < 8 {
		t.Errorf("%d pages in a working set of at most 64", n)
	}
}

// TestProcessFiles reads everything that a process shows, with its JSON twins, and finds all of it gone after rmdir.
func TestProcessFiles(t *testing.T) {
	m := mountMemfs(t, options{memory: "16M", pageFile: "64M"})
	before, files := m.counters("meminfo"), string(mustRead(t, m.path(".proc/pagefiles")))
	must(t, os.Mkdir(m.path(".proc/p"), 0o755))
	lines := []string{"r = VirtualAlloc 0x10000000 0x1000000 MEM_RESERVE|MEM_COMMIT PAGE_READWRITE", "CreateThread 0",
		"VirtualProtect $r+0x4000 0x1000 PAGE_READONLY", "VirtualLock $r+0x8000 0x2000", "VirtualAlloc 0x20000000 0x100000 MEM_RESERVE PAGE_EXECUTE_READ"}
	_, err := m.call(t, "p", lines...)
	must(t, err)
	for first := 0; first < 4096; first += 64 { // more than memory has
		var lines []string
		for i := first; i < first+64; i++ {
			if i != 4 {
				lines = append(lines, "Write $r+"+fmt.Sprint(i*4096)+" 0102")
			}
		}
		_, err := m.call(t, "p", lines...)
		must(t, err)
	}
	read := func(name string) string { return string(mustRead(t, m.path(".proc/p", name))) }
	for name, wants := range map[string][]string{
		"maps": {"000010000000        16384 MEM_COMMIT  MEM_PRIVATE PAGE_READWRITE", "000010004000         4096 MEM_COMMIT  MEM_PRIVATE PAGE_READONLY",
			"MEM_RESERVE MEM_PRIVATE -", "PAGE_EXECUTE_READ", "PAGE_READWRITE|PAGE_GUARD", "stack", "KUSER_SHARED_DATA"},
		"smaps":      {"10000000-10004000 rw-p 00000000 00:00 0\n", "[stack]", "10004000-10005000 r--p", "VmFlags: rd wr mr mw me lo\n", "Locked:                 8 kB\n"},
		"pagemap":    {" Valid ", " Paged ", " DemandZero ", "PAGE_READONLY"},
		"workingset": {"000010008000 yes         0 PAGE_READWRITE\n"},
		"limits":     {"Max address space         unlimited"},
		"status":     {"Locked:                8 kB\n", "Threads:               1\n"},
	} {
		text := read(name)
		for _, want := range wants {
			if !strings.Contains(text, want) {
				t.Errorf("%s has no %q:\n%s", name, want, tail(text))
			}
		}
		var twin map[string]any
		if err := json.Unmarshal([]byte(read(name+".json")), &twin); err != nil || twin["v"] != 1.0 {
			t.Errorf("%s.json: %v", name, err)
		}
	}
	var pagemap struct {
		Pages []struct {
			Address  uint64
			PTE      string
			Accessed bool
			Frame    *uint64
		}
	}
	must(t, json.Unmarshal([]byte(read("pagemap.json")), &pagemap))
	if n := len(pagemap.Pages); n < 4098 || n > 4098+64 {
		t.Errorf("pagemap has %d pages, 4098 and the default heap are committed", n)
	}
	for _, p := range pagemap.Pages {
		if p.Accessed != (p.PTE == "Valid") || p.PTE == "Valid" && p.Frame == nil || p.PTE == "DemandZero" && p.Frame != nil {
			t.Errorf("a page that makes no sense: %+v", p)
			break
		}
	}
	must(t, os.Remove(m.path(".proc/p")))
	m.ctl("empty all")
	now := m.counters("meminfo")
	if was, is := before.get(t, "Committed_AS"), now.get(t, "Committed_AS"); is > was+64 {
		t.Errorf("after rmdir %d kB are committed, %d before", is, was)
	}
	if was, is := before.get(t, "MemFree"), now.get(t, "MemFree"); is+512 < was {
		t.Errorf("after rmdir %d kB are free, %d before", is, was)
	}
	if is := string(mustRead(t, m.path(".proc/pagefiles"))); usedSlots(t, is) != usedSlots(t, files) {
		t.Errorf("after rmdir the page file has\n%s, before\n%s", is, files)
	}
}

// usedSlots is the column of that name of pagefiles, summed up.
func usedSlots(t *testing.T, text string) (sum string) {
	rows := strings.Split(strings.TrimSpace(text), "\n")
	for i, head := range strings.Fields(rows[0]) {
		if strings.HasPrefix(head, "Used") {
			for _, row := range rows[1:] {
				sum += strings.Fields(row)[i] + " "
			}
			return sum
		}
	}
	t.Errorf("pagefiles has no column of what is used:\n%s", text)
	return ""
}

// TestProcessPrivate: what a process does is its user's and root's to see, as in /proc.
func TestProcessPrivate(t *testing.T) {
	m := mountMemfs(t, options{})
	p := m.startProgram(t, `exec 3<>.proc/self/ctl; echo "VirtualAlloc 0x10000 0x10000 MEM_RESERVE|MEM_COMMIT PAGE_READWRITE" >&3`)
	folder := m.path(".proc", fmt.Sprint(p.cmd.Process.Pid))
	for _, name := range []string{"maps", "smaps", "pagemap", "workingset", "limits", "mem", "ctl"} {
		if out, err := asNobody(exec.Command("cat", filepath.Join(folder, name))).CombinedOutput(); err == nil || !strings.Contains(string(out), "Permission denied") {
			t.Errorf("another user reads %s: %v\n%s", name, err, out)
		}
	}
	if out, err := asNobody(exec.Command("cat", filepath.Join(folder, "status"))).CombinedOutput(); err != nil {
		t.Errorf("status: %v\n%s", err, out)
	}
}
